"""Recognises the layout of a folder or file and opens the data sets in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dinomed.data.datasets.ade20k import ADE20KFolder
from dinomed.data.datasets.coco import CocoSegmentation, is_coco_content
from dinomed.data.datasets.image_dataset import ImageDataset
from dinomed.data.datasets.image_files import is_image_name
from dinomed.data.datasets.image_folder import ImageFolder
from dinomed.data.datasets.image_mask_folder import ImageMaskFolder
from dinomed.data.datasets.item_list import ItemList, has_label_columns, read_json, splits_of
from dinomed.data.datasets.unlabelled import UnlabelledImages
from dinomed.errors import InputError

LAYOUTS = ("ade20k", "coco", "image-mask", "image-folder", "list", "labelled", "unlabelled")
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "SegmentationClass", "ann", "gt")
MASK_SUFFIXES = ("_mask", "_label", "_labels", "_seg", "_gt")

Opener = Callable[[Path, dict[str, Any]], list[ImageDataset]]


def open_datasets(path: str | os.PathLike[str], layout: str = "auto", **options: Any) -> list[ImageDataset]:
    """Open the data sets in a folder, or of a COCO file or list: one per split.

    Args:
        path: Folder or file.
        layout: One of `LAYOUTS`, or "auto" to recognise it.
        options: For the data sets' constructors; each takes those that it knows.

    Raises:
        InputError: If nothing is there, nothing is recognised, or a data set cannot be opened.
    """
    place = Path(path)
    if layout not in ("auto", *LAYOUTS):
        raise InputError(f"there is no layout {layout!r}; choose from auto, {', '.join(LAYOUTS)}")
    if not place.exists():
        raise InputError(f"there is no file or folder {place}; check the path")
    if options.get("task") is not None and layout in ("auto", "image-folder", "list"):
        layout = "labelled"
    found = layout if layout != "auto" else recognise(place)
    return _OPENERS[found](place, options)


def recognise(place: Path) -> str:
    """Name the layout of a folder or file.

    Raises:
        InputError: If it is none that is known.
    """
    if place.is_file():
        return _recognise_file(place)
    if any(
        (place / "images" / split).is_dir() and (place / "annotations" / split).is_dir()
        for split in ("training", "validation")
    ):
        return "ade20k"
    if any((place / "annotations").glob("instances_*.json")):
        return "coco"
    if _split_folders(place):
        return recognise(place / _split_folders(place)[0])
    if _mask_folders(place) or _mask_suffix(place):
        return "image-mask"
    if any(is_image_name(each.name) for each in place.iterdir() if each.is_file()):
        return "unlabelled"
    holding = [name for name in _folder_names(place) if _holds_images(place / name)]
    if holding and not set(holding) <= set(IMAGE_FOLDERS):
        return "image-folder"
    if holding:
        return "unlabelled"
    lists = [each for each in place.iterdir() if each.suffix.lower() in (".csv", ".tsv", ".json")]
    hint = f"name a list in it, such as {lists[0]}" if lists else "see docs/data.md for the layouts, or pass --layout"
    raise InputError(f"{place} holds no data set of a known layout; {hint}")


def _recognise_file(place: Path) -> str:
    suffix = place.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "labelled" if has_label_columns(place) else "list"
    if suffix == ".json":
        content = read_json(place)
        if isinstance(content, dict) and is_coco_content(content):
            return "coco"
        return "labelled" if has_label_columns(place) else "list"
    if is_image_name(place.name):
        return "unlabelled"
    raise InputError(f"{place} is no data set; name a folder, a COCO file, a CSV or JSON list, or a picture")


def _split_folders(place: Path) -> list[str]:
    """Return the splits, if a folder holds nothing but splits."""
    folders = _folder_names(place)
    if not folders or not all(name.lower() in SPLITS for name in folders):
        return []
    return sorted(folders, key=lambda name: SPLITS.index(name.lower()))


def _mask_folders(place: Path) -> tuple[str, str] | None:
    """Return the names of the folders of pictures and of label maps below a folder."""
    for images in IMAGE_FOLDERS:
        for masks in MASK_FOLDERS:
            # Label maps that are all missing are a finding; folders of other files, such as boxes as text, are not.
            if (place / images).is_dir() and (place / masks).is_dir() and _may_hold_images(place / masks):
                return images, masks
    return None


def _mask_suffix(place: Path) -> str:
    """Return the suffix by which label maps that lie among their pictures are told apart."""
    stems = {each.stem for each in place.iterdir() if each.is_file() and is_image_name(each.name)}
    for suffix in MASK_SUFFIXES:
        if any(stem.endswith(suffix) and stem.removesuffix(suffix) in stems for stem in stems):
            return suffix
    return ""


def _holds_images(folder: Path) -> bool:
    return any(is_image_name(name) for _, _, names in os.walk(folder) for name in names)


def _may_hold_images(folder: Path) -> bool:
    """Whether a folder holds pictures, or nothing at all."""
    return _holds_images(folder) or not any(names for _, _, names in os.walk(folder))


def _chosen(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}


def _open_ade20k(place: Path, options: dict[str, Any]) -> list[ImageDataset]:
    kept = _chosen(options, "class_names", "num_classes", "reduce_zero_label", "ignore_index", "strict")
    if options.get("split"):
        return [ADE20KFolder(place, options["split"], **kept)]
    if not (place / "images").is_dir():
        raise InputError(f"{place} has no folder images; ADE20K's layout is images/training and annotations/training")
    opened: list[ImageDataset] = []
    for folder in sorted(each for each in (place / "images").iterdir() if each.is_dir()):
        if folder.name.startswith("test") and not (place / "annotations" / folder.name).is_dir():
            opened.append(UnlabelledImages(folder, split=folder.name))
        else:
            opened.append(ADE20KFolder(place, folder.name, **kept))
    return opened


def _open_coco(place: Path, options: dict[str, Any]) -> list[ImageDataset]:
    kept = _chosen(options, "image_dir", "cache_dir", "classes", "ignore_index", "strict")
    files = [place] if place.is_file() else sorted((place / "annotations").glob("instances_*.json"))
    if not files:
        raise InputError(f"{place} has no annotations/instances_*.json; name the JSON file itself")
    return [CocoSegmentation(file, **kept) for file in files]


def _open_list(place: Path, options: dict[str, Any]) -> list[ImageDataset]:
    if not place.is_file():
        raise InputError(f"{place} is a folder; name the CSV or JSON list itself")
    kept = _chosen(options, "class_names", "num_classes", "reduce_zero_label", "label_values", "ignore_index", "strict")
    splits = [options["split"]] if options.get("split") else splits_of(place)
    return [ItemList(place, split, **kept) for split in splits]


def _per_split(open_one: Callable[[Path, str, dict[str, Any]], ImageDataset]) -> Opener:
    """Open a folder, or each split in it."""

    def open_all(place: Path, options: dict[str, Any]) -> list[ImageDataset]:
        if not place.is_dir():
            raise InputError(f"{place} is a file; name the folder of the data set")
        splits = _split_folders(place)
        if options.get("split"):
            splits = [options["split"]]
        return [open_one(place / split, split, options) for split in splits] or [open_one(place, "", options)]

    return open_all


def _open_image_mask(place: Path, split: str, options: dict[str, Any]) -> ImageDataset:
    kept = _chosen(
        options,
        *("image_suffix", "mask_suffix", "class_names", "num_classes", "reduce_zero_label", "label_values"),
        *("ignore_index", "strict"),
    )
    folders, suffix = _mask_folders(place), options.get("mask_suffix") or _mask_suffix(place)
    if options.get("image_dir") and options.get("mask_dir"):
        return ImageMaskFolder(options["image_dir"], options["mask_dir"], split=split, **kept)
    if folders:
        return ImageMaskFolder(place / folders[0], place / folders[1], split=split, **kept)
    if suffix:
        return ImageMaskFolder(place, place, split=split, **{**kept, "mask_suffix": suffix})
    if split and (split.lower() in ("test", "testing")):
        return UnlabelledImages(place, split=split)
    raise InputError(
        f"{place} has no folders of pictures and label maps, such as images and masks; name both "
        "(--images and --masks), or the suffix of the label maps (--mask-suffix)"
    )


def _open_image_folder(place: Path, split: str, options: dict[str, Any]) -> ImageDataset:
    if not place.is_dir():
        raise InputError(f"there is no folder {place}; check the path")
    if not _folder_names(place):
        return UnlabelledImages(place, split=split)
    kept = _chosen(options, "class_names", "strict")
    splits = _split_folders(place.parent) if split else []
    if "class_names" not in kept and splits and splits[0] != split:  # the classes are those of the training part
        kept["class_names"] = _folder_names(place.parent / splits[0])
    return ImageFolder(place, split=split, **kept)


def _open_labelled(place: Path, options: dict[str, Any]) -> list[ImageDataset]:
    from dinomed.data.datasets.labelled_images import open_labelled_parts  # needs torch, which nothing else here does

    kind = options.get("task") or ("multilabel" if place.is_file() and has_label_columns(place) else "multiclass")
    opened = open_labelled_parts(place, kind, options.get("class_names"))
    if not options.get("split"):
        return list(opened)
    if chosen := [each for each in opened if each.split == options["split"]]:
        return list(chosen)
    raise InputError(
        f"{place} has no part {options['split']!r} for a classifier; it has {', '.join(each.split for each in opened)}"
    )


def _folder_names(place: Path) -> list[str]:
    return sorted(each.name for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))


def _open_unlabelled(place: Path, options: dict[str, Any]) -> list[ImageDataset]:
    return [UnlabelledImages(place, **_chosen(options, "split"))]


_OPENERS: dict[str, Opener] = {
    "ade20k": _open_ade20k,
    "coco": _open_coco,
    "image-mask": _per_split(_open_image_mask),
    "image-folder": _per_split(_open_image_folder),
    "list": _open_list,
    "labelled": _open_labelled,
    "unlabelled": _open_unlabelled,
}
