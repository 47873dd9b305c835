"""Rows of labelled pictures as folders, CSV and JSON name them; what the labels mean is the business of others."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.data.datasets.image_files import is_image_name, list_images
from dinomed.data.datasets.item_list import DELIMITERS, read_json
from dinomed.errors import InputError

LABEL = "label"
"""Column of the class, and name of the only task where there is one."""

OWN_COLUMNS = ("image", "name", "split", "patient")
PARTS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders, of JSON's lists and in the column `split`, and the part that each means."""


@dataclass(frozen=True)
class LabelledRow:
    """A picture as its source names it.

    Attributes:
        where: The folder, or the list with line or number, for messages.
        image: The file, which may be absent.
        cells: What stands beside it, by column.
        name: Name of the item, by default the file's path as the source has it.
        part: "training", "validation", "test", or empty where the source does not say.
        patient: Pictures of one patient stay together; empty where unknown.
    """

    where: str
    image: Path
    cells: Mapping[str, Any]
    name: str
    part: str = ""
    patient: str = ""


def read_rows(source: str | os.PathLike[str]) -> list[LabelledRow]:
    """Read all rows of a folder with a folder for each class, perhaps within `train` and `val`, or of a list.

    Raises:
        InputError: If there is nothing, it is no list, or it names no pictures.
    """
    place = Path(source)
    if not place.exists():
        raise InputError(f"there is no file or folder {place}; check the path (dataset_dir in the bundles)")
    rows = _folder_rows(place) if place.is_dir() else _list_rows(place)
    if not rows:
        what = "has no rows below its header" if place.is_file() else "holds no folder with pictures for each class"
        raise InputError(f"{place} {what}; give a folder with train/CLASS/*.jpg, or a CSV or JSON list with pictures")
    return rows


def _folder_rows(root: Path) -> list[LabelledRow]:
    """Return the pictures of all classes of all parts."""
    parts = {name: PARTS[name.lower()] for name in _folders(root) if name.lower() in PARTS}
    if "training" not in parts.values():  # a class may be called `test`
        parts = {"": ""} if len(parts) < len(_folders(root)) else parts
    rows = []
    for folder, part in parts.items():
        place = root / folder
        for stray in sorted(place.iterdir()):
            if stray.is_file() and is_image_name(stray.name):
                raise InputError(f"{stray} lies in no class's folder; move it into one, or remove it")
        for name in _folders(place):
            rows += [
                LabelledRow(str(place / name), path, {LABEL: name}, path.relative_to(root).as_posix(), part)
                for path in list_images(place / name)
            ]
    return rows


def _folders(place: Path) -> list[str]:
    return sorted(each.name for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))


def _list_rows(path: Path) -> list[LabelledRow]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        content = read_json(path)
        lists = content if isinstance(content, dict) else {"": content}
        named = {key: rows for key, rows in lists.items() if not key or key.lower() in PARTS}
        if not named:
            raise InputError(f"{path} holds no list of items; write a list of objects with image and label")
        found = [
            _row(path, f"{path} {key or 'item'} {number}", cells, key)
            for key, rows in named.items()
            for number, cells in enumerate(_objects(path, rows), start=1)
        ]
    elif suffix in (".csv", ".tsv"):
        found = [_row(path, f"{path} line {line}", cells, "") for line, cells in _csv_cells(path)]
    else:
        raise InputError(f"{path} is no data set of labelled pictures; name a folder, or a CSV or JSON list")
    return found


def _objects(path: Path, rows: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is no list of items; write a list of objects with image and label")
    return rows


def _csv_cells(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the line number and the cells of each row; wholly empty ones are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and your rights") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8; save it as CSV in UTF-8") from error
    if not text.strip():
        raise InputError(f"{path} is empty; write a header such as image,label and a row for each picture")
    header = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        _check_columns(path, columns)
        reader.fieldnames = columns
        found = []
        for cells in reader:
            if None in cells or None in cells.values():
                raise InputError(
                    f"{path} line {reader.line_num} has not as many cells as the header's {len(columns)}; correct it"
                )
            found.append((reader.line_num, cells))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is no CSV ({error}); correct it") from error
    return found


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(f"{path} has the column {twice[0]!r} more than once; name each column once")
    if "image" not in columns:
        raise InputError(
            f"{path} has no column image in its first line, but {', '.join(columns[:8])}; name the columns image,label"
        )


def _row(path: Path, where: str, cells: Mapping[str, Any], split: str) -> LabelledRow:
    """Turn the cells of a row into what they mean, labels aside."""
    image = cells.get("image")
    if not isinstance(image, str) or not image.strip():
        raise InputError(f"{where} names no picture; fill image")
    given = str(cells.get("split") or split).strip()
    if given and given.lower() not in PARTS:
        raise InputError(f"{where} has the split {given!r}; write one of {', '.join(sorted(PARTS))}")
    place = Path(image.strip())
    return LabelledRow(
        where=where,
        image=path.parent / place,
        cells={key: value for key, value in cells.items() if key not in OWN_COLUMNS},
        name=str(cells.get("name") or place.as_posix()),
        part=PARTS[given.lower()] if given else "",
        patient=str(cells.get("patient") or ""),
    )
