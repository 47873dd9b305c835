"""Pixels of DICOM slices as real values.

Uncompressed and run-length coded pixels are decoded by pydicom, the JPEG family by ITK's GDCM. GDCM believes whatever
lengths a file gives, and a damaged file can make it take gigabytes: so it gets a clean copy of the one frame to decode,
without anything about the patient, after the size in the JPEG stream has been compared with the header.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from dinomed.errors import VolumeError
from dinomed.transforms.dicom_frames import Slice
from dinomed.transforms.volume_checks import COPY_AGAIN, ValueSpread, cause_of, check_memory, refusal
from dinomed.transforms.voxel_streams import to_float32

# Larger than any detector; a damaged header can claim 65535 x 65535 for every slice.
MOST_PIXELS_PER_SLICE = 1 << 26
DECODE_FIRST = "copy it again, or save it uncompressed first, for example with gdcmconv --raw"
NEEDED_TO_DECODE = {
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
}
_stderr_lock = threading.Lock()


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
            frames = stored_values(part)
        number = part.frame or 0
        if frames.shape[1:] != (rows, columns) or number >= len(frames):
            raise refusal(part.path, "holds other pixels than its header says", COPY_AGAIN)
        to_float32(frames[number].T, part.slope, part.intercept, volume[..., index])
        spread.add(volume[..., index])
    spread.check(path)
    return volume


def stored_values(part: Slice) -> npt.NDArray[np.generic]:
    """Decoded pixels (frames, rows, columns) of the file of a slice, before rescaling.

    Scans in which lower means brighter (MONOCHROME1) are inverted, except CT: its numbers are Hounsfield units
    whatever a display does with them.

    Raises:
        VolumeError: The file holds no pixels, or they cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(part.path, force=True)
            if "PixelData" not in data:
                raise refusal(part.path, "holds no pixels, or is cut short", COPY_AGAIN)
            _complete_transfer_syntax(data)
            syntax = data.file_meta.TransferSyntaxUID
            inverted = str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1" and part.modality != "CT"
            top = -1 if int(data.PixelRepresentation) else (1 << int(data.BitsStored)) - 1
            is_jpeg = syntax.is_compressed and syntax != RLELossless
            pixels = _decode_jpeg(part, data) if is_jpeg else data.pixel_array
    except VolumeError:
        raise
    except Exception as error:  # whatever pydicom and its decoders make of damaged pixels
        wrong = f"holds pixels that cannot be decoded ({cause_of(error)})"
        raise refusal(part.path, wrong, DECODE_FIRST) from error
    if inverted:
        pixels = top - pixels.astype(np.int64)
    return pixels.reshape(-1, *pixels.shape[-2:])


def _complete_transfer_syntax(data: Any) -> None:
    """Files without a preamble do not state their transfer syntax; pydicom has found it out while reading."""
    if "TransferSyntaxUID" not in data.file_meta:
        implicit = getattr(data, "original_encoding", (None,))[0]
        implicit = getattr(data, "read_implicit_vr", True) if implicit is None else implicit
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _decode_jpeg(part: Slice, data: Any) -> npt.NDArray[np.generic]:
    """Frames of a file of the JPEG family (lossy, lossless, LS, 2000)."""
    n_frames = int(data.get("NumberOfFrames", 1) or 1)
    fragments = _fragments(data.PixelData)
    frames = [b"".join(fragments)] if n_frames == 1 else fragments
    if len(frames) != n_frames or not all(_codestream_size(frame) == (part.rows, part.columns) for frame in frames):
        raise refusal(part.path, "holds damaged JPEG data, or frames in several pieces", DECODE_FIRST)
    for element in list(data):
        if element.keyword not in NEEDED_TO_DECODE:
            del data[element.tag]
    data.PhotometricInterpretation = "MONOCHROME2"
    try:
        with tempfile.TemporaryDirectory() as folder:
            return np.concatenate([_decode_with_itk(data, frame, Path(folder) / "frame.dcm") for frame in frames])
    except Exception as error:
        name = data.file_meta.TransferSyntaxUID.name
        raise refusal(part.path, f"holds pixels, compressed as {name}, that cannot be decoded", DECODE_FIRST) from error


def _fragments(packed: bytes) -> list[bytes]:
    """Items of encapsulated pixel data after the first, which is a table of offsets. Source: DICOM PS3.5, A.4."""
    items: list[bytes] = []
    position = 0
    while packed[position : position + 4] == b"\xfe\xff\x00\xe0":
        end = position + 8 + int.from_bytes(packed[position + 4 : position + 8], "little")
        if end > len(packed):
            raise ValueError("a fragment is cut short")
        items.append(packed[position + 8 : end])
        position = end
    return items[1:]


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns as JPEG, JPEG-LS (ITU-T T.81, T.87) or JPEG 2000 (T.800) data state them; None if damaged."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        x_size, y_size, x_offset, y_offset = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
        return y_size - y_offset, x_size - x_offset
    position = 2
    while frame[:2] == b"\xff\xd8" and frame[position : position + 1] == b"\xff":
        marker, length = frame[position + 1], int.from_bytes(frame[position + 2 : position + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7):
            rows, columns = (int.from_bytes(frame[at : at + 2], "big") for at in (position + 5, position + 7))
            return rows, columns
        position += 2 + length
    return None


def _decode_with_itk(data: Any, frame: bytes, path: Path) -> npt.NDArray[np.generic]:
    """Decode one frame to (1, rows, columns) by way of a temporary file that holds nothing else."""
    import SimpleITK  # large, and only needed for such files

    data.PixelData = encapsulate([frame])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.preamble = b"\0" * 128
    pydicom.dcmwrite(path, data)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(os.fspath(path))
    with _captured_stderr() as said:
        image = reader.Execute()
        said.seek(0)
        if b"Corrupt JPEG data" in said.read():  # all that libjpeg does about it is to say so
            raise ValueError("corrupt JPEG data")
    return SimpleITK.GetArrayFromImage(image)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[IO[bytes]]:
    """Keep what C++ libraries write to the standard error stream from the user, who gets one sentence instead."""
    with _stderr_lock, tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(said.fileno(), 2)
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
