"""Deformable attention in operators that every runtime has: one gather of rows for each of a point's four neighbours.

ONNX could also say it with GridSample, but TensorRT miscompiles that in such graphs, and a runtime without a good
GridSample would have to transpose the maps first. Gathering rows of the values as they lie needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinomed.ops.ms_deform_attn import real_dtype


def gather_ms_deform_attn(
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    deterministic: bool = False,
) -> Tensor:
    """Do what `torch.ops.dinomed.ms_deform_attn` does.

    Args:
        value: (B, S, M, D).
        heights: Heights of the levels, in pixels.
        widths: Widths of the levels, in pixels.
        locations: x, y in [0, 1], (B, Q, M, L, P, 2).
        weights: (B, Q, M, L, P).
        deterministic: Only concerns gradients.

    Returns:
        (B, Q, M * D), of the type of `value`.
    """
    dtype = real_dtype(value)
    # One length of the map beyond its edge reads zeros as surely as infinity does, and stays finite.
    xs, ys = locations.to(dtype).clamp(-1.0, 2.0).unbind(-1)
    pixels = [
        (xs[:, :, :, level] * width - 0.5, ys[:, :, :, level] * height - 0.5)
        for level, (height, width) in enumerate(zip(heights, widths, strict=True))
    ]
    return _sum_neighbours(value, heights, widths, pixels, weights.to(dtype))


def gather_ms_deform_attn_fused(
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool = False,
) -> Tensor:
    """Do what `torch.ops.dinomed.ms_deform_attn_fused` does.

    Args:
        value: (B, S, M, D).
        heights: Heights of the levels, in pixels.
        widths: Widths of the levels, in pixels.
        references: x, y in [0, 1], (B or 1, Q, L or 1, 2).
        offsets: x, y in pixels, (B, Q, M, L, P, 2).
        logits: (B, Q, M, L, P).
        deterministic: Only concerns gradients.

    Returns:
        (B, Q, M * D), of the type of `value`.
    """
    dtype = real_dtype(value)
    xs, ys = offsets.to(dtype).unbind(-1)
    pixels = []
    for level, (height, width) in enumerate(zip(heights, widths, strict=True)):
        reference = references[:, :, level if references.shape[2] > 1 else 0].to(dtype)
        x, y = (part[:, :, None, None] for part in reference.unbind(-1))
        x = (x * width + xs[:, :, :, level] - 0.5).clamp(-2.0, width + 1.0)
        y = (y * height + ys[:, :, :, level] - 0.5).clamp(-2.0, height + 1.0)
        pixels.append((x, y))
    weights = logits.to(dtype).flatten(3).softmax(dim=-1).view(logits.shape)
    return _sum_neighbours(value, heights, widths, pixels, weights)


def _sum_neighbours(
    value: Tensor, heights: Sequence[int], widths: Sequence[int], pixels: list[tuple[Tensor, Tensor]], weights: Tensor
) -> Tensor:
    """Sum bilinear samples at places in pixels, one (x, y) of (B, Q, M, P) each per level, 0 a pixel's centre."""
    batch, total, heads, depth = value.shape
    # A neighbour outside is the zero row at the end: it is read, never a value times zero.
    rows = torch.cat((value.reshape(-1, depth).to(weights.dtype), weights.new_zeros((1, depth))))
    first = torch.arange(batch, device=value.device)[:, None, None, None] * total
    head = torch.arange(heads, device=value.device)[:, None]
    sums = weights.new_zeros((1, 1, heads, depth))
    for level, (height, width) in enumerate(zip(heights, widths, strict=True)):
        x, y = pixels[level]
        left, top = x.floor(), y.floor()
        right_share, lower_share = x - left, y - top
        for column, share_x in ((left, 1 - right_share), (left + 1, right_share)):
            for row, share_y in ((top, 1 - lower_share), (top + 1, lower_share)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                pixel = row.where(inside, 0.0).long() * width + column.where(inside, 0.0).long()
                index = ((first + pixel) * heads + head).where(inside, batch * total * heads)
                neighbours = rows.index_select(0, index.flatten()).view(*index.shape, depth)
                share = share_x * share_y * weights[:, :, :, level]
                sums = sums + (neighbours * share[..., None]).sum(dim=3)
        first = first + height * width
    return sums.flatten(2).to(value.dtype)


DECOMPOSITIONS = {
    torch.ops.dinomed.ms_deform_attn.default: gather_ms_deform_attn,
    torch.ops.dinomed.ms_deform_attn_fused.default: gather_ms_deform_attn_fused,
}
