"""Reads a scan, whatever its format, or only the grid that it lies on.

NIfTI-1 and -2, NRRD, MetaImage, MGH and DICOM series become the same thing: float32 values and an affine from voxels
to RAS+ mm. Formats are told by content, not by name. Nothing but `VolumeError` comes out of a bad file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt

from dinomed.errors import VolumeError
from dinomed.transforms.dicom_pixels import read_slices
from dinomed.transforms.dicom_series import DicomSeries, find_series, is_dicom_file
from dinomed.transforms.metaimage_files import looks_like_metaimage, read_metaimage_header
from dinomed.transforms.nifti_files import (
    header_of_pair,
    looks_like_mgh,
    nifti_magic,
    read_mgh_header,
    read_nifti_header,
)
from dinomed.transforms.nrrd_files import read_nrrd_header
from dinomed.transforms.volume_checks import COPY_AGAIN, cause_of, check_frame, check_grid, refusal, shown
from dinomed.transforms.voxel_streams import ScanHeader, check_claims, first_bytes, read_voxels

READABLE = "NIfTI, NRRD, MetaImage or MGH file or a folder with one DICOM series"
OTHER_KINDS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x93NUM": "a NumPy array without a grid",
}


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan.

    Attributes:
        array: Real values (X, Y, Z) float32; usually with X fastest in memory, so not C-contiguous.
        affine: Voxel to RAS+ mm (4, 4) float64.
        path: What it was read from.
        format: `nifti`, `nrrd`, `metaimage`, `mgh` or `dicom`.
    """

    array: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    path: Path
    format: str


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid that a scan lies on, enough to write a label map onto it.

    Attributes:
        shape: Numbers of voxels (X, Y, Z).
        affine: Voxel to RAS+ mm (4, 4) float64.
        format: As of `Volume`.
        nifti_header: Header of a NIfTI file as it is stored, None for other formats.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    format: str
    nifti_header: nibabel.Nifti1Header | None = None


def read_volume(path: str | os.PathLike[str], frame: int | None = None) -> Volume:
    """Read a scan.

    Lengths that a header gives in metres or microns are converted to mm. A DICOM file stands for its series: the
    other files are taken from its folder.

    Args:
        path: A NIfTI (`.nii`, `.nii.gz`, a pair), NRRD, MetaImage or MGH file, a folder with one DICOM series, or one
            DICOM file.
        frame: Which volume of a four-dimensional file, counted from 0.

    Raises:
        VolumeError: Anything that cannot be segmented, as one sentence: no such file, no image, truncated or damaged
            data, colours, complex numbers, two dimensions, four without `frame`, NaN or infinite or constant values,
            a singular affine, an absurd spacing, several DICOM series, repeated or missing slices.
    """
    try:
        header = _read_header(path)
        if isinstance(header, DicomSeries):
            check_frame(header.path, frame, 1)
            return Volume(read_slices(header.path, header.slices), header.affine, Path(path), "dicom")
        number = check_frame(path, frame, header.voxels.n_frames)
        return Volume(read_voxels(header.voxels, number), header.affine, Path(path), header.format)
    except Exception as error:
        raise _as_volume_error(path, error) from error


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """Read only the grid of a scan; of a four-dimensional file, that of each of its frames.

    Args:
        path: As for `read_volume`.

    Raises:
        VolumeError: As `read_volume`, as far as headers and file sizes show it.
    """
    try:
        header = _read_header(path)
        if isinstance(header, DicomSeries):
            return Grid(header.shape, header.affine, "dicom")
        check_claims(header.voxels)
        x, y, z = header.voxels.spatial_shape
        return Grid((x, y, z), header.affine, header.format, header.nifti_header)
    except Exception as error:
        raise _as_volume_error(path, error) from error


@np.errstate(all="ignore")  # absurd numbers are refused with a sentence; numpy need not warn of them before
def _read_header(path: str | os.PathLike[str]) -> ScanHeader | DicomSeries:
    if not os.fspath(path):
        raise VolumeError(f"no scan was given: the path is empty; give a {READABLE}")
    path = Path(path)
    _check_exists(path)
    if path.is_dir() or is_dicom_file(path):
        series = find_series(path)
        check_grid(path, series.shape, series.affine)
        return series
    header = _read_file_header(path)
    check_grid(path, header.voxels.spatial_shape, header.affine, header.hint)
    return header


def _check_exists(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise refusal(path, "does not exist", "check the path") from error
    except (OSError, ValueError) as error:
        raise refusal(path, f"cannot be opened ({cause_of(error)})", "check the path and your rights") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise refusal(path, "is neither a file nor a folder", f"give a {READABLE}")


def _read_file_header(path: Path) -> ScanHeader:
    header_path = header_of_pair(path)
    head, compressed = first_bytes(header_path, 1024)
    if nifti_magic(head):
        return read_nifti_header(path, header_path, head, compressed)
    if looks_like_mgh(head):
        return read_mgh_header(path, head, compressed)
    if head.startswith(b"NRRD000") or looks_like_metaimage(head):
        if compressed:
            raise refusal(path, "is compressed as a whole", "unpack it with gunzip first")
        return read_nrrd_header(path) if head.startswith(b"NRRD") else read_metaimage_header(path)
    if not head:
        raise refusal(path, "is empty", COPY_AGAIN)
    kinds = [kind for magic, kind in OTHER_KINDS.items() if head.startswith(magic)]
    raise refusal(path, f"is {kinds[0]}, no scan" if kinds else "is no image that can be read", f"give a {READABLE}")


def _as_volume_error(path: str | os.PathLike[str], error: Exception) -> VolumeError:
    """Whatever happened as one sentence about the file."""
    if isinstance(error, VolumeError):
        return error
    if isinstance(error, MemoryError):
        return refusal(Path(path), "needs more memory than there is", "crop it or use a larger machine")
    if isinstance(error, PermissionError):
        return refusal(Path(path), "cannot be opened (permission denied)", "ask for the right to read it")
    return VolumeError(f"{shown(Path(path))} cannot be read ({cause_of(error)}); {COPY_AGAIN}")
