"""Scans with their label maps: folders whose files share names, single files, or a JSON list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinomed.errors import InputError
from dinomed.transforms.volumes import case_name, find_volumes

Pair = dict[str, str]


def list_pairs(
    source: str | Path,
    split: str = "training",
    validation_cases: Sequence[str] = (),
    images: str | Path | None = None,
    labels: str | Path | None = None,
) -> list[Pair]:
    """List scans with their label maps, sorted by name.

    A JSON list holds one list for each split, as in the Medical Segmentation Decathlon: `{"training": [{"image": PATH,
    "label": PATH}, ...], "validation": [...]}`; paths start at the file's folder. Otherwise scans and label maps lie in
    two folders and share their names, or are one file each.

    Args:
        source: JSON list, or folder with the folders `images` and `labels`.
        split: "training" or "validation".
        validation_cases: Names of the cases kept for validation, without ending; in a JSON list they may have their
            own list. Where there are none at all, the training cases validate too, and say how well they are learnt by
            heart, nothing else.
        images: Folder of scans, or one scan, in place of `source`/images.
        labels: Folder of label maps, or one, in place of `source`/labels.

    Raises:
        InputError: If something is not there, has no partner, or nothing is left to train on.
    """
    root = Path(source).expanduser()
    if images is None and labels is None and root.suffix == ".json":
        lists = read_pair_lists(root)
    else:
        folders = [Path(root / name if given is None else given).expanduser() for name, given in _given(images, labels)]
        lists = {"training": match_pairs(*folders)}
    every = lists.get("training", [])
    wanted = {case_name(name) for name in validation_cases}
    missing = wanted - {case_name(pair["image"]) for pair in every}
    if missing:
        raise InputError(f"there is no case {', '.join(sorted(missing))} in {root}; correct validation_cases")
    kept = [pair for pair in every if case_name(pair["image"]) in wanted] + lists.get("validation", [])
    training = [pair for pair in every if case_name(pair["image"]) not in wanted]
    if not training:
        raise InputError(f"{root} leaves no case to train on; add cases or name fewer validation_cases")
    return training if split == "training" else kept or training


def _given(images: str | Path | None, labels: str | Path | None) -> list[tuple[str, str | Path | None]]:
    return [("images", images), ("labels", labels)]


def match_pairs(images: Path, labels: Path) -> list[Pair]:
    """Pair the scans of a folder with the label maps of another one by name; a file each is a pair by itself.

    Raises:
        InputError: If a folder or a partner is not there.
    """
    found = []
    for path, name in ((images, "images"), (labels, "labels")):
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder; set dataset_dir or {name} to what there is")
        found.append(find_volumes(path) if path.is_dir() else [path])
        if not found[-1]:
            raise InputError(f"{path}: no volumes here; set dataset_dir or {name} to where they are")
    scans, maps = found
    if len(scans) == len(maps) == 1:
        return [{"image": str(scans[0]), "label": str(maps[0])}]
    by_name = [{case_name(path): path for path in paths} for paths in found]
    for paths, names in zip(found, by_name, strict=True):
        if len(names) < len(paths):
            raise InputError(f"{paths[0].parent}: two files share a name; give each case a name of its own")
    lonely = sorted(by_name[0].keys() ^ by_name[1].keys())
    if lonely:
        raise InputError(
            f"{', '.join(lonely[:5])}{' and others' if len(lonely) > 5 else ''}: only in one of {images} and {labels}; "
            "each scan needs a label map of the same name"
        )
    return [{"image": str(path), "label": str(by_name[1][name])} for name, path in sorted(by_name[0].items())]


def read_pair_lists(path: Path) -> dict[str, list[Pair]]:
    """Read the lists of a JSON file.

    Raises:
        InputError: If it cannot be read, is built otherwise, or names a file that is not there.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a JSON list ({error}); correct dataset_dir or the file") from error
    lists: dict[str, list[Pair]] = {}
    for split in ("training", "validation"):
        entries = content.get(split, []) if isinstance(content, Mapping) else None
        if not isinstance(entries, list):
            raise InputError(f'{path} must hold {{"training": [{{"image": PATH, "label": PATH}}, ...]}}')
        lists[split] = [_entry(path, entry) for entry in entries]
    return lists


def _entry(path: Path, entry: Any) -> Pair:
    pair = {}
    for key in ("image", "label"):
        name = entry.get(key) if isinstance(entry, Mapping) else None
        if not isinstance(name, str):
            raise InputError(f"{path}: an entry lacks {key!r}: {entry!r}; each needs an image and a label")
        file = path.parent / name
        if not file.exists():
            raise InputError(f"{path} names {name}, which is not there; paths start at the folder of the list")
        pair[key] = str(file)
    return pair
