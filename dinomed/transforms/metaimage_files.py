"""Headers of MetaImage files (`.mha`, and `.mhd` with its data beside it).

Source: the format description at https://itk.org/Wiki/ITK/MetaIO/Documentation; like ITK, this does not apply
`ElementToIntensityFunctionSlope` and `...Offset`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dinomed.errors import VolumeError
from dinomed.transforms.volume_checks import COPY_AGAIN, damaged, excerpt, product, refusal, split_frames
from dinomed.transforms.voxel_streams import (
    ScanHeader,
    StoredVoxels,
    data_file_beside,
    first_bytes,
)

logger = logging.getLogger(__name__)

MOST_HEADER_BYTES = 1 << 20
DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "um": 0.001}


def looks_like_metaimage(head: bytes) -> bool:
    """Whether a file starts with a line that MetaImage headers start with."""
    return re.match(rb"\s*(ObjectType|NDims|Comment|ObjectSubType)\s*=", head) is not None


def read_metaimage_header(path: Path) -> ScanHeader:
    """Read a MetaImage header.

    Raises:
        VolumeError: A damaged header, or a variant that is not read here (text voxels, several data files, colours).
    """
    head = first_bytes(path, MOST_HEADER_BYTES, inflate=False)[0]
    fields, header_bytes = _fields(head)
    try:
        return _interpret(path, fields, header_bytes)
    except VolumeError:
        raise
    except Exception as error:  # whatever Python and numpy make of damaged numbers
        raise damaged(path, "MetaImage", error) from error


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """The `Name = value` lines up to `ElementDataFile`, which is always the last, and the length of the header."""
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields and position < len(head):
        end = head.find(b"\n", position)
        end = len(head) if end < 0 else end
        name, equals, value = head[position:end].decode("utf-8", "replace").partition("=")
        if equals:
            fields[name.strip()] = value.strip()
        position = end + 1
    return fields, position


def _interpret(path: Path, fields: dict[str, str], header_bytes: int) -> ScanHeader:
    lacking = [name for name in ("NDims", "DimSize", "ElementType", "ElementDataFile") if name not in fields]
    if lacking:
        raise refusal(path, f"has a damaged MetaImage header: it lacks {' and '.join(lacking)}", COPY_AGAIN)
    sizes = tuple(int(length) for length in fields["DimSize"].split())
    n_dims = int(fields["NDims"])
    if len(sizes) != n_dims:
        raise refusal(path, "has a damaged MetaImage header: DimSize does not fit NDims", COPY_AGAIN)
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    if channels != 1:
        raise refusal(path, f"holds {channels} channels (colours or vectors)", "give a scan of single intensities")
    shape, frame_axis = split_frames(path, sizes)
    return ScanHeader(
        _stored(path, fields, shape, frame_axis, header_bytes),
        _affine(path, fields, n_dims),
        "metaimage",
    )


def _stored(
    path: Path, fields: dict[str, str], shape: tuple[int, ...], frame_axis: int | None, header_bytes: int
) -> StoredVoxels:
    if fields["ElementType"] not in DTYPES:
        raise refusal(
            path, f"holds voxels of type {excerpt(fields['ElementType'])}", "save it with integer or real voxels"
        )
    if not _is_true(fields.get("BinaryData", "True")):
        raise refusal(path, "holds its voxels as text", "save it with binary voxels")
    is_big = _is_true(fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")))
    dtype = np.dtype((">" if is_big else "<") + DTYPES[fields["ElementType"]])
    compressed = _is_true(fields.get("CompressedData", "False"))
    name = fields["ElementDataFile"]
    if name.split(" ")[0] == "LIST" or "%" in name:
        raise refusal(path, "keeps its slices in many files", "save it again as one .mha file")
    is_local = name.upper() == "LOCAL"
    data_path = path if is_local else data_file_beside(path, name)
    offset = header_bytes if is_local else 0
    header_size = int(fields.get("HeaderSize", "0"))
    if header_size == -1 and not compressed:  # the voxels are the end of the file
        offset = data_path.stat().st_size - product(shape) * dtype.itemsize
    elif header_size > 0:
        offset = header_size
    if offset < 0:
        raise refusal(data_path, "holds fewer voxels than its header claims", COPY_AGAIN)
    return StoredVoxels(
        data_path, shape, dtype, "deflate" if compressed else "raw", offset=offset, frame_axis=frame_axis
    )


def _affine(path: Path, fields: dict[str, str], n_dims: int) -> npt.NDArray[np.float64]:
    """Voxel to RAS+ mm (4, 4); the file counts in left, posterior, superior, one line of the matrix per voxel axis."""
    matrix = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), n_dims * n_dims)
    origin = _numbers(fields, ("Offset", "Position", "Origin"), n_dims)
    spacing_mm = _numbers(fields, ("ElementSpacing", "ElementSize"), n_dims)
    if matrix is None:
        logger.warning("The header of %s gives no orientation: left is a guess", path)
    directions = np.eye(n_dims) if matrix is None else matrix.reshape(n_dims, n_dims)
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3].T * (np.ones(3) if spacing_mm is None else spacing_mm[:3])
    affine[:3, 3] = 0.0 if origin is None else origin[:3]
    affine[:3] *= MM_PER_UNIT.get(fields.get("DistanceUnits", "mm"), 1.0)
    affine[:2] *= -1
    return affine + 0.0  # no negative zeros


def _numbers(fields: dict[str, str], names: tuple[str, ...], count: int) -> npt.NDArray[np.float64] | None:
    for name in names:
        if name in fields:
            numbers = np.array([float(word) for word in fields[name].split()])
            if numbers.size != count:
                raise ValueError(f"{name} has {numbers.size} numbers instead of {count}")
            return numbers
    return None


def _is_true(word: str) -> bool:
    return word[:1].upper() in ("T", "Y", "1")
