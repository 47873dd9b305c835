"""What a result says about its making: checksums, versions of the software, transforms and their settings."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed import __version__
from dinomed.errors import VolumeError
from dinomed.transforms.dicom_series import find_series, is_dicom_file
from dinomed.transforms.metaimage_files import looks_like_metaimage
from dinomed.transforms.voxel_streams import data_file_beside

CHUNK_BYTES = 1 << 20
METAIMAGE_SUFFIXES = (".mhd", ".mha")
METAIMAGE_DATA = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=([^\r\n]*)", re.MULTILINE)
NRRD_DATA = re.compile(rb"^[ \t]*data ?file[ \t]*:(?!=)([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
HEADER_END = re.compile(rb"\r?\n\r?\n")
PAIR = {".hdr": ".img", ".img": ".hdr"}
OWN_AFFAIR = ("self", "keys", "image_key", "frame", "allow_missing_keys")
"""Constructor arguments that say which item a transform works on, not what it does."""
SAID_ELSEWHERE = ("batch_size", "workers", "progress", "precision", "planes", "class_groups")
"""Arguments of inference that do not change its result, or that a report holds by themselves."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def scan_sha256(path: Path) -> str | None:
    """Return one SHA-256 for a scan: of its file, or of the checksums of its files where it has several.

    Names do not count, so that a copy of the same scan has the same checksum. Several files are a folder's DICOM
    files, the files of the series that a lone DICOM file stands for, or a header and the voxels that it names.

    Returns:
        64 hexadecimal digits; None where the header names no voxels that are there, or a DICOM file no sound series.

    Raises:
        OSError: If a file cannot be read.
    """
    files = _files_of_scan(path)
    if files is None:
        return None
    if files == [path] and not is_dicom_file(path):
        return file_sha256(path)
    digests = sorted(file_sha256(file) for file in files)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _files_of_scan(path: Path) -> list[Path] | None:
    """Files that hold a scan, found as `read_volume` finds them; None where some are missing."""
    if path.is_dir():
        return [file for file in path.iterdir() if file.is_file() and is_dicom_file(file)]
    try:
        if is_dicom_file(path):
            return sorted({part.path for part in find_series(path).slices})
        with path.open("rb") as stream:
            start = stream.read(CHUNK_BYTES)
        if looks_like_metaimage(start) or path.suffix.lower() in METAIMAGE_SUFFIXES:
            return _with_data_file(path, METAIMAGE_DATA.search(start), False)
        if start.startswith(b"NRRD000"):
            return _with_data_file(path, NRRD_DATA.search(HEADER_END.split(start, maxsplit=1)[0]), True)
    except VolumeError:
        return None
    return _pair(path)


def _with_data_file(path: Path, named: re.Match[bytes] | None, attached: bool) -> list[Path] | None:
    """A header and the file that it names; the header alone where it holds the voxels itself."""
    if named is None:
        return [path] if attached else None
    name = named[1].decode("utf-8", "replace").strip()
    return [path] if not attached and name.upper() == "LOCAL" else [path, data_file_beside(path, name)]


def _pair(path: Path) -> list[Path] | None:
    """Both files of a NIfTI pair; any other file alone."""
    bare = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    other = PAIR.get(bare.suffix.lower())
    if other is None:
        return [path]
    other = other.upper() if bare.suffix.isupper() else other
    found = (bare.with_suffix(other + packed) for packed in ("", ".gz"))
    return next(([path, file] for file in found if file.is_file()), None)


def software_versions() -> dict[str, str]:
    """Return the versions of what has a say in the voxels."""
    versions = {"dinomed": __version__, "python": platform.python_version()}
    for package in ("torch", "monai", "timm", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def describe_transforms(transforms: Any) -> list[dict[str, Any]]:
    """Name a chain of transforms and their settings in plain JSON values.

    Args:
        transforms: A `monai.transforms.Compose`, one transform, a sequence of transforms, or a description that is
            ready: a mapping is read as name -> settings.

    Returns:
        One `{"name": ..., "parameters": {...}}` per transform, in order. Parameters are the constructor's arguments
        as far as the transform keeps them under their names.
    """
    if isinstance(transforms, Mapping):
        return [{"name": str(name), "parameters": to_json(value)} for name, value in transforms.items()]
    return [
        to_json(each) if isinstance(each, Mapping) else {"name": type(each).__name__, "parameters": _settings(each)}
        for each in _flattened(transforms)
    ]


def _flattened(transforms: Any) -> Iterator[Any]:
    inner = transforms if isinstance(transforms, Sequence) else getattr(transforms, "transforms", None)
    if not isinstance(inner, Sequence):
        yield transforms
        return
    for each in inner:
        yield from _flattened(each)


def _settings(transform: Any) -> dict[str, Any]:
    """Read a transform's settings from its attributes, or from the function that it has bound them to."""
    kept = vars(transform)
    bound: dict[str, Any] = {}
    for value in kept.values():
        if isinstance(value, functools.partial):
            bound.update(value.keywords)
        elif type(transform).__module__.startswith("monai.") and hasattr(value, "__dict__"):
            bound.update(vars(value))  # the transform of arrays that a dictionary transform of MONAI wraps
    left_out = (*OWN_AFFAIR, *SAID_ELSEWHERE)
    names = [name for name in inspect.signature(type(transform)).parameters if name not in left_out]
    found = {name: kept.get(name, kept.get(f"_{name}", bound.get(name, inspect.Parameter.empty))) for name in names}
    return {name: to_json(value) for name, value in found.items() if value is not inspect.Parameter.empty}


def to_json(value: Any) -> Any:
    """Turn numbers, arrays, tensors, paths and containers of them into strict JSON values; what is not finite is null.

    Anything else becomes the text of its type, so that a description never fails.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return to_json(value.tolist())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if isinstance(value, (Path, torch.device, torch.dtype)):
        return str(value).removeprefix("torch.")
    return type(value).__name__
