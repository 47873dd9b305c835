"""Where a slice lies in the square picture that a backbone sees of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SliceBox:
    """Rows and columns of a picture that a slice fills; what is left over holds air.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns that the slice fills."""
        return self.height, self.width

    def cells(self, cell_px: int) -> tuple[slice, slice]:
        """Rows and columns of the cells of `cell_px` pixels that hold something of the slice."""
        ends = ((self.top, self.height), (self.left, self.width))
        rows, columns = (slice(first // cell_px, -(-(first + count) // cell_px)) for first, count in ends)
        return rows, columns


def square_box(shape: tuple[int, int], pixel_mm: tuple[float, float], side: int) -> SliceBox:
    """Fit a slice into the middle of a square so that a millimetre is as long downwards as across.

    Args:
        shape: Rows and columns of the slice.
        pixel_mm: Height and width of its pixels.
        side: Rows and columns of the square.
    """
    height_mm, width_mm = shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]
    larger_mm = max(height_mm, width_mm)
    height, width = (max(1, round(side * each / larger_mm)) for each in (height_mm, width_mm))
    return SliceBox((side - height) // 2, (side - width) // 2, height, width)
