"""Label maps as clients send them, checked and brought to a bundle's own numbers before anything is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinomed.data.series_checks import without_frames
from dinomed.errors import InputError, VolumeError
from dinomed.transforms.volume_checks import shown
from dinomed.transforms.volumes import Grid, read_grid, read_volume

SAME_PLACE_MM = 0.05
"""How far the corners of two grids may lie apart that count as one; viewers keep affines in single precision."""

Labels = npt.NDArray[np.uint8]


class EmptyLabelsError(InputError):
    """A label map without a label."""


@contextmanager
def named(path: str | Path, what: str) -> Iterator[None]:
    """Call a file by what it is to a client, not by the path that it has here, and advise no option of a command."""
    try:
        yield
    except InputError as error:
        sentence = str(error).replace(str(path), what).replace(shown(path), what)
        raise type(error)(without_frames(sentence)) from error


def check_same_grid(label: Grid, scan: Grid, what: str = "the label map") -> None:
    """Refuse a label map that does not lie on its scan's grid.

    Raises:
        InputError: With both shapes, or with the distance between their corners.
    """
    if label.shape != scan.shape:
        raise InputError(
            f"{what} has {_times(label.shape)} voxels and its scan {_times(scan.shape)}; export it with the scan as "
            "reference volume"
        )
    ends = [(0, size - 1) for size in scan.shape]
    corners = np.array([[x, y, z, 1] for x in ends[0] for y in ends[1] for z in ends[2]], dtype=np.float64).T
    apart_mm = float(np.linalg.norm(((label.affine - scan.affine) @ corners)[:3], axis=0).max())
    if not apart_mm <= SAME_PLACE_MM:
        raise InputError(
            f"{what} lies up to {apart_mm:.2f} mm from its scan (another affine); export it with the scan as reference "
            "volume"
        )


def read_labels(path: str | Path, scan: Grid, what: str = "the label map") -> Labels:
    """Read a label map on its scan's grid, uint8 (X, Y, Z).

    Raises:
        EmptyLabelsError: If there is no label in it.
        InputError: If it cannot be read, lies on another grid, or holds other numbers than 0 to 255.
    """
    with named(path, what):
        check_same_grid(read_grid(path), scan, what)
        values = _values(path, what)
    numbers = np.rint(values)
    if not np.array_equal(numbers, values) or numbers.min() < 0 or numbers.max() > 255:
        raise InputError(
            f"{what} must hold whole numbers from 0 to 255, not values from {values.min():g} to {values.max():g}"
        )
    return np.ascontiguousarray(numbers.astype(np.uint8))


def _values(path: str | Path, what: str) -> npt.NDArray[np.float32]:
    try:
        return read_volume(path).array
    except VolumeError as error:
        if "is constant: every voxel is 0;" in str(error):
            raise EmptyLabelsError(f"{what} is empty; draw or keep at least one label") from error
        raise


def numbers_by_name(label_info: Any) -> dict[int, str]:
    """Name of each number in a label map, as Slicer's module sends it: `[{"name": ..., "idx": ...}, ...]`.

    Raises:
        InputError: If it is built otherwise.
    """
    if label_info is None:
        return {}
    entries = label_info if isinstance(label_info, Sequence) and not isinstance(label_info, str) else [label_info]
    names: dict[int, str] = {}
    for entry in entries:
        number = entry.get("idx", entry.get("id")) if isinstance(entry, Mapping) else None
        if not isinstance(number, int) or not isinstance(entry.get("name"), str):
            raise InputError(f'label_info must be a list of {{"name": ..., "idx": ...}}, not {str(label_info)[:100]}')
        names[number] = entry["name"]
    return names


def to_model_labels(labels: Labels, names: Mapping[int, str], values: Mapping[str, int], model: str) -> Labels:
    """Bring a label map to a bundle's numbers.

    Slicer numbers the segments of a scan anew with every export, so that names decide wherever they are known.

    Args:
        labels: As it was sent.
        names: Name of each number; empty where they are the bundle's own.
        values: The bundle's value of each label by name.
        model: Name of the bundle.

    Raises:
        InputError: If a label that occurs is none of the bundle's.
    """
    present = [int(number) for number in np.unique(labels) if number]
    known = ", ".join(values)
    if not names:
        if strange := [number for number in present if number not in values.values()]:
            raise InputError(f"{model} has no label {strange[0]}; its labels are {known}, from 1 on")
        return labels
    table = np.zeros(256, np.uint8)
    for number in present:
        if number not in names:
            raise InputError(f"the label map holds {number}, which label_info does not name; name it or remove it")
        if names[number] not in values:
            raise InputError(
                f"the segment {names[number]!r} is none of the labels of {model} ({known}); rename or remove it"
            )
        table[number] = values[names[number]]
    result: Labels = table[labels]
    return result


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
