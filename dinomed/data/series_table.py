"""Tables of CT series with labels: reading one, and saying of every bad row what is wrong with it.

One row is a series: `rel_dir, study_uid, series_uid, nifti_path`, one column `label_NAME` for each label, and, as
wanted, `patient_id` and `part`. `docs/classification.md` describes the columns.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinomed.data.series_checks import CHECKS, Problem, Series, find_conflicts, find_copies, find_unreadable
from dinomed.errors import InputError
from dinomed.transforms.volume_checks import excerpt, shown

HEMORRHAGE_LABELS = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
PREFIX = "label_"
REQUIRED = ("study_uid", "series_uid", "nifti_path")
PARTS = ("train", "validation", "test")
OTHER_NAMES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
ANSWERS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
DELIMITERS = (",", ";", "\t")
BINARY = {
    b"PK\x03\x04": "a spreadsheet or ZIP archive",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"\x1f\x8b": "compressed",
}


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """A table that was read and checked.

    Attributes:
        path: The file.
        data_root: What relative paths of scans are relative to.
        labels: Names of the labels, without `label_`.
        columns: The file's own columns.
        series: The rows that can be used, in the file's order.
        problems: What is wrong, row by row; problems of the whole table come first.
        rows: How many rows the file has.
        links: Pairs of names, of study and patient or study and scan, that belong together by what any row says, also
            one that is left out.
    """

    path: Path
    data_root: Path
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    series: tuple[Series, ...]
    problems: tuple[Problem, ...]
    rows: int
    links: tuple[tuple[str, str], ...] = ()

    @property
    def has_parts(self) -> bool:
        """Whether the table says which part of a split each series belongs to."""
        return "part" in self.columns


def read_series_table(
    path: str | Path,
    labels: Sequence[str] = HEMORRHAGE_LABELS,
    data_root: str | Path | None = None,
    check: str = "header",
    ignore_parts: bool = False,
    workers: int = 8,
) -> SeriesTable:
    """Read a table and check every row.

    Args:
        path: CSV with a header; commas, semicolons or tabs; UTF-8, or UTF-16 with its mark.
        labels: Names of the labels that the table must have.
        data_root: Folder that relative paths of scans are relative to; None: the table's own folder.
        check: What of a scan is read: "nothing", its "header", or all of its "voxels".
        ignore_parts: Whether a column `part` is not read, as before a new split.
        workers: Threads that look at scans.

    Raises:
        InputError: If there is no such table, it is no text, empty, or has no label column.
    """
    place = Path(path).expanduser()
    if check not in CHECKS:
        raise InputError(f"check {check!r} is unknown; choose from {', '.join(CHECKS)}")
    if not isinstance(labels, (list, tuple)) or not all(isinstance(name, str) and name for name in labels):
        raise InputError(f"labels must be a list of names, not {labels!r}")
    if not labels or len(set(labels)) != len(labels):
        raise InputError(f"labels must be names, each once, not {', '.join(labels) or 'none'}")
    columns, rows = _rows_of(place)
    root = place.parent if data_root is None else Path(data_root).expanduser()
    if not root.is_dir():
        raise InputError(f"data_root {shown(root)} is no folder; name the folder that nifti_path is relative to")
    problems = _column_problems(place, columns, labels)
    if ignore_parts:
        columns = tuple("" if column == "part" else column for column in columns)
    read: list[Series] = []
    links: set[tuple[str, str]] = set()
    for number, row in rows:
        links |= _patient_link(row, columns)
        series, found = _series_of(number, row, columns, labels, root)
        problems += found
        if series is not None:
            read.append(series)
    bad = {problem.row for problem in problems}
    problems += find_conflicts([series for series in read if series.row not in bad])
    found, marks = find_unreadable(read, check, workers)
    problems += found
    problems += find_copies([series for series in read if series.row not in _bad_rows(problems)], marks)
    links |= {(f"study {each.study_uid}", f"scan {marks[each.row]}") for each in read if each.row in marks}
    bad = _bad_rows(problems)
    lacking = any(problem.fatal for problem in problems)
    good = () if lacking else tuple(series for series in read if series.row not in bad)
    ordered = tuple(sorted(problems, key=lambda problem: problem.row or 0))
    return SeriesTable(place, root, tuple(labels), columns, good, ordered, len(rows), tuple(sorted(links)))


def _bad_rows(problems: Sequence[Problem]) -> set[int | None]:
    return {problem.row for problem in problems if not problem.remark}


def _patient_link(row: Sequence[str], columns: Sequence[str]) -> set[tuple[str, str]]:
    """Study and patient of a row, where it names both; empty where its cells are not those of the columns."""
    if any(cell.strip() for cell in row[len(columns) :]):
        return set()
    cells = {column: cell.strip() for column, cell in zip(columns, row, strict=False)}
    study, patient = cells.get("study_uid"), cells.get("patient_id")
    return {(f"study {study}", f"patient {patient}")} if study and patient else set()


def require_usable(table: SeriesTable, what: str = "trained on", one_class: bool = False) -> None:
    """Refuse a table that nothing can be trained or split on.

    Args:
        table: As it was read.
        what: What cannot be done with it.
        one_class: Whether a table is good enough whose labels have one value only.

    Raises:
        InputError: If a column is missing, no row is left, or every label has one value only.
    """
    heads = [problem for problem in table.problems if problem.row is None and problem.fatal]
    if heads:
        raise InputError(f"{shown(table.path)}: {'; '.join(f'{each.what} ({each.fix})' for each in heads)}")
    if not table.series:
        raise InputError(
            f"{shown(table.path)}: none of its {table.rows} rows can be used; the first problem is: "
            f"{table.problems[0].sentence()}"
        )
    if not one_class and all(len({series.labels[k] for series in table.series}) == 1 for k in range(len(table.labels))):
        raise InputError(
            f"{shown(table.path)}: every label has one value only in the {len(table.series)} rows that can be used, so "
            f"nothing can be {what}; give series with and without a finding"
        )


def problems_csv(problems: Sequence[Problem]) -> str:
    """Write problems as CSV: row (the header is row 1), series_uid, what, fix."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "series_uid", "what", "fix"])
    for problem in problems:
        writer.writerow(["" if problem.row is None else problem.row, problem.series_uid, problem.what, problem.fix])
    return stream.getvalue()


def decode_table(path: Path) -> str:
    """Read the text of a table.

    Raises:
        InputError: If it cannot be read or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"table {shown(path)} cannot be read ({error.strerror}); check the path") from error
    for magic, kind in BINARY.items():
        if content.startswith(magic):
            raise InputError(f"{shown(path)} is {kind}, no CSV; export the table as CSV (UTF-8)")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is no UTF-8 text (byte {error.start}); export it as CSV (UTF-8)") from error
    if "\0" in text:
        raise InputError(f"{shown(path)} holds zero bytes and is no text; export the table as CSV (UTF-8)")
    return text


def _rows_of(path: Path) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """Columns, and the rows that are not blank with their numbers, the header being row 1."""
    text = decode_table(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{shown(path)} is no sound CSV ({error}); look for an open quote") from error
    filled = [(number, row) for number, row in enumerate(rows, start=1) if any(cell.strip() for cell in row)]
    if not filled:
        raise InputError(f"table {shown(path)} is empty; give a CSV with a header and one row for each series")
    columns = tuple(cell.strip() for cell in filled[0][1])
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise InputError(f"{shown(path)} has the column {', '.join(twice)} more than once; keep one of each")
    if not any(column.startswith(PREFIX) for column in columns):
        raise InputError(
            f"{shown(path)} has no label column, only {excerpt(', '.join(columns), 200)}; add one {PREFIX}NAME "
            "for each label, with 0 or 1 (is the first row the header?)"
        )
    if len(filled) == 1:
        raise InputError(f"table {shown(path)} is empty below its header; give one row for each series")
    return columns, filled[1:]


def _column_problems(path: Path, columns: Sequence[str], labels: Sequence[str]) -> list[Problem]:
    wanted = [f"{PREFIX}{name}" for name in labels]
    found = [
        Problem(None, "", f"column {column} is missing", _add(column, columns, [*REQUIRED, *wanted]), fatal=True)
        for column in (*REQUIRED, *wanted)
        if column not in columns
    ]
    if "rel_dir" not in columns:
        found.append(Problem(None, "", "column rel_dir is missing", "nothing here needs it; add it for other tools"))
    for column in columns:
        if column.startswith(PREFIX) and column not in wanted:
            fix = f"its values are left out; the labels are {', '.join(labels)}: rename it, or set labels"
            found.append(Problem(None, "", f"column {excerpt(column)} is no label of the bundle", fix))
    return found


def _add(column: str, columns: Sequence[str], known: Sequence[str]) -> str:
    others = [each for each in columns if each not in known]
    close = difflib.get_close_matches(column, others, n=1, cutoff=0.75)
    return f"rename {excerpt(close[0])}" if close else "add it"


def _series_of(
    number: int, row: Sequence[str], columns: Sequence[str], labels: Sequence[str], root: Path
) -> tuple[Series | None, list[Problem]]:
    """Read a row; None where it cannot even be compared with others."""
    if len(row) > len(columns) and any(cell.strip() for cell in row[len(columns) :]):
        what = f"has {len(row)} fields, the header {len(columns)}"
        return None, [Problem(number, "", what, "quote fields that hold the delimiter")]
    cells = {column: cell.strip() for column, cell in zip(columns, row, strict=False) if column}
    uid = cells.get("series_uid", "")
    found = [
        Problem(number, uid, f"{column} is empty", "fill it in")
        for column in REQUIRED
        if column in columns and not cells.get(column)
    ]
    values, wrong = _labels_of(number, uid, cells, columns, labels)
    part = cells.get("part", "").lower()
    part = OTHER_NAMES.get(part, part)
    if "part" in columns and part not in PARTS:
        found.append(Problem(number, uid, f"part is {excerpt(part) or 'empty'}", f"write {', '.join(PARTS)}"))
    given = cells.get("nifti_path", "")
    if "\0" in given or not (given and uid and cells.get("study_uid")):
        return None, found + wrong
    path = Path(given).expanduser()
    series = Series(
        row=number,
        study_uid=cells["study_uid"],
        series_uid=uid,
        patient_id=cells.get("patient_id", ""),
        nifti_path=given,
        path=path if path.is_absolute() else root / path,
        labels=values,
        part=part if "part" in columns else "",
        cells=tuple(cells.get(column, "") for column in columns),
    )
    return series, found + wrong


def _labels_of(
    number: int, uid: str, cells: Mapping[str, str], columns: Sequence[str], labels: Sequence[str]
) -> tuple[tuple[int, ...], list[Problem]]:
    """Values of the labels, and what is wrong with them; a value that is wrong counts as 0."""
    found, values = [], []
    for name in labels:
        text = cells.get(f"{PREFIX}{name}", "")
        values.append(ANSWERS.get(text, 0))
        if f"{PREFIX}{name}" in columns and text not in ANSWERS:
            said = f"is {excerpt(text)!r}" if text else "is empty"
            found.append(Problem(number, uid, f"{PREFIX}{name} {said}", "write 0 or 1"))
    kinds = [name for name, value in zip(labels, values, strict=True) if value and name != "any"]
    if not found and "any" in labels and kinds and not values[list(labels).index("any")]:
        what = f"label_any is 0, but {', '.join(PREFIX + name for name in kinds)} is 1"
        found.append(Problem(number, uid, what, "correct one of them: any means any of the kinds"))
    return tuple(values), found
