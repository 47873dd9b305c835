"""Multi-scale deformable attention: schema, plain-PyTorch reference, fake and autograd.

Every query reads a few points of a few feature maps, each bilinearly, and sums them by attention weights
(Zhu et al., "Deformable DETR", ICLR 2021, equation 3). The operator is `torch.ops.dinomed.ms_deform_attn`;
`ms_deform_attn` is the documented way to call it. The reference is registered for every device at a key that any kernel
registered for CPU or CUDA overrides, so the operator exists, trains and exports where nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_TAGS = (torch.Tag.pt2_compliant_tag,)
_VALUE_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
torch.library.define(
    "dinomed::ms_deform_attn",
    "(Tensor value, SymInt[] heights, SymInt[] widths, Tensor sampling_locations, Tensor attention_weights, "
    "bool deterministic=False) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    "dinomed::ms_deform_attn_backward",
    "(Tensor grad_output, Tensor value, SymInt[] heights, SymInt[] widths, Tensor sampling_locations, "
    "Tensor attention_weights, bool deterministic=False) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    deterministic: bool | None = None,
) -> Tensor:
    """Sum bilinear samples of feature maps, weighted, for every query and head.

    Sums are formed in float32 (float64 for float64 values) whatever the inputs' types, which may differ. A point
    outside a map reads zeros there, a point at infinity too; a NaN location gives NaN. Keep the locations in float32:
    rounded to bfloat16 they move the points by whole pixels.

    Args:
        value: Feature maps, one level after the other, rows first, (B, S, M, D) with S the sum of the levels' pixels.
        spatial_shapes: Height and width of every level, in pixels; L pairs.
        sampling_locations: Points as x, y in [0, 1] from a map's outer edge to the other, (B, Q, M, L, P, 2).
        attention_weights: Weight of every point, (B, Q, M, L, P).
        deterministic: Whether the gradients are the same bits in every run; by default as
            `torch.use_deterministic_algorithms` says. Only the gradient of `value` on CUDA takes longer for it.

    Returns:
        One vector per query, heads concatenated, (B, Q, M * D), of the type of `value`.

    Raises:
        ValueError: If shapes, types or devices do not belong together.
    """
    heights, widths = split_shapes(spatial_shapes)
    check_inputs(value, heights, widths, sampling_locations, attention_weights)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.ops.dinomed.ms_deform_attn(
        value, heights, widths, sampling_locations, attention_weights, deterministic
    )


def split_shapes(spatial_shapes: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Give the heights and the widths of the levels.

    Raises:
        ValueError: If they are no pairs, or negative.
    """
    if any(len(pair) != 2 for pair in spatial_shapes):
        raise ValueError(f"spatial_shapes must be pairs (height, width), one for each level, not {spatial_shapes}")
    heights, widths = [height for height, _ in spatial_shapes], [width for _, width in spatial_shapes]
    if any(size < 0 for size in (*heights, *widths)):
        raise ValueError(f"a map's height and width cannot be negative: {spatial_shapes}")
    return heights, widths


def check_inputs(value: Tensor, heights: list[int], widths: list[int], locations: Tensor, weights: Tensor) -> None:
    """Refuse tensors that do not belong together.

    Args:
        value: (B, S, M, D).
        heights: Heights of the levels, in pixels.
        widths: Widths of the levels, in pixels.
        locations: Or offsets, (B, Q, M, L, P, 2).
        weights: Or logits, (B, Q, M, L, P).

    Raises:
        ValueError: If they do not, with what is wrong.
    """
    if value.dtype not in _VALUE_TYPES or not locations.is_floating_point() or not weights.is_floating_point():
        raise ValueError(
            "value must be float32, float64, bfloat16 or float16, locations and weights real, not "
            f"{value.dtype}, {locations.dtype} and {weights.dtype}"
        )
    if value.device != locations.device or value.device != weights.device:
        raise ValueError(
            f"value, locations and weights lie on {value.device}, {locations.device} and {weights.device}; move them "
            "to one device"
        )
    if value.dim() != 4 or locations.dim() != 6 or weights.dim() != 5:
        raise ValueError(
            "value, sampling_locations and attention_weights must be (B, S, M, D), (B, Q, M, L, P, 2) and "
            f"(B, Q, M, L, P), not {tuple(value.shape)}, {tuple(locations.shape)} and {tuple(weights.shape)}"
        )
    if locations.shape[:-1] != weights.shape or locations.shape[-1] != 2:
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} must be the shape of attention_weights "
            f"{tuple(weights.shape)} with 2 coordinates added at the end"
        )
    if value.shape[0] != weights.shape[0] or value.shape[2] != weights.shape[2]:
        raise ValueError(
            f"value {tuple(value.shape)} and attention_weights {tuple(weights.shape)} differ in batch or in heads"
        )
    if len(heights) != weights.shape[3]:
        raise ValueError(f"{len(heights)} spatial shapes were given for {weights.shape[3]} levels of points")
    pixels = sum(height * width for height, width in zip(heights, widths, strict=True))
    if pixels != value.shape[1]:
        raise ValueError(f"the spatial shapes hold {pixels} pixels but value has {value.shape[1]}; list every level")


def real_dtype(value: Tensor) -> torch.dtype:
    """Give the type of locations, weights and sums: float64 for float64 values, else float32."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _level_maps(value: Tensor, heights: Sequence[int], widths: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Split (B, S, M, D) into one contiguous (B * M, D, H, W) map per level."""
    batch, _, heads, depth = value.shape
    sizes = [height * width for height, width in zip(heights, widths, strict=True)]
    # CPU grid_sample reads garbage from strided bfloat16 maps: hence float32 and contiguous, always.
    return [
        level.permute(0, 2, 3, 1).to(dtype).reshape(batch * heads, depth, height, width).contiguous()
        for level, height, width in zip(value.split(sizes, dim=1), heights, widths, strict=True)
    ]


def _level_grids(locations: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Turn (B, Q, M, L, P, 2) locations into one contiguous (B * M, P, Q, 2) grid in [-1, 1] per level."""
    batch, queries, heads, _, points, _ = locations.shape
    # One map's length beyond the edge reads zeros as surely as infinity does, and stays finite; NaN passes.
    grid = locations.to(dtype).clamp(-1.0, 2.0).mul_(2).sub_(1)
    levels = grid.permute(3, 0, 2, 4, 1, 5).reshape(-1, batch * heads, points, queries, 2).contiguous()
    return list(levels.unbind(0))


def _level_weights(weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Turn (B, Q, M, L, P) weights into one contiguous (B * M, 1, P, Q) tensor per level."""
    batch, queries, heads, _, points = weights.shape
    levels = weights.to(dtype).permute(3, 0, 2, 4, 1).reshape(-1, batch * heads, 1, points, queries).contiguous()
    return list(levels.unbind(0))


def _reference(
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool = False,
) -> Tensor:
    batch, _, heads, depth = value.shape
    queries = sampling_locations.shape[1]
    dtype = real_dtype(value)
    output = value.new_zeros((batch * heads, depth, queries), dtype=dtype)
    if output.numel() > 0 and attention_weights.numel() > 0:
        maps = _level_maps(value, heights, widths, dtype)
        grids = _level_grids(sampling_locations, dtype)
        for level, grid, weight in zip(maps, grids, _level_weights(attention_weights, dtype), strict=True):
            if level.numel() == 0:  # a map without pixels, which grid_sample refuses
                continue
            # Queries innermost, so that the sum over the few points runs along whole vectors.
            output += F.grid_sample(level, grid, align_corners=False).mul_(weight).sum(2)
    return output.view(batch, heads * depth, queries).transpose(1, 2).to(value.dtype).contiguous()


def _reference_backward(
    grad_output: Tensor,
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    if deterministic and value.is_cuda:
        raise RuntimeError(
            "grid_sample has no deterministic gradient on CUDA; compile the CUDA kernel (DINOMED_BUILD=cuda) or leave "
            "deterministic=True out"
        )
    batch, _, heads, depth = value.shape
    _, queries, _, levels, points, _ = sampling_locations.shape
    dtype = real_dtype(value)
    if grad_output.numel() == 0 or attention_weights.numel() == 0:
        inputs = (value, sampling_locations, attention_weights)
        grad_value, grad_locations, grad_weights = (tensor.new_zeros(tensor.shape) for tensor in inputs)
        return grad_value, grad_locations, grad_weights
    grad = grad_output.to(dtype).transpose(1, 2).reshape(batch * heads, depth, 1, queries).contiguous()
    value_parts, location_parts, weight_parts = [], [], []
    maps = _level_maps(value, heights, widths, dtype)
    grids = _level_grids(sampling_locations, dtype)
    for level, grid, weight in zip(maps, grids, _level_weights(attention_weights, dtype), strict=True):
        if level.numel() == 0:
            weight_parts.append(torch.zeros_like(grid[..., 0]))
            value_parts.append(level.view(batch, heads, depth, 0))
            location_parts.append(torch.zeros_like(grid))
            continue
        weight_parts.append(F.grid_sample(level, grid, align_corners=False).mul_(grad).sum(1))
        grad_level, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weight, level, grid, 0, 0, False, [True, True]
        )
        value_parts.append(grad_level.view(batch, heads, depth, -1))
        location_parts.append(grad_grid)
    grad_value = torch.cat(value_parts, dim=-1).permute(0, 3, 1, 2)
    grad_locations = torch.stack(location_parts).view(levels, batch, heads, points, queries, 2).mul_(2)
    grad_weights = torch.stack(weight_parts).view(levels, batch, heads, points, queries)
    return (
        grad_value.to(value.dtype).contiguous(),
        grad_locations.permute(1, 4, 2, 0, 3, 5).to(sampling_locations.dtype).contiguous(),
        grad_weights.permute(1, 4, 2, 0, 3).to(attention_weights.dtype).contiguous(),
    )


def _fake(
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool = False,
) -> Tensor:
    batch, _, heads, depth = value.shape
    return value.new_empty((batch, sampling_locations.shape[1], heads * depth))


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, heights, widths, sampling_locations, attention_weights, deterministic = inputs
    ctx.heights, ctx.widths, ctx.deterministic = heights, widths, deterministic
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor, None]:
    value, sampling_locations, attention_weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.dinomed.ms_deform_attn_backward(
        grad_output, value, ctx.heights, ctx.widths, sampling_locations, attention_weights, ctx.deterministic
    )
    return grad_value, None, None, grad_locations, grad_weights, None


def _refuse_second_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("ms_deform_attn cannot be differentiated twice; leave create_graph=True out")


torch.library.impl("dinomed::ms_deform_attn", "CompositeExplicitAutograd")(_reference)
torch.library.impl("dinomed::ms_deform_attn_backward", "CompositeExplicitAutograd")(_reference_backward)
torch.library.register_fake("dinomed::ms_deform_attn")(_fake)
torch.library.register_fake("dinomed::ms_deform_attn_backward")(_fake_backward)
torch.library.register_autograd("dinomed::ms_deform_attn", _backward, setup_context=_setup_context)
torch.library.register_autograd("dinomed::ms_deform_attn_backward", _refuse_second_backward)
