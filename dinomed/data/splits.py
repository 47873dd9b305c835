"""Splits of a series table into training, validation and test: by patient, else by study, stratified by label."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.data.series_checks import Series
from dinomed.data.series_table import PARTS, SeriesTable, problems_csv, require_usable
from dinomed.data.stratification import Answers, stratify
from dinomed.errors import InputError, OutputError
from dinomed.transforms.volume_checks import excerpt, shown

FRACTIONS = (0.7, 0.15, 0.15)
SPLIT_FILE, SUMMARY_FILE, PROBLEMS_FILE = "split.csv", "split_summary.json", "problems.csv"


@dataclass(frozen=True, eq=False)
class Split:
    """A table whose series have parts.

    Attributes:
        table: The table; every one of its series names its part.
        groups: Patient or study of each series, by row.
        fractions: Wanted sizes of the parts; None where the table itself named the parts.
        seed: Of the split; None where the table itself named the parts.
    """

    table: SeriesTable
    groups: Mapping[int, str]
    fractions: tuple[float, ...] | None
    seed: int | None

    def series(self, part: str) -> list[Series]:
        """The series of a part, in the table's order.

        Raises:
            InputError: If there is no such part, or it is empty.
        """
        if part not in PARTS:
            raise InputError(f"part {part!r} is unknown; choose from {', '.join(PARTS)}")
        found = [each for each in self.table.series if each.part == part]
        if not found:
            raise InputError(f"{shown(self.table.path)} has no series in the part {part}; give some, or split it anew")
        return found


def split_table(table: SeriesTable, fractions: Sequence[float] = FRACTIONS, seed: int = 42) -> Split:
    """Give every series a part; one that the table names is not asked.

    A group, that is a patient where the table knows it and else a study, has a label if one of its series has. The
    order of the rows has no influence.

    Args:
        table: What was read.
        fractions: Sizes of training, validation and test; they sum to 1.
        seed: Of the split.

    Raises:
        InputError: If the table cannot be used, or fractions or seed make no sense.
    """
    require_usable(table, "split")
    shares = check_fractions(fractions)
    if type(seed) is not int or seed < 0:
        raise InputError(f"seed is {seed!r}; give a whole number from 0 on")
    groups = group_series(table)
    names = sorted(set(groups.values()))
    used = sum(share > 0 for share in shares)
    if len(names) < used:
        raise InputError(
            f"{shown(table.path)} has {len(names)} patients or studies that can be used, too few for {used} parts; "
            "give more, or set fractions of 0 for parts that are not needed"
        )
    parts = stratify(group_answers(table.series, groups, names), shares, seed)
    part_of = {name: PARTS[part] for name, part in zip(names, parts, strict=True)}
    series = tuple(replace(each, part=part_of[groups[each.row]]) for each in table.series)
    return Split(replace(table, series=series), groups, shares, seed)


def split_of(
    table: SeriesTable, fractions: Sequence[float] = FRACTIONS, seed: int = 42, one_class: bool = False
) -> Split:
    """Take the parts that a table names, or split it where it names none.

    Args:
        table: What was read.
        fractions: Sizes of training, validation and test, where it is split.
        seed: Of the split.
        one_class: Whether a table with parts is good enough whose labels have one value only.

    Raises:
        InputError: As `split_table`, or if a patient, or a study, is in several parts.
    """
    if not table.has_parts:
        return split_table(table, fractions, seed)
    require_usable(table, one_class=one_class)
    groups = group_series(table)
    parts_of: dict[str, set[str]] = defaultdict(set)
    for each in table.series:
        parts_of[groups[each.row]].add(each.part)
    if twice := sorted(name for name, parts in parts_of.items() if len(parts) > 1):
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise InputError(
            f"{shown(table.path)}: {', '.join(excerpt(name) for name in twice[:5])}{more} in more than one part, so "
            "that the test would know its answers; give each patient, each study and all copies of one scan one part, "
            "or remove the column part"
        )
    return Split(table, groups, None, None)


def check_fractions(fractions: Any) -> tuple[float, ...]:
    """Check the sizes of the parts.

    Raises:
        InputError: If they are not three numbers from 0 on that sum to 1, the first above 0.
    """
    given = list(fractions) if isinstance(fractions, (list, tuple)) else []
    numbers = [each for each in given if isinstance(each, (int, float)) and not isinstance(each, bool)]
    sound = len(numbers) == len(given) == len(PARTS) and all(0 <= each <= 1 for each in numbers)
    if not sound or not math.isclose(sum(numbers), 1.0, abs_tol=1e-6) or numbers[0] <= 0:
        raise InputError(f"fractions must be the shares of {', '.join(PARTS)}, such as 0.7,0.15,0.15, not {fractions}")
    return tuple(float(each) for each in numbers)


def group_series(table: SeriesTable) -> dict[int, str]:
    """Name each series' group by its row: the patient where any row of the table knows one, else the study.

    Studies with copies of one scan are one group, and so are patients whom studies or copies bind together. Rows that
    are left out count too: what they say of patients and copies must not tear a group apart.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := leader.setdefault(name, name)) != name:
            leader[name] = leader[above]
            name = above
        return name

    for one, other in table.links:
        first, second = sorted((find(one), find(other)), key=lambda name: (name.startswith("scan "), name))
        leader[second] = first  # a patient gives the name before a study, and never a scan
    return {each.row: find(f"study {each.study_uid}") for each in table.series}


def group_names(series: Series, group: str) -> list[str]:
    """Names of whom a series belongs to, by which it is known again in another table: its group, study and patient."""
    patient = [f"patient {series.patient_id}"] if series.patient_id else []
    return sorted({group, f"study {series.study_uid}", *patient})


def group_answers(series: Sequence[Series], groups: Mapping[int, str], names: Sequence[str]) -> Answers:
    """Whether any series of a group has each label, (groups, labels) of 0 and 1."""
    place = {name: index for index, name in enumerate(names)}
    answers = np.zeros((len(names), len(series[0].labels)), np.int64)
    for each in series:
        row = place[groups[each.row]]
        answers[row] = np.maximum(answers[row], each.labels)
    return answers


def summarise(split: Split) -> dict[str, Any]:
    """What a split is, in plain values: per part and label the series and groups with and without it."""
    table = split.table
    parts = {part: [each for each in table.series if each.part == part] for part in PARTS}
    remarks: list[str] = []
    groups = {part: len({split.groups[each.row] for each in series}) for part, series in parts.items()}
    summary: dict[str, Any] = {
        "table": table.path.name,
        "labels": list(table.labels),
        "seed": split.seed,
        "fractions": None if split.fractions is None else dict(zip(PARTS, split.fractions, strict=True)),
        "grouped_by": dict(sorted(Counter(name.split(" ")[0] for name in set(split.groups.values())).items())),
        "rows": table.rows,
        "used": len(table.series),
        "parts": {
            part: {
                "series": len(series),
                "groups": groups[part],
                "share": round(groups[part] / max(1, sum(groups.values())), 4),
                "labels": {name: _of_label(split, series, k) for k, name in enumerate(table.labels)},
            }
            for part, series in parts.items()
        },
        "remarks": remarks,
        "left_out": [
            {"row": each.row, "series_uid": each.series_uid, "what": each.what, "fix": each.fix}
            for each in table.problems
            if each.row is not None and not each.remark
        ],
    }
    present = [part for part in PARTS if parts[part]]
    for name in table.labels:
        for kind in ("positive", "negative"):
            counts = {part: summary["parts"][part]["labels"][name][f"{kind}_groups"] for part in present}
            if empty := [part for part, count in counts.items() if not count]:
                total = sum(counts.values())
                remarks.append(f"{name}: no {kind} groups in {', '.join(empty)} ({total} in all, {len(present)} parts)")
    return summary


def _of_label(split: Split, series: Sequence[Series], k: int) -> dict[str, int]:
    positive = [each for each in series if each.labels[k]]
    groups, with_it = ({split.groups[each.row] for each in some} for some in (series, positive))
    return {
        "positives": len(positive),
        "negatives": len(series) - len(positive),
        "positive_groups": len(with_it),
        "negative_groups": len(groups) - len(with_it),
    }


def write_split(split: Split, folder: str | Path, rebase: bool = False) -> dict[str, Any]:
    """Write split.csv, split_summary.json and problems.csv.

    Args:
        split: What was split.
        folder: Where the files go.
        rebase: Whether relative paths of scans are made relative to the folder, so that the new table can be used
            without a `data_root`.

    Returns:
        The summary.

    Raises:
        InputError: If one of the files is the table itself.
        OutputError: If a file cannot be written.
    """
    place = Path(folder)
    keep_table(split.table.path, place)
    summary = summarise(split)
    write_text(place / SPLIT_FILE, _split_csv(split, place if rebase else None))
    write_text(place / PROBLEMS_FILE, problems_csv(split.table.problems))
    write_text(place / SUMMARY_FILE, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def keep_table(table: str | Path, folder: str | Path) -> None:
    """Refuse to write a split over the table that it is made of.

    Args:
        table: The table.
        folder: Where the split's files go.

    Raises:
        InputError: If one of them is the table.
    """
    for name in (SPLIT_FILE, SUMMARY_FILE, PROBLEMS_FILE):
        target = Path(folder) / name
        if target.exists() and target.samefile(Path(table).expanduser()):
            raise InputError(f"{shown(target)} is the table itself, which a split would overwrite; name another folder")


def _split_csv(split: Split, folder: Path | None) -> str:
    columns = [column for column in split.table.columns if column not in ("", "part")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, "part"])
    for each in split.table.series:
        cells = dict(zip(split.table.columns, each.cells, strict=True))
        if folder is not None and not Path(each.nifti_path).expanduser().is_absolute():
            cells["nifti_path"] = os.path.relpath(each.path, folder)
        writer.writerow([*(cells[column] for column in columns), each.part])
    return stream.getvalue()


def write_text(path: Path, content: str) -> None:
    """Write through a temporary name.

    Raises:
        OutputError: If that fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8", newline="")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{shown(path)} cannot be written ({error.strerror}); name another folder") from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
