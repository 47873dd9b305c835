"""Rows of labelled pictures as folders, CSV and JSON name them; what the labels mean is the business of others."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.data.datasets.image_dataset import Problem
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


def read_rows(source: str | os.PathLike[str]) -> tuple[list[LabelledRow], list[Problem]]:
    """Read all rows of a folder with a folder for each class, perhaps within `train` and `val`, or of a list.

    Returns:
        The rows, and what is wrong with others and with folders.

    Raises:
        InputError: If there is nothing, it is no list, or it names no pictures.
    """
    place = Path(source)
    if not place.exists():
        raise InputError(f"there is no file or folder {place}; check the path (dataset_dir in the bundles)")
    rows, problems = _folder_rows(place) if place.is_dir() else _list_rows(place)
    if not rows and problems and place.is_file():
        raise InputError(f"{problems[0].file} {problems[0].reason}; no row of {place} can be used")
    if not rows:
        what = "has no rows below its header" if place.is_file() else "holds no folder with pictures for each class"
        raise InputError(f"{place} {what}; give a folder with train/CLASS/*.jpg, or a CSV or JSON list with pictures")
    return rows, problems


def _folder_rows(root: Path) -> tuple[list[LabelledRow], list[Problem]]:
    """Return the pictures of all classes of all parts."""
    folders = _folders(root)
    parts = {name: PARTS[name.lower()] for name in folders if name.lower() in PARTS}
    if not any(part == "training" and _folders(root / name) for name, part in parts.items()):
        parts = {"": ""} if len(parts) < len(folders) else parts  # a class may be called `test` or `train`
    problems = [
        Problem("missing pair", str(root / name), "is no part's folder, but holds pictures; call it train, val or test")
        for name in folders
        if "" not in parts and name not in parts and list_images(root / name)
    ]
    rows = []
    for folder, part in parts.items():
        place = root / folder
        for stray in sorted(place.iterdir()):
            if stray.is_file() and is_image_name(stray.name):
                raise InputError(f"{stray} lies in no class's folder; move it into one, or remove it")
        classes = _folders(place)
        if part and not classes:
            problems.append(Problem("missing pair", str(place), "holds no folder of a class; fill it, or remove it"))
        for name in classes:
            found = list_images(place / name)
            if not found:
                said = "is a class's folder without pictures; add some, or remove it"
                problems.append(Problem("missing pair", str(place / name), said))
            rows += [
                LabelledRow(str(place / name), path, {LABEL: name}, path.relative_to(root).as_posix(), part)
                for path in found
            ]
    return rows, problems


def _folders(place: Path) -> list[str]:
    return sorted(each.name for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))


def _list_rows(path: Path) -> tuple[list[LabelledRow], list[Problem]]:
    suffix = path.suffix.lower()
    listed: list[tuple[str, Mapping[str, Any], str]]
    if suffix == ".json":
        content = read_json(path)
        lists = content if isinstance(content, dict) else {"": content}
        named = {key: rows for key, rows in lists.items() if not key or key.lower() in PARTS}
        if not named:
            raise InputError(f"{path} holds no list of items; write a list of objects with image and label")
        listed = [
            (f"{path} {key or 'item'} {number}", cells, key)
            for key, rows in named.items()
            for number, cells in enumerate(_objects(path, rows), start=1)
        ]
    elif suffix in (".csv", ".tsv"):
        listed = [(f"{path} line {line}", cells, "") for line, cells in _csv_cells(path)]
    else:
        raise InputError(f"{path} is no data set of labelled pictures; name a folder, or a CSV or JSON list")
    found: list[LabelledRow] = []
    problems: list[Problem] = []
    for where, cells, split in listed:
        try:
            found.append(_row(path, where, cells, split))
        except InputError as error:
            problems.append(Problem("broken annotation", where, str(error)))
    if any(row.part for row in found):
        said = "has no split, though other rows have one; write train, val or test"
        problems += [Problem("broken annotation", row.where, said) for row in found if not row.part]
        found = [row for row in found if row.part]
    return found, problems


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
        found = [(reader.line_num, cells) for cells in reader]
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


def _row(path: Path, where: str, cells: Mapping[Any, Any], split: str) -> LabelledRow:
    """Turn the cells of a row into what they mean, labels aside.

    Raises:
        InputError: If a cell cannot be understood; the sentence goes on behind the row's place.
    """
    if path.suffix.lower() != ".json" and (None in cells or None in cells.values()):
        raise InputError(f"has not as many cells as the header's {len(cells.keys() - {None})}; correct it")
    image = cells.get("image")
    if not isinstance(image, str) or not image.strip():
        raise InputError("names no picture; fill image")
    if not _is_path(image):
        raise InputError(f"names the picture {image!a}, which is no path; correct it")
    given = _text(cells.get("split")) or split
    if given and given.lower() not in PARTS:
        raise InputError(f"has the split {given!r}; write one of {', '.join(sorted(PARTS))}")
    place = Path(image.strip())
    return LabelledRow(
        where=where,
        image=path.parent / place,
        cells={key: value for key, value in cells.items() if key not in OWN_COLUMNS},
        name=_text(cells.get("name")) or place.as_posix(),
        part=PARTS[given.lower()] if given else "",
        patient=_text(cells.get("patient")),
    )


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
