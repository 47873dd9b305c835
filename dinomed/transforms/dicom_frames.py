"""One slice of a DICOM series: where it lies and what its numbers mean.

Classic files hold one slice each. Enhanced multi-frame files hold many, described in functional groups: those that
are one plain stack are read, others are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from dinomed.errors import VolumeError
from dinomed.transforms.volume_checks import COPY_AGAIN, cause_of, excerpt, refusal, shown


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice of a series.

    Attributes:
        path: File that holds it.
        frame: Its number in a multi-frame file, None in a file of one slice.
        rows: Height in pixels.
        columns: Width in pixels.
        position_mm: Centre of the first pixel (3,), in left, posterior, superior.
        orientation: Unit vectors along a row and along a column (6,).
        spacing_mm: Distance between rows, and between columns.
        slope: Factor from stored to real values.
        intercept: Added after the factor.
        modality: `CT`, `MR` and so on.
    """

    path: Path
    frame: int | None
    rows: int
    columns: int
    position_mm: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float
    modality: str

    @property
    def name(self) -> str:
        """How errors name it."""
        return shown(self.path.name) if self.frame is None else f"{shown(self.path.name)} frame {self.frame + 1}"


def slices_of(path: Path, header: Any) -> list[Slice]:
    """Slices that a file describes, in the order in which it stores them.

    Args:
        path: The file.
        header: Its pydicom data set, without pixels.

    Raises:
        VolumeError: Colours, or no position in the patient.
    """
    try:
        _check_grey(path, header)
        n_frames = int(header.get("NumberOfFrames", 1) or 1)
        if "PerFrameFunctionalGroupsSequence" in header:
            frames = header.PerFrameFunctionalGroupsSequence
            if len(frames) != n_frames:
                raise refusal(path, f"claims {n_frames} frames and describes {len(frames)}", COPY_AGAIN)
            shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
            return [_slice(path, header, [frame, shared[0]], number) for number, frame in enumerate(frames)]
        if n_frames > 1:
            raise refusal(
                path,
                f"holds {n_frames} frames without their positions in the patient",
                "convert the series to NIfTI, for example with dcm2niix",
            )
        return [_slice(path, header, [], None)]
    except VolumeError:
        raise
    except Exception as error:  # whatever pydicom and numpy make of damaged values
        raise refusal(path, f"has a damaged DICOM header ({cause_of(error)})", COPY_AGAIN) from error


def _check_grey(path: Path, header: Any) -> None:
    samples = int(header.get("SamplesPerPixel", 1) or 1)
    meaning = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if samples != 1 or not meaning.startswith("MONOCHROME"):
        raise refusal(path, f"holds colours ({excerpt(meaning)})", "give the series with the scan itself")
    if header.get("ModalityLUTSequence"):
        raise refusal(
            path, "translates its values by a table (Modality LUT)", "export it with rescale slope and intercept"
        )


def _slice(path: Path, header: Any, groups: Sequence[Any], frame: int | None) -> Slice:
    """Slice whose attributes stand in the functional groups, or else in the header itself."""

    def find(group: str, name: str) -> Any:
        for functional in groups:
            items = functional.get(group)
            if items and name in items[0]:
                return items[0][name].value
        return header.get(name)

    position = find("PlanePositionSequence", "ImagePositionPatient")
    orientation = find("PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = find("PixelMeasuresSequence", "PixelSpacing")
    if position is None or orientation is None or spacing is None:
        lacking = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "PixelSpacing": spacing}
        names = " and ".join(name for name, value in lacking.items() if value is None)
        raise refusal(path, f"does not say where it lies in the patient (no {names})", "give a CT or MRI series")
    slope = find("PixelValueTransformationSequence", "RescaleSlope")
    intercept = find("PixelValueTransformationSequence", "RescaleIntercept")
    scale = [1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)]
    numbers = [np.array([float(number) for number in value]) for value in (position, orientation, spacing, scale)]
    if [part.size for part in numbers] != [3, 6, 2, 2] or not all(np.isfinite(part).all() for part in numbers):
        raise ValueError("its position, orientation, spacing or rescale values are no proper numbers")
    return Slice(
        path=path,
        frame=frame,
        rows=int(header.Rows),
        columns=int(header.Columns),
        position_mm=numbers[0],
        orientation=numbers[1],
        spacing_mm=(float(numbers[2][0]), float(numbers[2][1])),
        slope=scale[0],
        intercept=scale[1],
        modality=str(header.get("Modality", "")),
    )
