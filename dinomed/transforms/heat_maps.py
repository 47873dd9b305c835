"""Maps over chosen slices of a CT, and their way back onto the CT's own voxels.

A map (n, h, w) is made on upright axial slices as the backbone sees them: rows from front to back, columns from the
patient's left to the right. Slices are named by their place in the file's own voxels.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from dinomed.errors import OutputError
from dinomed.transforms.geometry import GridMap, plan_network_grid
from dinomed.transforms.heat_map_kinds import HEAT_MAP_KINDS, MapKind
from dinomed.transforms.label_files import GZIP_LEVEL, label_header, written_whole
from dinomed.transforms.slice_boxes import SliceBox
from dinomed.transforms.volume_checks import shown, times
from dinomed.transforms.volume_reading import Grid

FloatArray = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A map over chosen slices of one CT.

    Attributes:
        kind: One of `HEAT_MAP_KINDS`.
        label: The label whose score it explains; None for a kind that belongs to no label.
        slice_indices: The slices' places along the slice axis in the file's own voxels, (n,) int64.
        values: (n, h, w) float32, raw.
        image_size: Rows and columns in pixels of the slice as the backbone saw it, after resizing, before padding.
        cell_px: Side in those pixels of the square that one value stands for.
        patch_px: Side in those pixels of what one value was made of: a patch, or the window that was hidden.
        unit: What the numbers count, where it is more than the kind says, such as "logit".
        box: Where in the image the slice lies; None where it fills the whole of it.

    Raises:
        ValueError: If the kind is unknown, or shapes or values make no sense.
    """

    kind: str
    label: str | None
    slice_indices: Indices
    values: FloatArray
    image_size: tuple[int, int]
    cell_px: int = 16
    patch_px: int = 16
    unit: str = ""
    box: SliceBox | None = None

    def __post_init__(self) -> None:
        if self.kind not in HEAT_MAP_KINDS:
            raise ValueError(f"heat map {self.kind!r} is unknown; choose from {', '.join(HEAT_MAP_KINDS)}")
        indices = np.asarray(self.slice_indices, dtype=np.int64)
        values = np.asarray(self.values, dtype=np.float32)
        cells = tuple(ceil(pixels / self.cell_px) for pixels in self.image_size)
        if values.ndim != 3 or values.shape[1:] != cells or indices.shape != values.shape[:1]:
            raise ValueError(
                f"values of shape {values.shape} for {indices.size} slices of {self.image_size} pixels do not fit; "
                f"they must be (slices, {cells[0]}, {cells[1]}) with cells of {self.cell_px} pixels"
            )
        if not len(values) or len(np.unique(indices)) < len(indices) or not np.isfinite(values).all():
            raise ValueError(
                f"the {self.kind} map names no slice, or one twice, or holds values that are no finite numbers"
            )
        object.__setattr__(self, "slice_indices", indices)
        object.__setattr__(self, "values", values)

    @property
    def place(self) -> SliceBox:
        """Where in the image the slice lies."""
        return self.box or SliceBox(0, 0, *self.image_size)

    @property
    def inside(self) -> FloatArray:
        """Values (n, h', w') of the cells that hold something of the slice."""
        rows, columns = self.place.cells(self.cell_px)
        return self.values[:, rows, columns]

    @property
    def about(self) -> MapKind:
        """What is always true of this kind."""
        return HEAT_MAP_KINDS[self.kind]

    @property
    def what_it_is(self) -> str:
        """What the map shows."""
        return self.about.what_it_is

    @property
    def what_it_is_not(self) -> str:
        """What the map must not be taken for."""
        return self.about.what_it_is_not

    @property
    def name(self) -> str:
        """The map's name in messages."""
        return self.kind if self.label is None else f"{self.kind} of {self.label}"


def slice_grid(grid: Grid) -> GridMap:
    """Say how a CT's axial slices, upright and from the feet up, lie in its own voxels.

    Raises:
        VolumeError: If the affine cannot be inverted.
    """
    return plan_network_grid(grid.shape, grid.affine, None)


def canonical_positions(slice_indices: Sequence[int] | Indices, grid: Grid) -> list[int]:
    """Turn slices' places in the file's own voxels into places from the feet up, or back; in their order.

    Raises:
        ValueError: If a place lies outside the CT.
    """
    seen = slice_grid(grid)
    count = seen.shape[2]
    places = [int(index) for index in slice_indices]
    if places and not 0 <= min(places) <= max(places) < count:
        raise ValueError(f"slices must lie in 0..{count - 1}, not {places}")
    return [count - 1 - place if seen.flips[2] else place for place in places]


def upright_slices(array: npt.NDArray[Any], grid: Grid, slice_indices: Sequence[int] | Indices) -> npt.NDArray[Any]:
    """Cut slices of an array on a CT's own voxels as the backbone sees them, (n, rows, columns); a copy."""
    view = slice_grid(grid).canonical_view(array)[:, :, canonical_positions(slice_indices, grid)]
    return np.ascontiguousarray(view.transpose(2, 1, 0)[:, ::-1])


def pixel_mm(grid: Grid) -> tuple[float, float]:
    """Height and width in mm of a pixel of an upright slice."""
    column, row, _ = slice_grid(grid).axes
    sizes = np.linalg.norm(np.asarray(grid.affine, dtype=np.float64)[:3, :3], axis=0)
    return float(sizes[row]), float(sizes[column])


def extent_mm(pixels: int, size: tuple[int, int], grid: Grid) -> tuple[float, float]:
    """Height and width in mm of a square of `pixels` in slices that were resized to `size`."""
    columns, rows, _ = slice_grid(grid).shape
    height_mm, width_mm = pixel_mm(grid)
    return pixels * rows / size[0] * height_mm, pixels * columns / size[1] * width_mm


def upright_values(values: FloatArray, size: tuple[int, int], place: SliceBox, cell_px: int) -> FloatArray:
    """Spread the cells of a map over a slice, linearly between their centres.

    Args:
        values: (h, w), a cell for every `cell_px` by `cell_px` pixels of the image; the last ones may reach beyond it.
        size: Rows and columns of the slice.
        place: Where in the image the slice lies.
        cell_px: Side of a cell in that image.

    Returns:
        (rows, columns) float32.
    """
    down, across = (
        _between_cells(count, cells, pixels / cell_px, first / cell_px)
        for count, cells, pixels, first in zip(size, values.shape, place.size, (place.top, place.left), strict=True)
    )
    spread: FloatArray = (down @ values.astype(np.float64) @ across.T).astype(np.float32)
    return spread


def heat_volume(heat: HeatMap, grid: Grid) -> FloatArray:
    """Lay a map onto the CT's own voxels.

    Args:
        heat: The map.
        grid: The CT's grid.

    Returns:
        float32 of the CT's shape (X, Y, Z). Slices without a map are 0: nothing is made up between slices.

    Raises:
        ValueError: If a slice lies outside the CT.
    """
    volume = np.zeros(grid.shape, dtype=np.float32, order="F")
    view = slice_grid(grid).canonical_view(volume)
    columns, rows, _ = view.shape
    for place, values in zip(canonical_positions(heat.slice_indices, grid), heat.values, strict=True):
        view[:, :, place] = upright_values(values, (rows, columns), heat.place, heat.cell_px)[::-1].T
    return volume


def write_heat_volume(volume: FloatArray, grid: Grid, path: str | os.PathLike[str]) -> None:
    """Write a float32 volume as NIfTI on exactly the grid of a CT, with its affine, codes and units.

    Args:
        volume: (X, Y, Z).
        grid: From `read_grid` of the CT.
        path: Ends with `.nii.gz`. The file appears under its name only when it is complete.

    Raises:
        ValueError: If the shapes differ.
        OutputError: If the file cannot be written there.
    """
    path = Path(path)
    if volume.shape != tuple(grid.shape):
        raise ValueError(f"a volume of {times(volume.shape)} voxels does not fit a grid of {times(grid.shape)}")
    if not path.name.lower().endswith(".nii.gz"):
        raise OutputError(f"{shown(path)} is no name for a heat map; let it end with .nii.gz")
    header: nibabel.Nifti1Header = label_header(grid)
    header.set_data_dtype(np.float32)
    dtype = header.get_data_dtype()
    with (
        written_whole(path) as stream,
        gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=stream, mtime=0) as packed,
    ):
        packed.write(header.binaryblock)
        packed.write(b"\0\0\0\0")  # no extensions
        for index in range(volume.shape[2]):
            packed.write(volume[..., index].astype(dtype).tobytes(order="F"))


def _between_cells(count: int, cells: int, covered: float, first: float) -> npt.NDArray[np.float64]:
    """Weights (count, cells) of cells for `count` pixels that together cover `covered` cells from `first` on."""
    places = np.clip((np.arange(count) + 0.5) * covered / count + first - 0.5, 0.0, cells - 1.0)
    low = np.minimum(places.astype(np.int64), max(cells - 2, 0))
    weights = np.zeros((count, cells))
    weights[np.arange(count), low] = 1.0 - (places - low)
    if cells > 1:
        weights[np.arange(count), low + 1] = places - low
    return weights
