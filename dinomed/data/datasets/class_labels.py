"""What the labels of listed pictures mean: a class, several labels, or a class for each of several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinomed.data.datasets.image_dataset import Problem
from dinomed.data.datasets.labelled_rows import LABEL, LabelledRow
from dinomed.errors import InputError

KINDS = ("multiclass", "multilabel", "multitask")
PREFIX = "label_"
YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")

Labels = dict[str, tuple[str, ...]]
"""Names of an item's classes as its source has them, by task; a single task is called `LABEL`."""

Found = tuple[LabelledRow, Labels]
Classes = dict[str, dict[str, str]]
"""By task: shown name of each class by its name in the source, in the order of their numbers."""

ClassNames = Sequence[str] | Mapping[str, Any] | None


@dataclass(frozen=True)
class ReadLabels:
    """The labels of a source.

    Attributes:
        found: Rows with their labels.
        problems: What is wrong with the others.
        tasks: Names of the tasks.
        declared: Labels that the source names in its columns, whether a row has them or not; empty where it does not.
    """

    found: list[Found]
    problems: list[Problem]
    tasks: tuple[str, ...]
    declared: tuple[str, ...] = ()


def read_labels(source: str, rows: Sequence[LabelledRow], kind: str, targets: Sequence[str] | None) -> ReadLabels:
    """Read the labels of all rows.

    Args:
        source: For messages.
        rows: As `read_rows` gives them.
        kind: One of `KINDS`.
        targets: Columns of the labels or tasks; None finds them by their names.

    Raises:
        InputError: If the source has no such columns.
    """
    columns = _target_columns(source, rows, kind, targets)
    mixed = [column for column in columns if _mixes_truth_and_numbers(rows, column)]
    found: list[Found] = []
    problems: list[Problem] = []
    for row in rows:
        try:
            for column in mixed if kind != "multilabel" else ():
                if isinstance(row.cells.get(column), bool):
                    raise InputError(f"has {row.cells[column]} as {column}, other rows have numbers; write one of both")
            found.append((row, _labels_of(row, kind, columns)))
        except InputError as error:
            problems.append(Problem("broken annotation", row.where, str(error)))
    flags = kind == "multilabel" and columns != [LABEL]
    declared = tuple(column.removeprefix(PREFIX) for column in columns) if flags else ()
    return ReadLabels(found, problems, tuple(columns) if kind == "multitask" else (LABEL,), declared)


def _target_columns(source: str, rows: Sequence[LabelledRow], kind: str, targets: Sequence[str] | None) -> list[str]:
    """Find the columns in which the labels stand."""
    columns = list(dict.fromkeys(column for row in rows for column in row.cells if column))
    if targets is not None:
        if isinstance(targets, str) or not targets or (kind == "multiclass" and len(targets) != 1):
            raise InputError(
                f"targets is {targets!r}; give a list of columns, of which multiclass takes one, or null to find them"
            )
        if absent := [name for name in targets if name not in columns]:
            raise InputError(
                f"{source} has no column {absent[0]!r}; it has {', '.join(columns) or 'none beside image'}, see targets"
            )
        return list(targets)
    flags = [column for column in columns if column.startswith(PREFIX)]
    if kind == "multitask":
        wanted = columns
    elif kind == "multilabel":
        wanted = flags or [column for column in columns if column == LABEL]
    else:
        wanted = [column for column in columns if column == LABEL]
    if not wanted:
        needed = {
            "multiclass": "a column label with the class",
            "multilabel": "columns label_NAME of 0 and 1, or in JSON a list of names as label",
            "multitask": "a column for each task",
        }[kind]
        hint = "; with label_ columns set task to multilabel" if flags else ""
        raise InputError(
            f"{source} has the columns {', '.join(['image', *columns])}, but {kind} needs {needed}; name the columns "
            f"so, or list them in targets{hint}"
        )
    return wanted


def _labels_of(row: LabelledRow, kind: str, columns: Sequence[str]) -> Labels:
    """Read the labels of a row.

    Raises:
        InputError: If a cell is empty or cannot be understood; the sentence goes on behind the row's place.
    """
    if kind == "multitask":
        return {column: (_class_of(row.cells.get(column), column),) for column in columns}
    if kind == "multiclass":
        return {LABEL: (_class_of(row.cells.get(columns[0]), columns[0]),)}
    if list(columns) == [LABEL]:
        listed = row.cells.get(LABEL)
        if isinstance(listed, str) and listed.strip():
            listed = [listed]
        if not isinstance(listed, (list, tuple)):
            raise InputError(f"has the label {listed!r}; write a list of names, an empty one for none")
        return {LABEL: tuple(dict.fromkeys(_class_of(each, LABEL) for each in listed))}
    return {LABEL: tuple(column.removeprefix(PREFIX) for column in columns if _flag(row.cells.get(column), column))}


def _mixes_truth_and_numbers(rows: Sequence[LabelledRow], column: str) -> bool:
    """Whether JSON has both true and 1 as a column's classes, which may mean the same or not."""
    kinds = {type(row.cells.get(column)) for row in rows}
    return bool in kinds and bool(kinds & {int, float})


def _class_of(cell: Any, column: str) -> str:
    if isinstance(cell, (list, tuple)):
        raise InputError(f"has a list as {column}; write one class, or set task to multilabel")
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # 1 and 1.0 are one class
    if cell is not None and not isinstance(cell, (str, int)):
        raise InputError(f"has {cell!r} as {column}; write a name or a whole number")
    text = "" if cell is None else str(cell).strip()
    if not text:
        raise InputError(f"has no {column}; fill it, or remove the row")
    return text


def _flag(cell: Any, column: str) -> bool:
    text = str(cell).strip().lower()
    if text not in (*YES, *NO):
        raise InputError(f"has {cell!r} as {column}; write 0 or 1")
    return text in YES


def find_classes(
    source: str, read: ReadLabels, kind: str, class_names: ClassNames, training: Sequence[Found]
) -> Classes:
    """Number the classes of each task.

    Args:
        source: For messages.
        read: The labels of the source.
        kind: One of `KINDS`.
        class_names: As for `open_labelled_images`.
        training: Rows whose classes count where no names are given.

    Raises:
        InputError: If the names are no names, a name stands for two classes, or tasks differ.
    """
    if kind != "multitask":
        seen = set(read.declared) or {raw for _, labels in training for raw in labels[LABEL]}
        names = _numbered(source, seen, class_names, read.declared)
        if absent := [raw for raw in names if read.declared and raw not in read.declared]:
            raise InputError(
                f"{source} has no column of the label {absent[0]!r} ({PREFIX}{absent[0]}), but of "
                f"{', '.join(read.declared)}; add it, as an absent label is not known to be 0 (see class_names)"
            )
        return {LABEL: names}
    given: Mapping[str, Any] = {}
    if class_names is not None:
        if not isinstance(class_names, Mapping) or set(class_names) != set(read.tasks):
            raise InputError(
                f"class_names must map each of the tasks {', '.join(read.tasks)} to its classes (or be null), not "
                f"{class_names!r}"
            )
        given = class_names
    return {
        task: _numbered(source, {labels[task][0] for _, labels in training}, given.get(task), ())
        for task in (given or read.tasks)
    }


def _numbered(source: str, seen: set[str], class_names: ClassNames, declared: Sequence[str]) -> dict[str, str]:
    """Return shown names by names in the source, in the order of the classes' numbers."""
    listed: list[str] = []
    if class_names is None:
        whole = all(raw.isdecimal() for raw in seen)
        names = {raw: raw for raw in declared or sorted(seen, key=(lambda raw: (int(raw), raw)) if whole else None)}
    elif isinstance(class_names, Mapping):
        names = {str(raw): str(shown) for raw, shown in class_names.items()}
        if not seen & set(names) and seen & set(names.values()):  # the source has the shown names already
            names = {shown: shown for shown in names.values()}
    elif isinstance(class_names, str) or not isinstance(class_names, Sequence):
        raise InputError(f"class_names is {class_names!r}; give a list of names, a mapping to shown names, or null")
    else:
        listed = [str(name) for name in class_names]
        numbered = [str(number) for number in range(len(listed))]
        # Numbers stand for the names in their order, unless the names are such numbers themselves.
        names = dict(zip(numbered if seen and seen <= set(numbered) - set(listed) else listed, listed, strict=True))
    shown = list(names.values()) if len(names) == len(listed or names) else listed
    if twice := sorted({name for name in shown if shown.count(name) > 1}):
        raise InputError(
            f"{source}: two classes are called {twice[0]!r}; give each class a name of its own (class_names)"
        )
    if not names:
        raise InputError(f"{source} has no classes; see class_names and the labels")
    if unwritable := [name for name in (*names, *names.values()) if not _is_unicode(name)]:
        raise InputError(
            f"{source}: the class {unwritable[0]!a} has a name that is no Unicode text, so that no report could name "
            "it; rename its folder or label"
        )
    return names


def _is_unicode(text: str) -> bool:
    """Whether a text can be written; bytes of a folder's name that are no UTF-8 are lone surrogates in Python."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
