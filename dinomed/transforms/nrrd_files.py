"""Headers of NRRD files (`.nrrd`, and `.nhdr` with its data beside it).

Source: the format definition at https://teem.sourceforge.net/nrrd/format.html; what it leaves open follows ITK.
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
    Encoding,
    ScanHeader,
    StoredVoxels,
    data_file_beside,
    first_bytes,
)

logger = logging.getLogger(__name__)

MOST_HEADER_BYTES = 1 << 20
DTYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
ENCODINGS: dict[str, Encoding] = {
    "raw": "raw",
    "gzip": "deflate",
    "gz": "deflate",
    "bzip2": "bzip2",
    "bz2": "bzip2",
}
# Signs that turn the first two world axes of a space into right and anterior; the third is superior in all of them.
RAS_SIGNS = {
    "right-anterior-superior": (1, 1),
    "ras": (1, 1),
    "left-anterior-superior": (-1, 1),
    "las": (-1, 1),
    "left-posterior-superior": (-1, -1),
    "lps": (-1, -1),
}
MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "\N{MICRO SIGN}m": 0.001, "microns": 0.001}
FRAME_KINDS = ("list", "vector", "time", "scalar", "stub")
SPATIAL_KINDS = ("domain", "space", "???", "none")


def read_nrrd_header(path: Path) -> ScanHeader:
    """Read a NRRD header.

    Raises:
        VolumeError: A damaged header, or a variant that is not read here (text encodings, several data files, colours).
    """
    head = first_bytes(path, MOST_HEADER_BYTES, inflate=False)[0]
    fields, header_bytes = _fields(head)
    try:
        return _interpret(path, fields, header_bytes)
    except VolumeError:
        raise
    except Exception as error:  # whatever Python and numpy make of damaged numbers
        raise damaged(path, "NRRD", error) from error


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """The `name: value` lines, without comments and `key:=value` lines, and the length of the attached header."""
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[: end.start()] if end else head
    fields: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return fields, end.end() if end else len(head)


def _interpret(path: Path, fields: dict[str, str], header_bytes: int) -> ScanHeader:
    lacking = [name for name in ("type", "dimension", "sizes", "encoding") if name not in fields]
    if lacking:
        raise refusal(path, f"has a damaged NRRD header: it lacks {' and '.join(lacking)}", COPY_AGAIN)
    sizes = tuple(int(length) for length in fields["sizes"].split())
    if len(sizes) != int(fields["dimension"]):
        raise refusal(path, "has a damaged NRRD header: its sizes do not fit its dimension", COPY_AGAIN)
    frame_axis = _frame_axis(path, fields, sizes)
    spatial = tuple(length for axis, length in enumerate(sizes) if axis != frame_axis)
    split_frames(path, spatial)
    if len(spatial) > 3:
        raise refusal(path, f"has {len(sizes)} dimensions", "split it and give one three-dimensional volume")
    if frame_axis is not None and sizes[frame_axis] == 1:
        sizes, frame_axis = spatial, None
    return ScanHeader(_stored(path, fields, sizes, frame_axis, header_bytes), _affine(path, fields), "nrrd")


def _frame_axis(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> int | None:
    """The one axis that is not space: without a direction, or of a kind that is a list or time."""
    if min(sizes, default=0) < 1:
        raise refusal(path, f"claims the sizes {excerpt(fields['sizes'])}", "its header is damaged: export it again")
    kinds = fields.get("kinds", "").lower().split()
    other = [kind for kind in kinds if kind not in SPATIAL_KINDS + FRAME_KINDS]
    if other:
        raise refusal(
            path,
            f"holds colours, complex numbers or tensors ({excerpt(other[0])})",
            "give a scan of single intensities",
        )
    axes = [axis for axis, kind in enumerate(kinds) if kind in FRAME_KINDS]
    if "space directions" in fields:
        axes = [axis for axis, direction in enumerate(_vectors(fields["space directions"])) if direction is None]
    if not axes and len(sizes) > 3:
        axes = [3]
    if len(axes) > 1 or len(sizes) - len(axes) > 3:
        raise refusal(path, f"has {len(sizes)} dimensions", "split it and give one three-dimensional volume")
    return axes[0] if axes else None


def _stored(
    path: Path, fields: dict[str, str], sizes: tuple[int, ...], frame_axis: int | None, header_bytes: int
) -> StoredVoxels:
    types = [code for code, names in DTYPES.items() if fields["type"].lower() in names]
    if not types:
        raise refusal(path, f"holds voxels of type {excerpt(fields['type'])}", "save it with integer or real voxels")
    encoding = ENCODINGS.get(fields["encoding"].lower())
    if encoding is None:
        raise refusal(path, f"is encoded as {excerpt(fields['encoding'])}", "save it with raw or gzip encoding")
    if int(fields.get("line skip", fields.get("lineskip", "0"))) != 0:
        raise refusal(path, "has text lines before its voxels (line skip)", "save it again as one .nrrd file")
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    dtype = np.dtype(order + types[0])
    data_file = fields.get("data file", fields.get("datafile"))
    data_path, offset = (path, header_bytes) if data_file is None else (data_file_beside(path, data_file), 0)
    skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    if skip == -1 and encoding == "raw":  # the voxels are the end of the file
        skip = data_path.stat().st_size - offset - product(sizes) * dtype.itemsize
    if skip < -1:
        raise refusal(data_path, "holds fewer voxels than its header claims", COPY_AGAIN)
    return StoredVoxels(data_path, sizes, dtype, encoding, offset=offset, skip=max(skip, 0), frame_axis=frame_axis)


def _affine(path: Path, fields: dict[str, str]) -> npt.NDArray[np.float64]:
    """Voxel to RAS+ mm (4, 4); without directions the axes are taken as left, posterior, superior, as ITK does."""
    affine = np.eye(4)
    space = fields.get("space", "").lower()
    signs = RAS_SIGNS.get(space.removesuffix("-time"), (-1, -1))
    if "space directions" in fields:
        directions = [vector for vector in _vectors(fields["space directions"]) if vector is not None]
        origin = (_vectors(fields.get("space origin", "")) or [None])[0] or [0.0, 0.0, 0.0]
        if [len(vector) for vector in [*directions, origin]] != [3, 3, 3, 3]:
            raise ValueError("space directions and space origin are not of three axes each")
        affine[:3] = np.array([*directions, origin], dtype=np.float64).T
    else:
        spacing_mm = [float(word) for word in fields.get("spacings", "").split() if float(word) == float(word)]
        affine[:3, :3] = np.diag([*spacing_mm, 1.0, 1.0, 1.0][:3])
    if "space directions" not in fields or space.removesuffix("-time") not in RAS_SIGNS:
        logger.warning("The header of %s gives no patient orientation: left is a guess", path)
    factors = [MM_PER_UNIT.get(unit, 1.0) for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))]
    affine[:3] *= np.array([*factors, 1.0, 1.0, 1.0][:3])[:, None]
    affine[:2] *= np.array(signs)[:, None]
    return affine + 0.0  # no negative zeros


def _vectors(text: str) -> list[list[float] | None]:
    """`(1,0,0) none (0,1,0)` as numbers."""
    return [
        None if word == "none" else [float(number) for number in word[1:-1].split(",")]
        for word in re.findall(r"\([^)]*\)|none", text.lower())
    ]
