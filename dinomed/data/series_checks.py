"""What can be wrong between the rows of a series table, and with the files that they name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom

from dinomed.errors import VolumeError
from dinomed.transforms.dicom_series import is_dicom_file
from dinomed.transforms.provenance import scan_sha256
from dinomed.transforms.volume_checks import cause_of, excerpt, refusal
from dinomed.transforms.volume_reading import read_grid, read_volume

CHECKS = ("nothing", "header", "voxels")
MARK_DIGITS = 32
DICOM_NAMES = ("StudyInstanceUID", "PatientID")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a table.

    Attributes:
        row: Number of the row, the header being row 1; None for the whole table.
        series_uid: As the row says it.
        what: What is wrong.
        fix: What to do.
        fatal: Whether the table cannot be used before it is put right.
        remark: Whether the row is used all the same.
    """

    row: int | None
    series_uid: str
    what: str
    fix: str
    fatal: bool = False
    remark: bool = False

    def sentence(self) -> str:
        """All of it as one sentence."""
        where = "the table" if self.row is None else f"row {self.row}"
        name = f" ({excerpt(self.series_uid)})" if self.series_uid else ""
        return f"{where}{name}: {self.what}; {self.fix}"


@dataclass(frozen=True, eq=False)
class Series:
    """One row of a table.

    Attributes:
        row: Its number, the header being row 1.
        study_uid: Of the study.
        series_uid: Of the series.
        patient_id: Empty where it is not known.
        nifti_path: The scan as the table names it.
        path: The scan.
        labels: 0 or 1 for each label.
        part: Of the split, empty where the table says none.
        cells: The row as it was read.
    """

    row: int
    study_uid: str
    series_uid: str
    patient_id: str
    nifti_path: str
    path: Path
    labels: tuple[int, ...]
    part: str
    cells: tuple[str, ...]


def find_conflicts(series: Sequence[Series]) -> list[Problem]:
    """Find rows that contradict each other: everything that a table alone can tell.

    Of rows that say the same twice the first one is kept; of rows that contradict each other none is.
    """
    found = [*_repeated_uids(series), *_one_file_twice(series)]
    for study, rows in _grouped(series, lambda each: each.study_uid).items():
        patients = sorted({each.patient_id for each in rows if each.patient_id})
        if len(patients) > 1:
            what = f"study {excerpt(study)} belongs to {len(patients)} patients"
            found += [Problem(each.row, each.series_uid, what, "correct patient_id or study_uid") for each in rows]
    return found


def _grouped(series: Sequence[Series], key: Callable[[Series], Hashable]) -> dict[Hashable, list[Series]]:
    groups: dict[Hashable, list[Series]] = defaultdict(list)
    for each in series:
        groups[key(each)].append(each)
    return groups


def _repeated_uids(series: Sequence[Series]) -> Iterator[Problem]:
    for rows in _grouped(series, lambda each: each.series_uid).values():
        if len(rows) < 2:
            continue
        same = len({(each.study_uid, each.patient_id, each.nifti_path, each.labels) for each in rows}) == 1
        others = f"also row {rows[0].row}" if same else f"rows {_numbers(rows)} differ"
        for each in rows[1:] if same else rows:
            fix = "remove the repeated row" if same else "give each series a series_uid of its own"
            yield Problem(each.row, each.series_uid, f"series_uid is listed {len(rows)} times ({others})", fix)


def _one_file_twice(series: Sequence[Series]) -> Iterator[Problem]:
    for rows in _grouped(series, lambda each: os.path.realpath(each.path)).values():
        if len({each.series_uid for each in rows}) > 1:
            yield from _same_scan(rows, "the file")


def _same_scan(rows: Sequence[Series], what: str) -> Iterator[Problem]:
    """Say what is wrong with rows of one scan."""
    studies, patients = ({getattr(each, name) for each in rows} for name in ("study_uid", "patient_id"))
    numbers = _numbers(rows)
    if len(patients) > 1:
        wrong, fix, bad = f"{what} is listed under {len(patients)} patients", "keep the row that is right", rows
    elif len(studies) > 1:
        wrong, fix, bad = f"{what} is listed under {len(studies)} studies", "keep the row that is right", rows
    elif len({each.labels for each in rows}) > 1:
        wrong, fix, bad = (
            f"{what} is listed {len(rows)} times with different labels",
            "keep the row that is right",
            rows,
        )
    else:
        wrong, fix, bad = f"{what} is listed {len(rows)} times", "remove the repeated row", rows[1:]
    for each in bad:
        yield Problem(each.row, each.series_uid, f"{wrong} (rows {numbers})", fix)


def _numbers(rows: Sequence[Series]) -> str:
    numbers = [str(each.row) for each in rows]
    return ", ".join(numbers[:5]) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def find_unreadable(series: Sequence[Series], check: str, workers: int = 8) -> list[Problem]:
    """Find scans that are missing or broken, and those that disagree with what the table says of them.

    Args:
        series: The rows.
        check: "nothing" looks at no file, "header" reads headers, "voxels" everything.
        workers: Threads.
    """
    if check == "nothing":
        return []
    read = read_grid if check == "header" else read_volume
    paths = {os.path.realpath(each.path): each.path for each in series}

    def refusal_of(path: Path) -> str:
        try:
            read(path)
        except VolumeError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(workers) as pool:
        refusals = dict(zip(paths, pool.map(refusal_of, paths.values()), strict=True))
        sound = [each for each in series if not refusals[os.path.realpath(each.path)]]
        marks = dict(zip([each.row for each in sound], pool.map(_mark_or_none, sound), strict=True))
        names = dict(zip([each.row for each in sound], pool.map(_dicom_names, sound), strict=True))
    found = []
    for each in series:
        if said := refusals[os.path.realpath(each.path)]:
            what, _, fix = said.partition("; ")
            found.append(Problem(each.row, each.series_uid, what, fix or "correct nifti_path or the file"))
    for rows in _grouped(sound, lambda each: marks[each.row] or each.row).values():
        if len({os.path.realpath(each.path) for each in rows}) > 1:
            # Copies may be meant, such as a blank scan; one that lies in two parts of a split spoils its test.
            found += [replace(each, remark=True) for each in _same_scan(rows, "one scan, in copies,")]
    return found + _foreign_files(sound, names)


def _foreign_files(series: Sequence[Series], names: dict[int, tuple[str, str]]) -> list[Problem]:
    """Find studies of the table that mix the files of several DICOM studies or patients, and the reverse.

    The table may name studies as it likes, but one name must stand for one study of the files.
    """
    known = [each for each in series if names[each.row][0]]
    found: dict[int, Problem] = {}
    for rows in _grouped(known, lambda each: each.study_uid).values():
        for position, noun in ((0, "studies"), (1, "patients")):
            if (count := len({names[each.row][position] for each in rows} - {""})) > 1:
                for each in rows:
                    what = f"the DICOM files of study {excerpt(each.study_uid)} belong to {count} {noun}"
                    found[each.row] = Problem(each.row, each.series_uid, what, "correct study_uid or nifti_path")
    for rows in _grouped(known, lambda each: names[each.row][0]).values():
        if (count := len({each.study_uid for each in rows})) > 1:
            for each in rows:
                what = f"files of one DICOM study are listed under {count} studies (rows {_numbers(rows)})"
                found[each.row] = Problem(each.row, each.series_uid, what, "correct study_uid or nifti_path")
    return list(found.values())


def _dicom_names(series: Series) -> tuple[str, str]:
    """StudyInstanceUID and PatientID of a DICOM series, only to be compared; empty where there are none."""
    path = series.path
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if is_dicom_file(each))
        if not files:
            return "", ""
        path = files[0]
    elif not is_dicom_file(path):
        return "", ""
    try:
        header = pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "PatientID"], force=True
        )
        return str(header.get(DICOM_NAMES[0], "")), str(header.get(DICOM_NAMES[1], ""))
    except Exception:  # what else is wrong with it is told by who reads its voxels
        return "", ""


def _mark_or_none(series: Series) -> str | None:
    try:
        return content_mark(series.path)
    except VolumeError:
        return None


def content_mark(path: str | os.PathLike[str]) -> str:
    """Mark by which a scan is known again whatever it is called: 32 hexadecimal digits of a checksum of all its files.

    Raises:
        VolumeError: If a file cannot be read.
    """
    place = Path(path)
    try:
        checksum = scan_sha256(place)
    except OSError as error:
        raise refusal(place, f"cannot be read ({cause_of(error)})", "check the path and your rights") from error
    if checksum is None:
        raise refusal(place, "has voxels in files that are not found", "put all files of the scan into one folder")
    return checksum[:MARK_DIGITS]
