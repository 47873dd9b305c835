"""How alike the patches of one slice are to a reference patch, and which patch that is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from dinomed.errors import InputError
from dinomed.transforms.slice_boxes import SliceBox

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """How alike the patches of one slice and a reference patch are.

    Attributes:
        row: Row of the reference patch, from 0 in front.
        column: Its column, from 0 on the patient's left.
        slice_index: The slice's place along the slice axis in the file's own voxels.
        values: Cosines (h, w) float32.
        image_size: Rows and columns in pixels of the slice as the backbone saw it, after resizing, before padding.
        cell_px: Side of a patch in those pixels.
        box: Where in the image the slice lies; None where it fills the whole of it.
    """

    row: int
    column: int
    slice_index: int
    values: FloatArray
    image_size: tuple[int, int]
    cell_px: int = 16
    box: SliceBox | None = None

    @property
    def place(self) -> SliceBox:
        """Where in the image the slice lies."""
        return self.box or SliceBox(0, 0, *self.image_size)

    def __post_init__(self) -> None:
        cells = tuple(ceil(pixels / self.cell_px) for pixels in self.image_size)
        inside = 0 <= self.row < cells[0] and 0 <= self.column < cells[1]
        if self.values.shape != cells or not inside or not np.isfinite(self.values).all():
            raise ValueError(
                f"a similarity map of {self.image_size} pixels has {cells} finite values and its reference inside, not "
                f"{self.values.shape} and ({self.row}, {self.column})"
            )


def check_reference(row: int, column: int, place: SliceBox, cell_px: int) -> None:
    """Refuse a patch that holds nothing of the slice, only the air that makes it square.

    Args:
        row: Of the patch.
        column: Of the patch.
        place: Where in the image the slice lies.
        cell_px: Side of a patch.

    Raises:
        InputError: If it does.
    """
    rows, columns = place.cells(cell_px)
    if not (rows.start <= row < rows.stop and columns.start <= column < columns.stop):
        raise InputError(
            f"the reference patch {row},{column} lies beside the slice, in the air that makes it a square; give "
            f"row,col with row in {rows.start}..{rows.stop - 1} and col in {columns.start}..{columns.stop - 1}"
        )


def choose_reference(text: str, rows: int, columns: int) -> tuple[int, int]:
    """Read which patch the others are compared with.

    Args:
        text: "center", or "row,col" counted from 0: rows from the front, columns from the patient's left.
        rows: Rows of patches.
        columns: Columns of patches.

    Returns:
        Row and column.

    Raises:
        InputError: If the text says neither, or the patch lies outside.
    """
    if text.strip().lower() in ("center", "centre"):
        return rows // 2, columns // 2
    allowed = f"give center, or row,col with row in 0..{rows - 1} and col in 0..{columns - 1}"
    numbers = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text, re.ASCII)
    if numbers is None:
        raise InputError(f"the reference patch {text!r} cannot be read; {allowed}")
    row, column = int(numbers[1]), int(numbers[2])
    if row >= rows or column >= columns:
        raise InputError(f"the reference patch {row},{column} lies outside the slice's patches; {allowed}")
    return row, column
