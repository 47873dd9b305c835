"""Finding bundles by name or path."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.errors import BundleError

SEARCH_VARIABLE = "DINOMED_BUNDLES"
METADATA = Path("configs") / "metadata.json"
WEIGHTS = ("model.pt", "model.pth", "model.safetensors")


@dataclass(frozen=True)
class BundleInfo:
    """What the metadata of a bundle say about it."""

    name: str
    root: Path
    version: str
    task: str
    description: str
    weights: Path | None


def search_folders() -> list[Path]:
    """Return the folders in which bundles are looked for: DINOMED_BUNDLES, ./bundles, and those of a source tree."""
    named = [Path(part) for part in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if part]
    beside_package = Path(__file__).resolve().parents[2] / "bundles"
    folders: list[Path] = []
    for folder in [*named, Path("bundles"), beside_package]:
        resolved = folder.expanduser().resolve()
        if resolved.is_dir() and resolved not in folders:
            folders.append(resolved)
    return folders


def is_bundle(root: Path) -> bool:
    """Say whether a folder looks like a MONAI bundle."""
    return (root / METADATA).is_file()


def find_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle.

    Args:
        name_or_path: A path, or the name of a bundle in one of the `search_folders`. A path wins over a name.

    Raises:
        BundleError: If there is none, or the folder is no bundle.
    """
    path = Path(name_or_path).expanduser()
    if is_bundle(path):
        return path.resolve()
    if path.name == str(path):  # a bare name
        for folder in search_folders():
            if is_bundle(folder / path):
                return folder / path
    if path.is_dir():
        raise BundleError(f"{path} is no MONAI bundle, it has no {METADATA}; give the folder that holds configs/")
    if path.is_file():
        raise BundleError(f"{path} is a file, not a bundle; give the folder that holds configs/ and models/")
    known = ", ".join(info.name for info in list_bundles()) or "none"
    where = ", ".join(str(folder) for folder in search_folders()) or "./bundles"
    raise BundleError(f"there is no bundle {str(path)!r}; found are {known} (looked in {where}; see {SEARCH_VARIABLE})")


def list_bundles() -> list[BundleInfo]:
    """Return all bundles in the `search_folders`; of two with one name, the first is the one that is used."""
    found: dict[str, BundleInfo] = {}
    for folder in search_folders():
        for root in sorted(folder.iterdir()):
            if root.is_dir() and is_bundle(root) and root.name not in found:
                found[root.name] = describe_bundle(root)
    return list(found.values())


def describe_bundle(root: Path) -> BundleInfo:
    """Return what a bundle says about itself; what it does not say is empty."""
    try:
        metadata: Mapping[str, Any] = read_metadata(root)
    except BundleError as error:
        metadata = {"description": str(error)}
    weights = next((root / "models" / name for name in WEIGHTS if (root / "models" / name).is_file()), None)
    version, task, description = (str(metadata.get(key, "")) for key in ("version", "task", "description"))
    return BundleInfo(root.name, root, version, task, description, weights)


def read_metadata(root: Path) -> dict[str, Any]:
    """Return a bundle's metadata.

    Raises:
        BundleError: If they are absent or no JSON object.
    """
    path = root / METADATA
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); a bundle needs it") from error
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON ({error}); correct it") from error
    if not isinstance(metadata, dict):
        raise BundleError(f"{path} holds a {type(metadata).__name__}, not an object; correct it")
    return metadata
