"""Voxels as they lie in a file, streamed straight to float32.

Sizes that a header claims are compared with the file before anything is allocated, and voxels arrive in pieces of
1 MB: the peak is one float32 volume, for compressed files too. Damage that only a checksum can show is found, because
compressed streams are read to their end; readers that stop after the last voxel return what a damaged stream gave.
"""

from __future__ import annotations

import bz2
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from dinomed.transforms.volume_checks import COPY_AGAIN, ValueSpread, cause_of, check_memory, excerpt, product, refusal

if TYPE_CHECKING:
    from nibabel import Nifti1Header

Encoding = Literal["raw", "deflate", "bzip2"]

PIECE_BYTES = 1 << 20
# Most that one byte of a compressed stream can become. Source: deflate, RFC 1951 (258 bytes from two bits);
# bzip2 turns 45 MB of one value into some 40 bytes.
MOST_EXPANSION = {"raw": 1, "deflate": 1032, "bzip2": 1_200_000}
# How far to look behind the voxels for the end of a compressed stream.
MOST_FOOTER_BYTES = 1 << 28


@dataclass(frozen=True)
class StoredVoxels:
    """Where the voxels of a scan lie, and how.

    Attributes:
        path: File that holds them.
        shape: Lengths of the stored axes, fastest first: three of space and at most one of frames.
        dtype: Type of one voxel, with its byte order.
        encoding: `deflate` stands for gzip and zlib.
        offset: Bytes of the file before the (compressed) stream.
        skip: Bytes of the decompressed stream before the first voxel.
        frame_axis: Which axis counts frames, or None.
        slope: Factor from stored to real values.
        intercept: Added after the factor.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    encoding: Encoding = "raw"
    offset: int = 0
    skip: int = 0
    frame_axis: int | None = None
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Numbers of voxels (X, Y, Z)."""
        return tuple(length for axis, length in enumerate(self.shape) if axis != self.frame_axis)

    @property
    def n_frames(self) -> int:
        """How many volumes the file holds."""
        return 1 if self.frame_axis is None else self.shape[self.frame_axis]


@dataclass(frozen=True, eq=False)
class ScanHeader:
    """What the header of a scan says.

    Attributes:
        voxels: Where the voxels lie.
        affine: Voxel to RAS+ mm (4, 4).
        format: `nifti`, `nrrd`, `metaimage` or `mgh`.
        nifti_header: The NIfTI header as it is stored, None for other formats.
        hint: What may explain a wrong spacing, such as the header's units.
    """

    voxels: StoredVoxels
    affine: npt.NDArray[np.float64]
    format: str
    nifti_header: Nifti1Header | None = None
    hint: str = ""


class Inflater:
    """Reads a gzip or zlib stream of one or several members; whatever follows the last member is ignored."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = zlib.decompressobj(wbits=47)
        self._packed = b""

    def read(self, count: int) -> bytes:
        """At most `count` bytes; none at the end.

        Raises:
            EOFError: The stream stops in the middle.
            zlib.error: It is damaged, or its checksum does not fit.
        """
        while True:
            if self._decoder.eof and not self._begin_next_member():
                return b""
            if not self._packed:
                self._packed = self._stream.read(PIECE_BYTES // 8)
            exhausted = not self._packed
            piece = self._decoder.decompress(self._packed, count)
            self._packed = self._decoder.unconsumed_tail
            if piece:
                return piece
            if exhausted and not self._decoder.eof:
                raise EOFError("the compressed data stops in the middle")

    def _begin_next_member(self) -> bool:
        self._packed = self._decoder.unused_data or self._stream.read(PIECE_BYTES // 8)
        if len(self._packed) == 1:
            self._packed += self._stream.read(1)
        if not self._packed.startswith(b"\x1f\x8b"):
            return False
        self._decoder = zlib.decompressobj(wbits=47)
        return True


def is_gzip(head: bytes) -> bool:
    """Whether the first bytes of a file are those of gzip, whatever it is called."""
    return head[:2] == b"\x1f\x8b"


def first_bytes(path: Path, count: int, inflate: bool = True) -> tuple[bytes, bool]:
    """Up to `count` bytes from the start of a file, and whether they had to be decompressed.

    Raises:
        VolumeError: The compressed stream is damaged within these bytes.
    """
    with path.open("rb") as stream:
        head = stream.read(2)
        stream.seek(0)
        if not (inflate and is_gzip(head)):
            return stream.read(count), False
        inflater = Inflater(stream)
        pieces, missing = [], count
        try:
            while missing and (piece := inflater.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
        except EOFError:
            pass  # as much as there is: what it lacks is found when the voxels are read
        except zlib.error as error:
            raise refusal(path, f"is a damaged gzip file ({cause_of(error)})", COPY_AGAIN) from error
        return b"".join(pieces), True


def check_claims(stored: StoredVoxels) -> None:
    """Compare the size that the header claims with the file and with this machine, before allocating anything.

    Raises:
        VolumeError: The file cannot hold that many voxels, or the machine cannot.
    """
    claimed = stored.skip + product(stored.shape) * stored.dtype.itemsize
    present = max(stored.path.stat().st_size - stored.offset, 0)
    if claimed > present * MOST_EXPANSION[stored.encoding]:
        there = "bytes of data are there" if stored.encoding == "raw" else "compressed bytes are there"
        raise refusal(stored.path, f"is cut short: its header claims {claimed} bytes, {present} {there}", COPY_AGAIN)
    check_memory(stored.path, stored.spatial_shape)


def read_voxels(stored: StoredVoxels, frame: int = 0) -> npt.NDArray[np.float32]:
    """Read one frame as float32.

    Returns:
        Real values (X, Y, Z), stored with X fastest as they lie in the file, so not C-contiguous.

    Raises:
        VolumeError: Fewer voxels than claimed, a damaged stream, NaN or infinite voxels, or a constant image.
    """
    check_claims(stored)
    values = np.empty(product(stored.spatial_shape), dtype=np.float32)
    filled = 0
    spread = ValueSpread()
    try:
        with stored.path.open("rb") as stream:
            stream.seek(stored.offset)
            for piece in _pieces(_Source(stream, stored.encoding), stored, frame):
                target = values[filled : filled + piece.size]
                to_float32(piece, stored.slope, stored.intercept, target)
                spread.add(target)
                filled += piece.size
    except EOFError as error:
        raise refusal(stored.path, f"is cut short ({cause_of(error)})", COPY_AGAIN) from error
    except zlib.error as error:
        raise refusal(stored.path, f"holds damaged compressed data ({cause_of(error)})", COPY_AGAIN) from error
    except OSError as error:  # also what bz2 raises for a damaged stream
        raise refusal(stored.path, f"cannot be read ({cause_of(error)})", COPY_AGAIN) from error
    spread.check(stored.path)
    return values.reshape(stored.spatial_shape, order="F")


def to_float32(raw: npt.NDArray[np.generic], slope: float, intercept: float, target: npt.NDArray[np.float32]) -> None:
    """Write real values into `target`; scaling happens in float64, so that it is rounded only once."""
    with np.errstate(over="ignore", invalid="ignore"):
        if slope == 1.0 and intercept == 0.0:
            target[...] = raw
        else:
            target[...] = raw.astype(np.float64) * slope + intercept


class _Source:
    """The decompressed bytes of a file, in exact counts."""

    def __init__(self, stream: BinaryIO, encoding: Encoding) -> None:
        self._stream = stream
        self._is_raw = encoding == "raw"
        self._read: Callable[[int], bytes] = stream.read
        if encoding == "deflate":
            self._read = Inflater(stream).read
        elif encoding == "bzip2":
            self._read = bz2.BZ2File(stream).read

    def take(self, count: int) -> bytes:
        pieces, missing = [], count
        while missing:
            piece = self._read(min(missing, PIECE_BYTES))
            if not piece:
                raise EOFError(f"{missing} bytes are missing")
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pass_over(self, count: int) -> None:
        if self._is_raw:
            self._stream.seek(count, 1)
            return
        while count > 0:
            count -= len(self.take(min(count, PIECE_BYTES)))

    def verify_end(self) -> None:
        """Read what follows the voxels: only at its very end does a compressed stream show its checksum."""
        left = 0 if self._is_raw else MOST_FOOTER_BYTES
        while left > 0 and (piece := self._read(PIECE_BYTES)):
            left -= len(piece)


def _pieces(source: _Source, stored: StoredVoxels, frame: int) -> Iterator[npt.NDArray[np.generic]]:
    """Stored voxels of one frame in order, 1 MB at a time."""
    itemsize = stored.dtype.itemsize
    axis = len(stored.shape) if stored.frame_axis is None else stored.frame_axis
    inner, outer = product(stored.shape[:axis]), product(stored.shape[axis + 1 :])
    source.pass_over(stored.skip)
    if outer == 1:
        source.pass_over(frame * inner * itemsize)
        for start in range(0, inner, PIECE_BYTES // itemsize):
            count = min(PIECE_BYTES // itemsize, inner - start)
            yield np.frombuffer(source.take(count * itemsize), stored.dtype)
        source.pass_over((stored.n_frames - 1 - frame) * inner * itemsize)
    else:
        row_bytes = inner * stored.n_frames * itemsize
        at_once = max(1, PIECE_BYTES // row_bytes)
        for start in range(0, outer, at_once):
            rows = min(at_once, outer - start)
            block = np.frombuffer(source.take(rows * row_bytes), stored.dtype)
            yield block.reshape(rows, stored.n_frames, inner)[:, frame].ravel()
    source.verify_end()


def data_file_beside(path: Path, name: str) -> Path:
    """File with the voxels that a text header names.

    Raises:
        VolumeError: It is not there, or lies outside the header's folder: a header may not point at any file it likes.
    """
    folder = Path(os.path.abspath(path.parent))
    target = Path(os.path.normpath(folder / name))  # links are followed: archives keep their files behind them
    if not target.is_relative_to(folder) or not target.is_file():
        raise refusal(
            path, f"keeps its voxels in {excerpt(name)}, which is not beside it", "put both files into one folder"
        )
    return target
