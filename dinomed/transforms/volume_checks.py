"""What a scan must fulfil before anything is computed from it, and the sentences that refuse one.

Every refusal is a `VolumeError` of one sentence: the file, what is wrong with it, what to do.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dinomed.errors import VolumeError

# Clinical CT and MRI lie between 0.1 mm (temporal bone) and 15 mm (localisers); outside these limits the header is
# wrong far more often than the scan is special, and resampling it to millimetres would take absurd amounts of memory.
SPACING_LIMITS_MM = (0.05, 50.0)
# The longest scanner tables move about two metres.
EXTENT_LIMIT_MM = 3000.0
# Volume spanned by the directions of the voxel axes: 1 for right angles, 0.87 for a gantry tilt of 30 degrees.
SKEW_LIMIT = 0.1
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
COPY_AGAIN = "copy or download it again, or export it again"


def excerpt(text: object, most: int = 60) -> str:
    """Words from a file as they can be printed: one line of at most `most` characters."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).split()))
    return line if len(line) <= most else line[: most - 3] + "..."


def shown(path: str | os.PathLike[str]) -> str:
    """Path as it can be printed: bytes that are no UTF-8 become question marks instead of a second error."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def refusal(path: str | os.PathLike[str], wrong: str, remedy: str) -> VolumeError:
    """Error of one sentence that names the file, what is wrong and what to do."""
    return VolumeError(f"{shown(path)} {wrong}; {remedy}")


def damaged(path: Path, kind: str, error: Exception) -> VolumeError:
    """Error for everything that a library complained about in its own words."""
    return refusal(path, f"cannot be read as {kind} ({cause_of(error)})", COPY_AGAIN)


def cause_of(error: BaseException) -> str:
    """What a library complained about, as one line of at most 200 characters."""
    if isinstance(error, KeyError):  # its message is the bare key
        return excerpt(f"unknown value {error}", most=200)
    return excerpt(error, most=200) or type(error).__name__


def physical_memory_bytes() -> int | None:
    """Memory of the machine, or of the container where that has less; None where the system does not tell."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        sizes.append(int(CONTAINER_LIMIT.read_text()))
    return min(sizes, default=None)


def check_memory(path: str | os.PathLike[str], shape: tuple[int, ...]) -> None:
    """Refuse a volume whose float32 voxels alone are larger than the memory of this machine.

    Raises:
        VolumeError: With both sizes, before anything is allocated.
    """
    needed = 4 * product(shape)
    memory = physical_memory_bytes()
    if memory is not None and needed > memory:
        raise refusal(
            path,
            f"claims {times(shape)} voxels, {needed / 1e9:.1f} GB where this machine has {memory / 1e9:.1f} GB",
            "check its header, or crop it or use a larger machine",
        )


def product(numbers: tuple[int, ...]) -> int:
    """Product in Python integers, which cannot overflow whatever a header claims."""
    result = 1
    for number in numbers:
        result *= int(number)
    return result


def times(shape: tuple[int, ...]) -> str:
    """Shape as people write it: `256 x 256 x 180`."""
    return " x ".join(str(int(length)) for length in shape)


def split_frames(path: str | os.PathLike[str], shape: tuple[int, ...]) -> tuple[tuple[int, ...], int | None]:
    """Drop trailing axes of length one and say which axis counts frames.

    Args:
        path: File to name in errors.
        shape: Lengths of the stored axes, fastest first, the three of space before all others.

    Returns:
        Three or four lengths, and the axis of the frames (3, or None for a single volume).

    Raises:
        VolumeError: Two-dimensional data, lengths below one, or five and more real axes.
    """
    shape = tuple(int(length) for length in shape)
    if min(shape, default=0) < 1:
        raise refusal(path, f"claims a size of {times(shape) or 'nothing'}", "its header is damaged: export it again")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        raise two_dimensional(path, shape)
    if len(shape) > 4:
        raise refusal(
            path,
            f"has {len(shape)} dimensions ({times(shape)})",
            "split it and give one three-dimensional volume",
        )
    return shape, 3 if len(shape) == 4 else None


def two_dimensional(path: str | os.PathLike[str], shape: tuple[int, ...]) -> VolumeError:
    """Error for pictures and single slices."""
    return refusal(path, f"is a two-dimensional image ({times(shape)})", "give a volume of at least two slices")


def check_frame(path: str | os.PathLike[str], frame: int | None, n_frames: int) -> int:
    """Index of the frame to read.

    Raises:
        VolumeError: Several frames and none chosen, or a number that does not exist; both name `--frame`.
    """
    if frame is None:
        if n_frames == 1:
            return 0
        raise refusal(
            path,
            f"is four-dimensional: it holds {n_frames} frames",
            f"choose one with --frame 0 to --frame {n_frames - 1}",
        )
    if not 0 <= frame < n_frames:
        has = "only one frame" if n_frames == 1 else f"{n_frames} frames"
        last = "leave --frame out" if n_frames == 1 else f"choose one with --frame 0 to --frame {n_frames - 1}"
        raise refusal(path, f"has no frame {frame}: it holds {has}", last)
    return frame


def check_grid(
    path: str | os.PathLike[str], shape: tuple[int, ...], affine: npt.NDArray[np.float64], hint: str = ""
) -> None:
    """Refuse a grid that no scanner makes.

    Args:
        path: File to name in errors.
        shape: Numbers of voxels (X, Y, Z).
        affine: Voxel to RAS+ mm (4, 4).
        hint: What else the header says that may explain a wrong spacing, such as its units.

    Raises:
        VolumeError: A single slice, an affine that is not finite or not invertible, an absurd spacing or extent.
    """
    if len(shape) != 3 or min(shape) < 2:
        raise two_dimensional(path, shape)
    remedy = "correct its header or export it again"
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise refusal(path, "has an affine that holds NaN or infinite numbers", remedy)
    with np.errstate(over="ignore"):
        spacing_mm = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not spacing_mm.all():
        raise refusal(path, "has a singular affine: at least one of its voxel axes has no length", remedy)
    words = " x ".join(f"{length:.4g}" for length in spacing_mm)
    lowest, highest = SPACING_LIMITS_MM
    if spacing_mm.min() < lowest or spacing_mm.max() > highest:
        wrong = f"has a voxel spacing of {words} mm, outside {lowest:g} to {highest:g} mm"
        raise refusal(path, wrong + (f" ({hint})" if hint else ""), "correct the spacing or the units in its header")
    extent_mm = spacing_mm * np.asarray(shape)
    if extent_mm.max() > EXTENT_LIMIT_MM:
        wrong = f"would be {extent_mm.max() / 1000:.1f} m long ({times(shape)} voxels of {words} mm)"
        raise refusal(path, wrong, "correct the spacing in its header")
    if abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < SKEW_LIMIT:
        raise refusal(path, "has a singular affine: its voxel axes lie almost in one plane", remedy)


class ValueSpread:
    """Lowest and highest value and the number of voxels that are no numbers, gathered piece by piece."""

    def __init__(self) -> None:
        self.lowest = np.inf
        self.highest = -np.inf
        self.n_not_finite = 0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Take another piece into account."""
        lowest, highest = float(values.min()), float(values.max())
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            self.n_not_finite += int(values.size - np.isfinite(values).sum())
        self.lowest = min(self.lowest, lowest)
        self.highest = max(self.highest, highest)

    def check(self, path: str | os.PathLike[str]) -> None:
        """Refuse what cannot be segmented.

        Raises:
            VolumeError: NaN or infinite voxels, or one value everywhere.
        """
        if self.n_not_finite:
            raise refusal(
                path,
                f"holds {self.n_not_finite} NaN or infinite voxels",
                "replace them, for example with numpy.nan_to_num, and save it again",
            )
        if self.lowest == self.highest:
            raise refusal(
                path,
                f"is constant: every voxel is {self.lowest:g}",
                "there is nothing to find in it, so check how it was exported",
            )
