"""Where a volume holds anything, and which part of a slice is worth a network's time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32
"""Parts of slices consist of whole blocks of this many pixels, counted from the slice's first row and column.

So a part meets the patches of a transformer and the strides of convolutions where the whole slice does.
"""

SMALLEST_SIZE = 160
"""Parts do not get smaller than this, where the slice is larger: a network needs context to tell what it sees."""

MARGIN_PIXELS = 4


@dataclass(frozen=True)
class Span:
    """A part of a slice's rows or columns: pixels `start` to `stop`, then `padding` beyond the slice's end."""

    start: int
    stop: int
    padding: int

    @property
    def size(self) -> int:
        """Pixels with the padding."""
        return self.stop - self.start + self.padding


def _dilate(filled: Tensor, axis: int) -> Tensor:
    """Turn marks of pairs (n - 1) into marks of the voxels (n) in them."""
    shape = list(filled.shape)
    shape[axis] = 1
    edge = filled.new_zeros(shape)
    return torch.cat([filled, edge], axis) | torch.cat([edge, filled], axis)


def occupied(volume: Tensor, empty_value: float) -> tuple[Tensor, Tensor, Tensor]:
    """Project what a volume holds onto its three planes.

    A voxel counts when it lies in a cube of 2 x 2 x 2 voxels that all exceed the empty value, so that single noisy
    voxels in the air do not. Where there is no such cube, or an axis has one voxel only, single voxels count.

    Args:
        volume: (X, Y, Z).
        empty_value: Voxels up to this intensity are empty.

    Returns:
        Boolean projections (Y, Z), (X, Z) and (X, Y), along the axis of the same number.
    """
    cubes = min(volume.shape) > 1
    found = _project(volume, empty_value, cubes)
    if cubes and not bool(found[0].any()):
        found = _project(volume, empty_value, False)
    return found


def _project(volume: Tensor, empty_value: float, cubes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Project voxels, or 2 x 2 x 2 cubes of voxels, above a value; holds only two planes of marks at a time."""
    along_x: Tensor | None = None
    along_y, along_z = [], []
    previous: Tensor | None = None
    for plane in volume.unbind(0):
        marks = filled = plane > empty_value
        if cubes:
            previous, before = filled, previous
            if before is None:
                continue
            marks = before & filled
            marks = marks[1:] & marks[:-1]
            marks = marks[:, 1:] & marks[:, :-1]
        along_x = marks if along_x is None else along_x | marks
        along_y.append(marks.any(dim=0))
        along_z.append(marks.any(dim=1))
    assert along_x is not None
    found = along_x.cpu(), torch.stack(along_y).cpu(), torch.stack(along_z).cpu()
    if not cubes:
        return found
    first, second, third = (_dilate(_dilate(each, 0), 1) for each in found)
    return first, second, third


def whole_span(size: int) -> Span:
    """Take all rows or columns, padded to whole blocks."""
    return Span(0, size, -size % BLOCK)


def tight_span(filled: Tensor) -> Span:
    """Choose the blocks that hold everything, with a margin.

    Args:
        filled: (n,) boolean marks of rows or columns, at least one set.

    Returns:
        Whole blocks, at least `SMALLEST_SIZE` pixels, or all there are.
    """
    size = filled.numel()
    used = torch.nonzero(filled).flatten()
    blocks = -(-size // BLOCK)
    first = max(0, int(used[0]) - MARGIN_PIXELS) // BLOCK
    stop = -(-min(size, int(used[-1]) + 1 + MARGIN_PIXELS) // BLOCK)
    wanted = max(stop - first, min(SMALLEST_SIZE // BLOCK, blocks))
    first = min(max(0, first - (wanted - (stop - first) + 1) // 2), blocks - wanted)
    start, end = first * BLOCK, (first + wanted) * BLOCK
    return Span(start, min(end, size), max(0, end - size))
