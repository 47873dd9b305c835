"""Lists of pictures as CSV or JSON, with paths relative to the list."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinomed.data.datasets.image_dataset import ImageDataset, LabelReading, Problem, Task
from dinomed.data.datasets.image_files import is_image_name
from dinomed.errors import InputError
from dinomed.transforms.image_reading import IGNORE_INDEX

DELIMITERS = (",", ";", "\t")


class ItemList(ImageDataset):
    """Pictures named in a file, with a label map, a class or nothing each.

    CSV files have a header with `image` and, as wanted, `label`, `name` and `split`. JSON files hold a list of such
    objects, or an object with one list per split, as MONAI's data lists do. A `label` that ends like a picture is the
    path of a label map; anything else is a class, a number or a name. All labels of a list are of one kind.

    Args:
        path: The list.
        split: Which part to take; by default all of a CSV file, and of a JSON object the only list or "training".
        class_names: Names of the classes 0, 1, ...; by default, for classes by name, the names sorted.
        num_classes: Number of classes; by default that of the names, or unknown.
        reduce_zero_label: Whether 0 in label maps means no class, so that 1 becomes class 0.
        label_values: Numbers in label maps to replace, such as {255: 1}.
        ignore_index: Number of the pixels that count nowhere.
        strict: Whether files that are missing are an error; otherwise their rows are left out.

    Raises:
        InputError: If the list cannot be read, lacks a column or mixes kinds of labels or, with `strict`, names files
            that are not there.
    """

    layout = "list"

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "",
        class_names: Sequence[str] = (),
        num_classes: int | None = None,
        reduce_zero_label: bool = False,
        label_values: Mapping[int, int] | None = None,
        ignore_index: int = IGNORE_INDEX,
        strict: bool = True,
    ) -> None:
        place = Path(path)
        rows = _rows_of(place, split)
        task = _task_of(place, rows)
        names = list(class_names)
        if task == "classification" and not names and not all(_is_number(row.get("label")) for row in _labelled(rows)):
            names = sorted({str(row["label"]) for row in _labelled(rows)})
        items: list[dict[str, Any]] = []
        problems: list[Problem] = []
        for number, row in enumerate(rows, start=1):
            item, problem = _item(place, number, row, task, names)
            if problem is None:
                items.append(item)
            else:
                problems.append(problem)
        super().__init__(
            source=str(place),
            items=items,
            task=task,
            split=split,
            class_names=names,
            num_classes=num_classes,
            reading=LabelReading(reduce_zero_label, label_values, ignore_index),
            problems=problems,
            strict=strict,
        )


def splits_of(path: Path) -> list[str]:
    """Name the parts of a list: its lists in JSON, the values of `split` in CSV; one empty name where there are none.

    Raises:
        InputError: If the list cannot be read.
    """
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, dict):
            return [key for key, value in content.items() if _is_item_list(value)] or [""]
        rows = content
    else:
        rows = _csv_rows(path)
    found = dict.fromkeys(str(row.get("split") or "") for row in rows if isinstance(row, dict))
    return list(found) or [""]


def has_label_columns(path: Path) -> bool:
    """Whether a list has several labels a picture: columns `label_NAME`, or in JSON a list of names as `label`.

    Raises:
        InputError: If the list cannot be read.
    """
    rows = [row for split in splits_of(path) for row in _rows_of(path, split)]
    return any(isinstance(row.get("label"), list) or any(str(key).startswith("label_") for key in row) for row in rows)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: If there is no such file or it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and your rights") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON file ({error}); get it again") from error


def _is_item_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "image" in value[0]


def _rows_of(path: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows of one split."""
    if path.suffix.lower() != ".json":
        return _of_split(path, _csv_rows(path), split)
    content = read_json(path)
    if isinstance(content, dict):
        names = [key for key, value in content.items() if _is_item_list(value)]
        chosen = split or (names[0] if len(names) == 1 else "training")
        if chosen not in names:
            raise InputError(
                f"{path} has no list {chosen!r} of items with `image`; it has {', '.join(names) or 'none'}"
            )
        content = content[chosen]
        split = ""
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(f"{path} is no list of items; write a list of objects with `image` and `label`")
    return _of_split(path, content, split)


def _of_split(path: Path, rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    kept = [row for row in rows if not split or str(row.get("split") or "") == split]
    if split and not kept:
        raise InputError(f"{path} has no rows whose split is {split!r}; see its column `split`")
    return kept


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and your rights") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8; save it as CSV in UTF-8") from error
    header = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows = [{(key or "").strip().lower(): value for key, value in row.items()} for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is no CSV ({error}); correct it") from error
    if "image" not in [(name or "").strip().lower() for name in reader.fieldnames or ()]:
        raise InputError(f"{path} has no column `image` in its first line; name the columns image,label")
    return rows


def _labelled(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("label") not in (None, "")]


def _task_of(path: Path, rows: Sequence[Mapping[str, Any]]) -> Task:
    """Say what the labels are."""
    labelled = _labelled(rows)
    maps = sum(isinstance(row["label"], str) and is_image_name(Path(row["label"]).name) for row in labelled)
    if not labelled:
        return "unlabelled"
    if 0 < maps < len(labelled):
        raise InputError(f"{path} names {maps} label maps and {len(labelled) - maps} classes; make two lists of it")
    return "segmentation" if maps else "classification"


def _is_number(label: Any) -> bool:
    return not isinstance(label, bool) and (isinstance(label, int) or str(label).strip().isdecimal())


def _name_of(image: Path) -> str:
    """Name an item by its path; results are named so too and must stay below their folder."""
    outside = image.is_absolute() or ".." in image.parts
    return image.stem if outside else image.with_suffix("").as_posix()


def _item(
    path: Path, number: int, row: Mapping[str, Any], task: Task, names: Sequence[str]
) -> tuple[dict[str, Any], Problem | None]:
    """Turn a row into an item, or say what is wrong with it."""
    where = f"{path} row {number}"
    image, label = row.get("image"), row.get("label")
    if not image or not isinstance(image, str):
        return {}, Problem("missing pair", where, "names no picture; fill `image`")
    item: dict[str, Any] = {"image": str(path.parent / image)}
    item["name"] = str(row.get("name") or _name_of(Path(image)))
    if not Path(item["image"]).is_file():
        return {}, Problem("missing pair", where, f"names {item['image']}, which is not there; correct the path")
    if task == "unlabelled":
        return item, None
    if label in (None, ""):
        return {}, Problem("missing pair", where, "has no label; fill it, or list pictures without labels apart")
    if task == "segmentation":
        item["label"] = str(path.parent / str(label))
        if not Path(item["label"]).is_file():
            return {}, Problem("missing pair", where, f"names {item['label']}, which is not there; correct the path")
    elif str(label) in names:
        item["label"] = list(names).index(str(label))
    elif _is_number(label):
        item["label"] = int(label)
    else:
        return {}, Problem("label out of range", where, f"has the class {label!r}, which is not among the class names")
    return item, None
