"""The one place of resampling: from a scan's own voxel grid to the network's grid and back.

The network grid is the native grid with its axes reordered and flipped to run right, front, up (closest to RAS), and
resampled along each axis by itself (`dinomed.transforms.resampling`). Rotation and shear of the affine stay as they
are, so the same scan gives the same voxels however its axes are stored. Both grids share their centre.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations, product
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from dinomed.errors import VolumeError
from dinomed.transforms.resampling import WEIGHT_LEVELS, NativeBlock, axis_taps, resample_axis, taps_from
from dinomed.transforms.volume_checks import physical_memory_bytes, times

SAME_SPACING = 1e-3
"""Relative difference of voxel sizes below which an axis is not resampled."""

LARGEST_GRID_VOXELS = 2**31

BYTES_PER_NETWORK_VOXEL = 16
"""float32, a copy of it while resampling, and the uint8 probabilities of eight classes."""

Affine = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GridMap:
    """How a network grid lies in a native grid.

    Attributes:
        native_shape: Voxels along the native axes.
        shape: Voxels along the network axes.
        axes: The native axis behind each network axis.
        flips: Whether that native axis runs the other way.
        scale: Native voxels per network voxel along each network axis.
        offset: Position of network voxel 0 along each network axis, in (flipped) native voxels.
    """

    native_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Native voxels along the network axes."""
        x, y, z = (self.native_shape[axis] for axis in self.axes)
        return x, y, z

    def network_affine(self, native_affine: Affine) -> Affine:
        """Return the (4, 4) affine of the network grid, from network voxels to millimetres."""
        to_native = np.zeros((4, 4))
        to_native[3, 3] = 1.0
        for j, axis in enumerate(self.axes):
            sign = -1.0 if self.flips[j] else 1.0
            to_native[axis, j] = sign * self.scale[j]
            to_native[axis, 3] = self.native_shape[axis] - 1 - self.offset[j] if self.flips[j] else self.offset[j]
        return np.asarray(native_affine, dtype=np.float64) @ to_native

    def to_canonical(self, volume: Tensor) -> Tensor:
        """Reorder and flip the last three axes from native to network order; keeps the layout in memory."""
        lead = volume.ndim - 3
        volume = volume.permute(*range(lead), *(lead + axis for axis in self.axes))
        flipped = [lead + j for j in range(3) if self.flips[j]]
        return volume.flip(flipped) if flipped else volume

    def canonical_view(self, native: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a native array (X, Y, Z) seen in network order, without a copy."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return native.transpose(self.axes)[steps]


def closest_canonical(affine: Affine) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Find the axis order and flips that bring a voxel grid closest to right, front, up.

    The affine's rotation is its polar part without voxel sizes; of all 48 orders the one with the largest trace wins.
    Ties, at 45 degrees, are decided by the reordered rotation itself, so the answer is the same whatever
    the order in which the axes are stored.

    Args:
        affine: (4, 4) voxel to RAS+ millimetres.

    Returns:
        The source axis of each canonical axis, and whether it is flipped.

    Raises:
        VolumeError: If the affine is not finite or cannot be inverted.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    sizes = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or (sizes <= 0).any() or abs(np.linalg.det(matrix / sizes)) < 1e-6:
        raise VolumeError("the affine cannot be inverted; repair the header's orientation and voxel sizes")
    u, _, vt = np.linalg.svd(matrix / sizes)
    rotation = u @ vt

    def preference(order: tuple[tuple[int, ...], tuple[float, ...]]) -> tuple[float, ...]:
        axes, signs = order
        reordered = rotation[:, list(axes)] * np.array(signs)
        return (round(float(np.trace(reordered)), 6), *np.round(reordered, 5).ravel().tolist())

    axes, signs = max(product(permutations(range(3)), product((1.0, -1.0), repeat=3)), key=preference)
    return (axes[0], axes[1], axes[2]), (signs[0] < 0, signs[1] < 0, signs[2] < 0)


def plan_network_grid(shape: tuple[int, int, int], affine: Affine, spacing_mm: float | None) -> GridMap:
    """Lay the network grid over a native grid.

    Args:
        shape: Native voxels (X, Y, Z).
        affine: (4, 4) native voxel to RAS+ millimetres.
        spacing_mm: Wanted voxel size; `None` keeps the native one.

    Returns:
        The map between the two. The network grid is just large enough to cover the native voxels.

    Raises:
        VolumeError: If the affine cannot be inverted or the network grid would be absurdly large.
        ValueError: If `spacing_mm` is not positive.
    """
    if spacing_mm is not None and not spacing_mm > 0:
        raise ValueError(f"spacing_mm must be positive, not {spacing_mm}")
    axes, flips = closest_canonical(affine)
    sizes_mm = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    counts, scales, offsets = [], [], []
    for axis in axes:
        n, size_mm = int(shape[axis]), float(sizes_mm[axis])
        wanted_mm = size_mm if spacing_mm is None else spacing_mm
        if abs(size_mm - wanted_mm) <= SAME_SPACING * wanted_mm:
            count, scale = n, 1.0
        else:
            scale = wanted_mm / size_mm
            count = max(1, ceil(n / scale - 0.01))
        counts.append(count)
        scales.append(scale)
        offsets.append(((n - 1) - (count - 1) * scale) / 2)
    if prod(counts) > LARGEST_GRID_VOXELS:
        raise VolumeError(
            f"{shape} voxels of {np.round(sizes_mm, 4).tolist()} mm make {counts} voxels of {spacing_mm} mm, too many; "
            "check the voxel sizes in the header"
        )
    return GridMap(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        (counts[0], counts[1], counts[2]),
        axes,
        flips,
        (scales[0], scales[1], scales[2]),
        (offsets[0], offsets[1], offsets[2]),
    )


def match_grids(
    native_shape: tuple[int, int, int],
    native_affine: Affine,
    network_shape: tuple[int, int, int],
    network_affine: Affine,
) -> GridMap:
    """Recover the map between two grids whose axes are parallel from their affines.

    Args:
        native_shape: Native voxels (X, Y, Z).
        native_affine: (4, 4) native voxel to millimetres.
        network_shape: Network voxels (X, Y, Z).
        network_affine: (4, 4) network voxel to millimetres.

    Returns:
        The map; its numbers are rounded to a billionth, so that equal scans give equal maps.

    Raises:
        ValueError: If an axis of one grid is oblique in the other.
    """
    to_native = np.linalg.solve(np.asarray(native_affine, np.float64), np.asarray(network_affine, np.float64))
    matrix, shift = to_native[:3, :3], to_native[:3, 3]
    axes = [int(axis) for axis in np.abs(matrix).argmax(axis=0)]
    rest = np.abs(matrix).sum(axis=0) - np.abs(matrix).max(axis=0)
    if sorted(axes) != [0, 1, 2] or (rest > 1e-3 * np.abs(matrix).max(axis=0)).any():
        raise ValueError("the network grid is oblique to the native grid; bring volumes there with ToNetworkGridd only")
    flips = [bool(matrix[axis, j] < 0) for j, axis in enumerate(axes)]
    scale, offset = [], []
    for j, axis in enumerate(axes):
        first = native_shape[axis] - 1 - shift[axis] if flips[j] else shift[axis]
        step = round(float(abs(matrix[axis, j])), 9)
        same = abs(step - 1.0) <= SAME_SPACING and abs(first) <= SAME_SPACING
        same = same and native_shape[axis] == network_shape[j]
        scale.append(1.0 if same else step)
        offset.append(0.0 if same else round(float(first), 6))
    return GridMap(
        native_shape,
        network_shape,
        (axes[0], axes[1], axes[2]),
        (flips[0], flips[1], flips[2]),
        (scale[0], scale[1], scale[2]),
        (offset[0], offset[1], offset[2]),
    )


def to_network_grid(volume: Tensor, grid: GridMap) -> Tensor:
    """Bring intensities from the native grid to the network grid.

    Args:
        volume: (..., X, Y, Z) on the native grid.
        grid: Map made by `plan_network_grid`.

    Returns:
        float32 (..., X, Y, Z) on the network grid. Where no axis needs resampling the values are the native ones. NaN
        becomes the smallest finite value before resampling, so that it does not spread.
    """
    volume = grid.to_canonical(volume).to(torch.float32)
    lead = volume.ndim - 3
    if grid.shape != grid.canonical_shape or any(scale != 1.0 for scale in grid.scale):
        if not bool(torch.isfinite(volume.sum())):
            finite = volume[torch.isfinite(volume)]
            low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
            volume = volume.nan_to_num(nan=low, posinf=high, neginf=low)
        # Axes that shrink first: less to do for the others. Ties keep the order of the network's axes.
        for axis in sorted(range(3), key=lambda a: grid.shape[a] / grid.canonical_shape[a]):
            n_in, n_out = grid.canonical_shape[axis], grid.shape[axis]
            volume = resample_axis(volume, lead + axis, axis_taps(n_in, n_out, grid.scale[axis], grid.offset[axis]))
    return volume


def native_blocks(grid: GridMap, largest_voxels: int) -> Iterator[NativeBlock]:
    """Cut the native grid, seen in network order, into blocks of bounded size.

    Args:
        grid: Map between the grids.
        largest_voxels: Bound on a block's voxels (a block holds at least one row along x).

    Yields:
        Blocks that cover the canonical native grid once. They are cut along z, then y: so they lie together in memory
        both in a NIfTI file's order and in probabilities made axial slice by slice.
    """
    taps = [
        axis_taps(n_in, n_out, 1 / scale, -offset / scale, levels=WEIGHT_LEVELS)
        for n_in, n_out, scale, offset in zip(grid.shape, grid.canonical_shape, grid.scale, grid.offset, strict=True)
    ]
    x, y, z = grid.canonical_shape
    y_step = max(1, min(y, largest_voxels // x))
    z_step = max(1, min(z, largest_voxels // (x * y_step)))
    x_source, x_taps = taps_from(taps[0], 0, x)
    for z0 in range(0, z, z_step):
        z_source, z_taps = taps_from(taps[2], z0, z0 + z_step)
        for y0 in range(0, y, y_step):
            y_source, y_taps = taps_from(taps[1], y0, y0 + y_step)
            where = slice(0, x), slice(y0, y0 + len(y_taps)), slice(z0, z0 + len(z_taps))
            yield NativeBlock(where, (x_source, y_source, z_source), (x_taps, y_taps, z_taps))


class ToNetworkGridd(MapTransform):
    """Bring images to the network grid: right, front, up, with isotropic voxels.

    The image's meta data gain `native_shape` (int64 (3,)) and `native_affine` (float64 (4, 4)); `affine` becomes that
    of the network grid.
    """

    def __init__(self, keys: KeysCollection, spacing_mm: float | None = 1.0, allow_missing_keys: bool = False) -> None:
        """Store the voxel size.

        Args:
            keys: Images (C, X, Y, Z) with an affine.
            spacing_mm: Voxel size of the network grid; `None` reorders the axes and keeps the voxels.
            allow_missing_keys: Skip keys that the dictionary lacks.

        Raises:
            ValueError: If `spacing_mm` is not positive.
        """
        super().__init__(keys, allow_missing_keys)
        if spacing_mm is not None and not spacing_mm > 0:
            raise ValueError(f"spacing_mm must be positive, not {spacing_mm}")
        self.spacing_mm = spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the listed images on the network grid.

        Raises:
            VolumeError: If an image's affine cannot be inverted, its voxel sizes are absurd, or its network grid does
                not fit the memory.
            ValueError: If an image is no MetaTensor (C, X, Y, Z).
        """
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            if not isinstance(image, MetaTensor) or image.ndim != 4:
                raise ValueError(f"{key!r} must be a MetaTensor (C, X, Y, Z); load it with LoadVolumed")
            x, y, z = (int(n) for n in image.shape[1:])
            native_affine = np.asarray(image.affine, dtype=np.float64)
            try:
                grid = plan_network_grid((x, y, z), native_affine, self.spacing_mm)
                self._check_memory(grid)
            except VolumeError as error:
                raise VolumeError(f"{image.meta.get('filename_or_obj', key)}: {error}") from error
            meta = dict(image.meta)
            meta["native_shape"] = torch.tensor(grid.native_shape)
            meta["native_affine"] = torch.from_numpy(native_affine.copy())
            values = to_network_grid(image.as_tensor(), grid)
            meta["affine"] = torch.from_numpy(grid.network_affine(native_affine))
            out[key] = MetaTensor(values, meta=meta)
        return out

    def _check_memory(self, grid: GridMap) -> None:
        needed, memory = BYTES_PER_NETWORK_VOXEL * prod(grid.shape), physical_memory_bytes()
        if memory is not None and needed > memory:
            raise VolumeError(
                f"{times(grid.native_shape)} voxels become {times(grid.shape)} of {self.spacing_mm} mm, which takes "
                f"{needed / 1e9:.0f} GB where this machine has {memory / 1e9:.0f} GB; check the voxel sizes in the "
                "header, crop the scan, or use a larger machine"
            )
