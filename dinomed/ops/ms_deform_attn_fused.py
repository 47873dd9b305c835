"""Multi-scale deformable attention from a network's raw outputs: offsets, logits and reference points.

`torch.ops.dinomed.ms_deform_attn_fused` is `ms_deform_attn` with the arithmetic before it, which costs several times
more than the sampling when PyTorch does it. The reference does just that and is what runs where nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dinomed.ops.ms_deform_attn import check_inputs, real_dtype, split_shapes

_TAGS = (torch.Tag.pt2_compliant_tag,)
_ARGUMENTS = (
    "Tensor value, SymInt[] heights, SymInt[] widths, Tensor reference_points, Tensor sampling_offsets, "
    "Tensor attention_logits, bool deterministic=False"
)
torch.library.define("dinomed::ms_deform_attn_fused", f"({_ARGUMENTS}) -> Tensor", tags=_TAGS)
torch.library.define(
    "dinomed::ms_deform_attn_fused_backward",
    f"(Tensor grad_output, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    deterministic: bool | None = None,
) -> Tensor:
    """Sum bilinear samples of feature maps around reference points, weighted by a softmax, for every query and head.

    A point lies `sampling_offsets` pixels of its own map from its reference point. The softmax runs over a head's
    points of all levels. Locations and sums are float32 (float64 for float64 values) whatever the inputs' types.

    Args:
        value: Feature maps, one level after the other, rows first, (B, S, M, D) with S the sum of the levels' pixels.
        spatial_shapes: Height and width of every level, in pixels; L pairs.
        reference_points: x, y in [0, 1] from a map's outer edge to the other, (Q, 2) or (B or 1, Q, L or 1, 2).
        sampling_offsets: x, y in pixels, (B, Q, M, L, P, 2).
        attention_logits: (B, Q, M, L, P).
        deterministic: As in `ms_deform_attn`.

    Returns:
        One vector per query, heads concatenated, (B, Q, M * D), of the type of `value`.

    Raises:
        ValueError: If shapes, types or devices do not belong together.
    """
    heights, widths = split_shapes(spatial_shapes)
    check_inputs(value, heights, widths, sampling_offsets, attention_logits)
    references = reference_points[None, :, None] if reference_points.dim() == 2 else reference_points
    _check_references(references, attention_logits)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.ops.dinomed.ms_deform_attn_fused(
        value, heights, widths, references, sampling_offsets, attention_logits, deterministic
    )


def _check_references(references: Tensor, logits: Tensor) -> None:
    batch, queries, _, levels, _ = logits.shape
    # Comparisons one by one: PyTorch 2.11 compiles `size in (1, batch)` wrong for some sizes that it keeps free.
    fits = (
        references.dim() == 4
        and (references.shape[0] == 1 or references.shape[0] == batch)
        and references.shape[1] == queries
        and (references.shape[2] == 1 or references.shape[2] == levels)
        and references.shape[3] == 2
    )
    if not fits:
        raise ValueError(
            f"reference_points {tuple(references.shape)} must be (Q, 2) or (B or 1, Q, L or 1, 2) for "
            f"B={batch}, Q={queries}, L={levels}"
        )
    if not references.is_floating_point() or references.device != logits.device:
        raise ValueError(
            f"reference_points must be real and on {logits.device}, not {references.dtype} on {references.device}"
        )


def locations_and_weights(
    value: Tensor, heights: Sequence[int], widths: Sequence[int], references: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Do in PyTorch what the fused operator does before sampling.

    Args:
        value: (B, S, M, D); only its type matters.
        heights: Heights of the levels, in pixels.
        widths: Widths of the levels, in pixels.
        references: (B or 1, Q, L or 1, 2).
        offsets: (B, Q, M, L, P, 2).
        logits: (B, Q, M, L, P).

    Returns:
        Locations (B, Q, M, L, P, 2) and weights (B, Q, M, L, P).
    """
    dtype = real_dtype(value)
    locations = references.to(dtype)[:, :, None, :, None] + offsets.to(dtype) / _sizes(heights, widths, offsets, dtype)
    return locations, logits.to(dtype).flatten(3).softmax(dim=-1).view(logits.shape)


def _sizes(heights: Sequence[int], widths: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Give width and height of every level, (L, 1, 2)."""
    pairs = [[width, height] for height, width in zip(heights, widths, strict=True)]
    # A map without pixels is as one of a single pixel, which counts nothing.
    return torch.tensor(pairs, dtype=dtype, device=like.device).view(-1, 1, 2).clamp_(min=1)


def _reference(
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool = False,
) -> Tensor:
    locations, weights = locations_and_weights(value, heights, widths, references, offsets, logits)
    return torch.ops.dinomed.ms_deform_attn(value, heights, widths, locations, weights, deterministic)


def _reference_backward(
    grad_output: Tensor,
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    locations, weights = locations_and_weights(value, heights, widths, references, offsets, logits)
    grad_value, grad_locations, grad_weights = torch.ops.dinomed.ms_deform_attn_backward(
        grad_output, value, heights, widths, locations, weights, deterministic
    )
    grad_offsets = grad_locations / _sizes(heights, widths, offsets, grad_locations.dtype)
    share = grad_weights * weights
    grad_logits = share - weights * share.sum(dim=(-2, -1), keepdim=True)
    return grad_value, grad_offsets.to(offsets.dtype), grad_logits.to(logits.dtype)


def _fake(
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool = False,
) -> Tensor:
    batch, _, heads, depth = value.shape
    return value.new_empty((batch, offsets.shape[1], heads * depth))


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    return (value.new_empty(value.shape), offsets.new_empty(offsets.shape), logits.new_empty(logits.shape))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, heights, widths, references, offsets, logits, deterministic = inputs
    ctx.heights, ctx.widths, ctx.deterministic = heights, widths, deterministic
    ctx.save_for_backward(value, references, offsets, logits)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, Tensor | None, Tensor, Tensor, None]:
    value, references, offsets, logits = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = torch.ops.dinomed.ms_deform_attn_fused_backward(
        grad_output, value, ctx.heights, ctx.widths, references, offsets, logits, ctx.deterministic
    )
    grad_references = None
    if ctx.needs_input_grad[3]:
        # An offset of one pixel moves a point as far as a reference point that moves by 1 / size. The sizes are factors
        # one by one: a tensor made of them would fix them in a graph that is compiled for any size.
        moved = grad_offsets.to(real_dtype(value)).sum(dim=(2, 4)).unbind(2)
        sizes = zip(moved, ctx.heights, ctx.widths, strict=True)
        scaled = [torch.stack((x[..., 0] * width, x[..., 1] * height), dim=-1) for x, height, width in sizes]
        grad_references = torch.stack(scaled, dim=2).sum_to_size(references.shape).to(references.dtype)
    return grad_value, None, None, grad_references, grad_offsets, grad_logits, None


def _refuse_second_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("ms_deform_attn_fused cannot be differentiated twice; leave create_graph=True out")


torch.library.impl("dinomed::ms_deform_attn_fused", "CompositeExplicitAutograd")(_reference)
torch.library.impl("dinomed::ms_deform_attn_fused_backward", "CompositeExplicitAutograd")(_reference_backward)
torch.library.register_fake("dinomed::ms_deform_attn_fused")(_fake)
torch.library.register_fake("dinomed::ms_deform_attn_fused_backward")(_fake_backward)
torch.library.register_autograd("dinomed::ms_deform_attn_fused", _backward, setup_context=_setup_context)
torch.library.register_autograd("dinomed::ms_deform_attn_fused_backward", _refuse_second_backward)
