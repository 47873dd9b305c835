"""Where a volume holds anything: which slices are worth a network's time."""

from __future__ import annotations

import torch
from torch import Tensor


def occupied(volume: Tensor, empty_value: float) -> tuple[Tensor, Tensor, Tensor]:
    """Say which slices hold anything.

    A voxel counts when it lies in a cube of 2 x 2 x 2 voxels that all exceed the empty value, so that single noisy
    voxels in the air do not. Where there is no such cube, or an axis has one voxel only, single voxels count.

    Args:
        volume: (X, Y, Z).
        empty_value: Voxels up to this intensity are empty.

    Returns:
        Boolean marks of the slices along each axis, (X,), (Y,) and (Z,), on the CPU.
    """
    if min(volume.shape) > 1:
        found = _mark(volume, empty_value, cubes=True)
        if bool(found[0].any()):
            along_x, along_y, along_z = (_spread(marks) for marks in found)
            return along_x, along_y, along_z
    return _mark(volume, empty_value, cubes=False)


def _mark(volume: Tensor, empty_value: float, cubes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mark slices with a voxel, or with the first corner of a cube, above a value, plane by plane."""
    along_x = []
    onto_yz: Tensor | None = None
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
        along_x.append(marks.any())
        onto_yz = marks if onto_yz is None else onto_yz | marks
    assert onto_yz is not None
    return torch.stack(along_x).cpu(), onto_yz.any(dim=1).cpu(), onto_yz.any(dim=0).cpu()


def _spread(marks: Tensor) -> Tensor:
    """Turn marks of pairs of slices (n - 1) into marks of the slices (n) in them."""
    edge = marks.new_zeros(1)
    return torch.cat([marks, edge]) | torch.cat([edge, marks])
