"""Resampling along single axes, with few weights per voxel.

Values are interpolated linearly; where the grid gets coarser, the linear interpolant is averaged over the difference
of the two voxel sizes, which suppresses aliasing, keeps ramps exact and meets plain linear interpolation where the
sizes meet. Beyond the outermost voxel centres the edge voxel is repeated.

Weights of probabilities are whole multiples of 1/32 (`WEIGHT_LEVELS`): three of them times a uint8 probability fit the
24 bits of a float32 exactly, so labels do not depend on the order of axes, of additions, or on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import torch
from torch import Tensor

WEIGHT_LEVELS = 32

Taps = list[list[tuple[int, float]]]
"""For each output position the input positions that it is made of and their weights, which sum to 1."""


def axis_taps(n_in: int, n_out: int, step: float, start: float, levels: int | None = None) -> Taps:
    """Weights that resample one axis.

    Args:
        n_in: Input voxels.
        n_out: Output voxels.
        step: Input voxels per output voxel.
        start: Position of output voxel 0 in input voxels.
        levels: Round the weights to whole multiples of `1 / levels`, still summing to 1.

    Returns:
        The taps of each output voxel.
    """
    half_width = max(0.0, step - 1.0) / 2

    def integral(v: float) -> float:
        """Integrate the hat function from minus infinity to v."""
        v = min(max(v, -1.0), 1.0)
        return (1 + v) ** 2 / 2 if v < 0 else 1 - (1 - v) ** 2 / 2

    taps: Taps = []
    for j in range(n_out):
        centre = min(max(round(j * step + start, 6), -half_width), n_in - 1 + half_width)
        low, high = centre - half_width, centre + half_width
        weights: dict[int, float] = {}
        for node in range(floor(low), ceil(high) + 1):
            if half_width > 1e-6:
                weight = (integral(high - node) - integral(low - node)) / (2 * half_width)
            else:
                weight = max(0.0, 1 - abs(centre - node))
            index = min(max(node, 0), n_in - 1)
            weights[index] = weights.get(index, 0.0) + weight
        if levels is not None:
            weights = _round_weights(weights, levels)
        total = sum(weights.values())
        taps.append([(index, weight / total) for index, weight in weights.items() if weight > 1e-9])
    return taps


def _round_weights(weights: dict[int, float], levels: int) -> dict[int, float]:
    """Round weights to multiples of `1 / levels` that sum to 1, giving what is left to the largest remainders."""
    whole = {index: floor(weight * levels + 1e-9) for index, weight in weights.items()}
    missing = levels - sum(whole.values())
    by_remainder = sorted(weights, key=lambda index: (round(whole[index] - weights[index] * levels, 6), index))
    for index in by_remainder[:missing]:
        whole[index] += 1
    return {index: count / levels for index, count in whole.items()}


def _axis_first(volume: Tensor, axis: int) -> Tensor:
    """Move an axis to the front; one that is contiguous in memory is made the slowest by a plain 2-D transposition."""
    rest = sorted((a for a in range(volume.ndim) if a != axis), key=volume.stride, reverse=True)
    ordered = volume.permute(axis, *rest)
    if volume.stride(axis) == 1 and volume.shape[axis] > 1:
        ordered = ordered.reshape(len(ordered), -1).contiguous().view(ordered.shape)
    back = [0, *(1 + rest.index(a) for a in range(volume.ndim) if a != axis)]
    return ordered.permute(back)


def resample_axis(volume: Tensor, axis: int, taps: Taps) -> Tensor:
    """Resample one axis of a float tensor.

    Only sums of whole planes are used, so the values depend on nothing but the inputs: not on the layout in memory, and
    not on the number of threads.

    Args:
        volume: Float tensor of any dimensions.
        axis: The axis to resample, not negative.
        taps: One entry per output position.

    Returns:
        A tensor with `len(taps)` positions along `axis`; the input itself if the taps change nothing.
    """
    if len(taps) == volume.shape[axis] and all(tap == [(j, 1.0)] for j, tap in enumerate(taps)):
        return volume
    source = _axis_first(volume, axis)
    rest = sorted(range(1, source.ndim), key=source.stride, reverse=True)
    memory = source.new_empty((len(taps), *(source.shape[a] for a in rest)))
    result = memory.permute(0, *(1 + rest.index(a) for a in range(1, source.ndim)))
    planes = source.unbind(0)
    for out, tap in zip(result.unbind(0), taps, strict=True):
        if len(tap) == 2:
            torch.lerp(planes[tap[0][0]], planes[tap[1][0]], tap[1][1], out=out)
            continue
        torch.mul(planes[tap[0][0]], tap[0][1], out=out)
        for index, weight in tap[1:]:
            out.add_(planes[index], alpha=weight)
    return result.movedim(0, axis)


@dataclass(frozen=True)
class NativeBlock:
    """A part of the native grid, in network order, and how to make it from the network grid.

    Attributes:
        where: The block's place in the canonical native grid.
        source: The part of the network grid that it is made of.
        taps: Weights per axis, counted from the start of `source`.
    """

    where: tuple[slice, slice, slice]
    source: tuple[slice, slice, slice]
    taps: tuple[Taps, Taps, Taps]

    @property
    def is_copy(self) -> bool:
        """Whether the block equals its source."""
        return all(tap == [(j, 1.0)] for taps in self.taps for j, tap in enumerate(taps))

    def resample(self, values: Tensor) -> Tensor:
        """Resample the values (x, y, z) of `source`, uint8 or small whole numbers, exactly; returns float32."""
        values = values.to(torch.float32)
        fastest, middle, slowest = sorted(range(3), key=values.stride)
        for axis in (fastest, slowest, middle):  # fewest transpositions; sums of exact products have no order
            values = resample_axis(values, axis, self.taps[axis])
        return values


def taps_from(taps: Taps, start: int, stop: int) -> tuple[slice, Taps]:
    """Cut a range of output positions and count their inputs from the first one needed."""
    part = taps[start:stop]
    first = min(index for tap in part for index, _ in tap)
    last = max(index for tap in part for index, _ in tap)
    return slice(first, last + 1), [[(index - first, weight) for index, weight in tap] for tap in part]
