"""What a result says about its making: checksums, versions of the software, transforms and their settings."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed import __version__
from dinomed.transforms.dicom_series import is_dicom_file

CHUNK_BYTES = 1 << 20
DETACHED_HEADERS = (".hdr", ".hdr.gz", ".img", ".img.gz", ".mhd", ".nhdr")
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
    files, or a header and the voxels beside it.

    Returns:
        64 hexadecimal digits; None where the voxels lie in a file that the header's name does not tell.

    Raises:
        OSError: If a file cannot be read.
    """
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and is_dicom_file(file)]
    elif path.name.lower().endswith(DETACHED_HEADERS):
        stem = path.name.split(".")[0]
        files = [file for file in path.parent.iterdir() if file.is_file() and file.name.split(".")[0] == stem]
        if len(files) < 2:
            return None
    else:
        return file_sha256(path)
    digests = sorted(file_sha256(file) for file in files)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


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
