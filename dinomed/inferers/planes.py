"""Slices of a volume, cut the same way in training and inference.

A volume (X, Y, Z) lies on the network grid: x to the right, y to the front, z up (RAS). A slice shows the two axes
p < q that it does not cut: its rows run along q downwards (descending), its columns along p (ascending), so that
pictures stand upright.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PLANE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis that a plane's slices follow, in RAS voxel order."""


def in_plane_axes(axis: int) -> tuple[int, int]:
    """Return the axes (q, p) of a slice's rows and columns."""
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0 (sagittal), 1 (coronal) or 2 (axial), not {axis!r}")
    p, q = (other for other in (0, 1, 2) if other != axis)
    return q, p


def _check_volume(volume: Tensor) -> None:
    if volume.ndim != 3:
        raise ValueError(
            f"a volume must have the shape (X, Y, Z), not {tuple(volume.shape)}; pass one channel at a time"
        )


def slices_along(volume: Tensor, axis: int) -> Tensor:
    """Turn a volume into upright slices along one axis.

    Args:
        volume: (X, Y, Z) of any type on the RAS network grid.
        axis: 0 sagittal, 1 coronal, 2 axial.

    Returns:
        (N, rows, cols) with N the size of `axis`; a copy.

    Raises:
        ValueError: If the volume is not three-dimensional or the axis is unknown.
    """
    _check_volume(volume)
    q, p = in_plane_axes(axis)
    return volume.permute(axis, q, p).flip(1)


def slice_inputs(volume: Tensor, axis: int, indices: Sequence[int] | Tensor, neighbours: int = 1) -> Tensor:
    """Cut slices together with their neighbours on both sides as channels.

    Args:
        volume: (X, Y, Z) on the RAS network grid.
        axis: 0 sagittal, 1 coronal, 2 axial.
        indices: Positions along `axis`, n of them.
        neighbours: Slices taken on each side; beyond the volume its edge slice is repeated.

    Returns:
        (n, 2 * neighbours + 1, rows, cols); channel `neighbours` is the slice itself, the channels ascend along `axis`.

    Raises:
        ValueError: If the volume is not three-dimensional, the axis is unknown, or a position lies outside.
    """
    _check_volume(volume)
    q, p = in_plane_axes(axis)
    if neighbours < 0:
        raise ValueError(f"neighbours must be 0 or more, not {neighbours}")
    size = volume.shape[axis]
    centres = torch.as_tensor(indices, dtype=torch.long, device="cpu")
    if centres.numel() and (int(centres.min()) < 0 or int(centres.max()) >= size):
        raise ValueError(f"slice positions must lie in 0..{size - 1}, not {centres.tolist()}")
    offsets = torch.arange(-neighbours, neighbours + 1)
    wanted = (centres[:, None] + offsets).clamp_(0, size - 1)
    if wanted.numel() == 0:
        return volume.new_empty((0, len(offsets), volume.shape[q], volume.shape[p]))
    # Gather each plane once: neighbouring slices share most of their channels.
    planes, places = torch.unique(wanted, return_inverse=True)
    upright = volume.index_select(axis, planes.to(volume.device)).permute(axis, q, p).flip(1).contiguous()
    return upright[places.to(volume.device)]
