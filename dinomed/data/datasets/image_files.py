"""Which files of a folder are pictures, and which picture belongs to which label map."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinomed.data.datasets.image_dataset import Problem
from dinomed.errors import InputError
from dinomed.transforms.image_reading import IMAGE_SUFFIXES


def is_image_name(name: str) -> bool:
    """Whether a file is a picture by its name; hidden files, such as macOS's `._a.jpg`, are none."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the pictures in a folder and all folders inside it, sorted by path.

    Raises:
        InputError: If there is no such folder or it may not be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; check the path")
    found: list[Path] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be listed ({error.strerror}); ask for the right to read it"
        ) from error

    for place, inner, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [Path(place, name) for name in names if is_image_name(name)]
    return sorted(found)


def item_name(path: Path, root: Path) -> str:
    """Name an item by its path below the root, without its ending and with `/` on every system."""
    return path.relative_to(root).with_suffix("").as_posix()


def pair_by_name(
    image_root: Path, mask_root: Path, image_suffix: str = "", mask_suffix: str = ""
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Pair pictures and label maps whose names below their folders agree, endings and the given suffixes aside.

    Args:
        image_root: Folder of the pictures.
        mask_root: Folder of the label maps; may be the same, if a suffix tells them apart.
        image_suffix: What names of pictures have before their ending, such as `_leftImg8bit`.
        mask_suffix: What names of label maps have before their ending, such as `_mask`.

    Returns:
        Items with "image", "label" and "name", and what found no partner or several.
    """
    images, masks = list_images(image_root), list_images(mask_root)
    if image_root.resolve() == mask_root.resolve():
        images = [path for path in images if not (mask_suffix and path.stem.endswith(mask_suffix))]
        masks = [path for path in masks if mask_suffix and path.stem.endswith(mask_suffix)]
    problems: list[Problem] = []
    by_image = _by_key(images, image_root, image_suffix, "picture", problems)
    by_mask = _by_key(masks, mask_root, mask_suffix, "label map", problems)
    items = []
    for key, path in by_image.items():
        if key in by_mask:
            items.append({"image": str(path), "label": str(by_mask[key]), "name": key})
        else:
            problems.append(
                Problem("missing pair", str(path), f"has no label map {key}{mask_suffix}.* in {mask_root}; add it")
            )
    for key, path in by_mask.items():
        if key not in by_image:
            reason = f"has no picture {key}{image_suffix}.* in {image_root}; add it or remove the label map"
            problems.append(Problem("missing pair", str(path), reason))
    return items, problems


def _by_key(paths: Sequence[Path], root: Path, suffix: str, what: str, problems: list[Problem]) -> dict[str, Path]:
    """Index files by what pictures and label maps share of their names; those that lack the suffix are left out."""
    index: dict[str, Path] = {}
    for path in paths:
        name = item_name(path, root)
        if suffix and not name.endswith(suffix):
            continue
        # Systems write the same accented letter in one sign or in two.
        key = unicodedata.normalize("NFC", name.removesuffix(suffix))
        if key in index:
            reason = f"has the name of another {what}, {index[key].name}, but for the ending; remove one of them"
            problems.append(Problem("ambiguous pair", str(path), reason))
        else:
            index[key] = path
    return index
