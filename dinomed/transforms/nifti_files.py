"""Headers of NIfTI-1, NIfTI-2 and FreeSurfer MGH files, read with nibabel.

Only the fixed header is handed to nibabel: extensions and footers, whose lengths a damaged file may lie about, are not.
"""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader

from dinomed.errors import VolumeError
from dinomed.transforms.volume_checks import COPY_AGAIN, damaged, refusal, split_frames
from dinomed.transforms.voxel_streams import ScanHeader, StoredVoxels, first_bytes

logger = logging.getLogger(__name__)
_silent = logging.getLogger(f"{__name__}.nibabel")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False

NIFTI_HEADER_BYTES = {b"n+1\0": 348, b"ni1\0": 348, b"n+2\0": 540, b"ni2\0": 540}
MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
NEVER_FIXED_BY_NIBABEL = 1000


def nifti_magic(head: bytes) -> bytes | None:
    """The magic string of a NIfTI header, or None."""
    for position in (344, 4):
        magic = bytes(head[position : position + 4])
        if magic in NIFTI_HEADER_BYTES and (NIFTI_HEADER_BYTES[magic] == 348) == (position == 344):
            return magic
    return None


def looks_like_mgh(head: bytes) -> bool:
    """Whether a file starts like MGH: version 1, four positive lengths, a known type."""
    if len(head) < 90:
        return False
    version, *lengths, kind = np.frombuffer(head[:24], ">i4").tolist()
    return version == 1 and min(lengths) > 0 and kind in (0, 1, 3, 4, 10)


def read_nifti_header(path: Path, header_path: Path, head: bytes, compressed: bool) -> ScanHeader:
    """Read a NIfTI header.

    Args:
        path: What the user gave, to be named in errors.
        header_path: The file that starts with the header (`.nii`, or the `.hdr` of a pair).
        head: The decompressed start of that file.
        compressed: Whether that file is gzip-compressed.

    Raises:
        VolumeError: A damaged header, or data that is no scalar volume.
    """
    magic = nifti_magic(head)
    if magic is None:
        raise refusal(path, "has no NIfTI header", COPY_AGAIN)
    header_class = nibabel.Nifti1Header if NIFTI_HEADER_BYTES[magic] == 348 else nibabel.Nifti2Header
    try:
        header = header_class(head[: NIFTI_HEADER_BYTES[magic]], check=False)
        checked = header.copy()
        checked.check_fix(logger=_silent, error_level=NEVER_FIXED_BY_NIBABEL)
        header["sform_code"], header["qform_code"] = checked["sform_code"], checked["qform_code"]
        dtype = checked.get_data_dtype()
        shape, frame_axis = split_frames(path, checked.get_data_shape())
        sizes = header["pixdim"][1:4].tolist()
        if int(header["sform_code"]) == 0 and not min(sizes) > 0:  # only the sform says voxel sizes by itself
            raise refusal(path, f"has voxel sizes {sizes} in its header", "write the true sizes in mm into pixdim")
        slope, intercept = checked.get_slope_inter()
        offset = int(checked["vox_offset"])
        affine = np.array(checked.get_best_affine(), dtype=np.float64)
        units = checked.get_xyzt_units()[0]
    except VolumeError:
        raise
    except Exception as error:  # whatever nibabel and numpy make of damaged numbers
        raise damaged(path, "NIfTI", error) from error
    _check_scalar(path, dtype)
    if magic[:2] == b"n+":
        data_path, offset = header_path, max(offset, 352 if magic == b"n+1\0" else 544)
    else:
        data_path, offset = _image_of_pair(path, header_path), max(offset, 0)
        compressed = first_bytes(data_path, 2)[1]
    if not (int(checked["sform_code"]) or int(checked["qform_code"])):
        logger.warning("The header of %s gives no orientation (sform and qform codes are 0): left is a guess", path)
    factor = MM_PER_UNIT.get(units, 1.0)
    affine[:3] *= factor
    return ScanHeader(
        voxels=StoredVoxels(
            path=data_path,
            shape=shape,
            dtype=dtype,
            encoding="deflate" if compressed else "raw",
            skip=offset,
            frame_axis=frame_axis,
            slope=1.0 if slope is None else slope,
            intercept=0.0 if intercept is None else intercept,
        ),
        affine=affine,
        format="nifti",
        nifti_header=header,
        hint="" if factor == 1.0 else f"its header says that its lengths are in {units}s",
    )


def read_mgh_header(path: Path, head: bytes, compressed: bool) -> ScanHeader:
    """Read the header of an MGH or MGZ file, which is always big-endian.

    Raises:
        VolumeError: A damaged header, or data that is no volume.
    """
    try:
        header = MGHHeader(head[:90], check=False)
        shape, frame_axis = split_frames(path, header.get_data_shape())
        dtype = header.get_data_dtype().newbyteorder(">")
        affine = np.array(header.get_affine(), dtype=np.float64)
    except VolumeError:
        raise
    except Exception as error:  # whatever nibabel and numpy make of damaged numbers
        raise damaged(path, "MGH", error) from error
    if not any(head[28:30]):  # nibabel sets its copy of the flag together with an orientation by default
        logger.warning("The header of %s gives no orientation (its RAS flag is 0): left is a guess", path)
    encoding = "deflate" if compressed else "raw"
    voxels = StoredVoxels(path, shape, dtype, encoding, skip=DATA_OFFSET, frame_axis=frame_axis)  # type: ignore[arg-type]
    return ScanHeader(voxels, affine, "mgh")


def header_of_pair(path: Path) -> Path:
    """The `.hdr` that belongs to an `.img`; any other path as it is.

    Raises:
        VolumeError: The `.hdr` is not there.
    """
    return _other_of_pair(path, path, ".img", ".hdr")


def _image_of_pair(path: Path, header_path: Path) -> Path:
    image = _other_of_pair(path, header_path, ".hdr", ".img")
    if image == header_path:
        raise refusal(path, "says that its voxels lie in another file", "name the two files x.hdr and x.img")
    return image


def _other_of_pair(path: Path, this: Path, old: str, new: str) -> Path:
    """Counterpart of a file of a NIfTI pair, with or without `.gz`; `this` if its name is not that of a pair."""
    bare = this.with_suffix("") if this.suffix.lower() == ".gz" else this
    if bare.suffix.lower() != old:
        return this
    suffix = new.upper() if bare.suffix.isupper() else new
    for candidate in (bare.with_suffix(suffix), bare.with_suffix(suffix + ".gz")):
        if candidate.is_file():
            return candidate
    raise refusal(path, f"is half of a pair: there is no {bare.with_suffix(suffix).name} beside it", "give both files")


def _check_scalar(path: Path, dtype: np.dtype[np.generic]) -> None:
    if dtype.fields is not None:
        raise refusal(path, "holds colours (RGB), not intensities", "give the scan itself or one grey channel of it")
    if dtype.kind == "c":
        raise refusal(path, "holds complex numbers", "give the magnitude image")
    if dtype.kind not in "biuf":
        raise refusal(path, f"holds voxels of type {dtype}", "save it with integer or real voxels")
