"""One slice of a DICOM series: where it lies, what its numbers mean, and its pixels.

Classic files hold one slice each. Enhanced multi-frame files hold many, described in functional groups: those that
are one plain stack are read, others are refused.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from dinomed.errors import VolumeError
from dinomed.transforms.volume_checks import COPY_AGAIN, ValueSpread, cause_of, check_memory, excerpt, refusal, shown
from dinomed.transforms.voxel_streams import to_float32

DECODE_FIRST = "copy it again, or save it uncompressed first, for example with gdcmconv --raw"

# Larger than any detector; a damaged header can claim 65535 x 65535 for every slice.
MOST_PIXELS_PER_SLICE = 1 << 26
_stderr_lock = threading.Lock()


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


def read_slices(path: Path, slices: Sequence[Slice]) -> npt.NDArray[np.float32]:
    """Read the pixels of ordered slices as real values.

    Args:
        path: What the user gave, to be named in errors.
        slices: Of equal size, in order.

    Returns:
        Values (columns, rows, slices) float32, columns fastest.

    Raises:
        VolumeError: Missing, damaged or undecodable pixels; NaN, infinite or constant values.
    """
    rows, columns = slices[0].rows, slices[0].columns
    shape = (columns, rows, len(slices))
    if rows * columns > MOST_PIXELS_PER_SLICE:
        raise refusal(path, f"claims slices of {columns} x {rows} pixels", COPY_AGAIN)
    check_memory(path, shape)
    volume = np.empty(shape, dtype=np.float32, order="F")
    spread = ValueSpread()
    frames: npt.NDArray[np.generic] | None = None
    for index, part in enumerate(slices):
        if part.frame is None or frames is None or part.path != slices[index - 1].path:
            frames, is_real = _stored_values(part)
        number = part.frame or 0
        if frames.shape[1:] != (rows, columns) or number >= len(frames):
            raise refusal(part.path, "holds other pixels than its header says", COPY_AGAIN)
        slope, intercept = (1.0, 0.0) if is_real else (part.slope, part.intercept)
        to_float32(frames[number].T, slope, intercept, volume[..., index])
        spread.add(volume[..., index])
    spread.check(path)
    return volume


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


def _stored_values(part: Slice) -> tuple[npt.NDArray[np.generic], bool]:
    """Decoded pixels (frames, rows, columns) of the file of a slice, and whether they are rescaled already."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(part.path, force=True)
            if "PixelData" not in data:
                raise refusal(part.path, "holds no pixels, or is cut short", COPY_AGAIN)
            _complete_transfer_syntax(data)
            compressed = data.file_meta.TransferSyntaxUID.is_compressed
            try:
                pixels, is_real = data.pixel_array, False
            except Exception:
                if not compressed or part.frame is not None:
                    raise
                pixels, is_real = _decode_with_itk(part.path), True
    except VolumeError:
        raise
    except Exception as error:  # whatever pydicom and its decoders make of damaged pixels
        raise refusal(part.path, f"holds pixels that cannot be decoded ({cause_of(error)})", DECODE_FIRST) from error
    is_inverted = str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    if is_inverted and is_real == (part.modality == "CT"):
        # ITK inverts MONOCHROME1, pydicom does not. Scans of which lower means brighter are inverted here, except CT:
        # its numbers are Hounsfield units whatever the display does with them.
        bits = int(data.BitsStored)
        top = -1 if int(data.PixelRepresentation) else (1 << bits) - 1
        if is_real:
            pixels = part.slope * top + 2 * part.intercept - pixels.astype(np.float64)
        else:
            pixels = top - pixels.astype(np.int64)
    return pixels.reshape(-1, *pixels.shape[-2:]), is_real


def _complete_transfer_syntax(data: Any) -> None:
    """Files without a preamble do not state their transfer syntax; pydicom has found it out while reading."""
    if "TransferSyntaxUID" not in data.file_meta:
        implicit = getattr(data, "original_encoding", (None,))[0]
        implicit = getattr(data, "read_implicit_vr", True) if implicit is None else implicit
        uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = uid


def _decode_with_itk(path: Path) -> npt.NDArray[np.generic]:
    """Decode what pydicom has no decoder for, such as lossless JPEG; ITK applies rescaling itself."""
    import SimpleITK  # large, and only needed for such files

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(os.fspath(path))
    with _silent_stderr():
        return SimpleITK.GetArrayFromImage(reader.Execute())


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what C++ libraries write to the standard error stream from the user, who gets one sentence instead."""
    with _stderr_lock, tempfile.TemporaryFile() as nowhere:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
