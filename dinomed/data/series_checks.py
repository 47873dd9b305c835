"""What can be wrong between the rows of a series table, and with the files that they name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pydicom

from dinomed.errors import VolumeError
from dinomed.transforms.dicom_series import is_dicom_file
from dinomed.transforms.hounsfield import NO_HU, TO_HU, hounsfield_doubt
from dinomed.transforms.provenance import scan_sha256
from dinomed.transforms.volume_checks import cause_of, excerpt, refusal
from dinomed.transforms.volume_reading import Volume, read_grid, read_volume

CHECKS = ("nothing", "header", "voxels")
MARK_DIGITS = 32
TO_3D = "convert it to a three-dimensional volume first"
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
            yield from _same_file(rows)


def _same_file(rows: Sequence[Series]) -> Iterator[Problem]:
    """Say what is wrong with rows of one file."""
    studies, patients = ({getattr(each, name) for each in rows} for name in ("study_uid", "patient_id"))
    numbers = _numbers(rows)
    right = "keep the row that is right"
    if len(patients) > 1:
        wrong, fix, bad = f"the file is listed under {len(patients)} patients", right, rows
    elif len(studies) > 1:
        wrong, fix, bad = f"the file is listed under {len(studies)} studies", right, rows
    elif len({each.labels for each in rows}) > 1:
        wrong, fix, bad = f"the file is listed {len(rows)} times with different labels", right, rows
    else:
        wrong, fix, bad = f"the file is listed {len(rows)} times", "remove the repeated row", rows[1:]
    for each in bad:
        yield Problem(each.row, each.series_uid, f"{wrong} (rows {numbers})", fix)


def _numbers(rows: Sequence[Series]) -> str:
    numbers = [str(each.row) for each in rows]
    return ", ".join(numbers[:5]) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def find_unreadable(series: Sequence[Series], check: str, workers: int = 8) -> tuple[list[Problem], dict[int, str]]:
    """Find scans that are missing or broken, and those that disagree with what the table says of them.

    Args:
        series: The rows.
        check: "nothing" looks at no file, "header" reads headers, "voxels" everything.
        workers: Threads.

    Returns:
        The problems, and the marks (`content_mark`) of the scans that can be read, by row.
    """
    if check == "nothing":
        return [], {}
    read = read_grid if check == "header" else read_volume
    places = {each.row: os.path.realpath(each.path) for each in series}
    paths = {places[each.row]: each.path for each in series}

    def look(path: Path) -> tuple[str, str, tuple[str, str], str | None]:
        try:
            scan = read(path)
            doubt = hounsfield_doubt(scan.array) if isinstance(scan, Volume) else None
            return "", content_mark(path), _dicom_names(path), doubt
        except VolumeError as error:
            return str(error), "", ("", ""), None

    with ThreadPoolExecutor(workers) as pool:
        looks = dict(zip(paths, pool.map(look, paths.values()), strict=True))
    found = []
    for each in series:
        if said := looks[places[each.row]][0]:
            what, _, fix = without_frames(said).partition("; ")
            found.append(Problem(each.row, each.series_uid, what, fix or "correct nifti_path or the file"))
        elif doubt := looks[places[each.row]][3]:
            found.append(Problem(each.row, each.series_uid, doubt, TO_HU, remark=True))
    sound = [each for each in series if not looks[places[each.row]][0]]
    names = {each.row: looks[places[each.row]][2] for each in sound}
    marks = {each.row: looks[places[each.row]][1] for each in sound}
    return [*found, *_foreign_files(sound, names), *_shared_patients(sound, names)], marks


def doubtful_rows(problems: Sequence[Problem]) -> set[int]:
    """Rows that are used although the values of their scans are hardly Hounsfield units."""
    return {each.row for each in problems if each.row is not None and each.remark and each.what.startswith(NO_HU)}


def without_frames(said: str) -> str:
    """What is wrong with a scan, without the advice to choose a frame, which nobody can give here."""
    what, _, fix = said.partition("; ")
    return f"{what}; {TO_3D}" if "--frame" in fix else said


def find_copies(series: Sequence[Series], marks: Mapping[int, str]) -> Iterator[Problem]:
    """Find copies of one scan in several files.

    Copies that agree are used, because they may be meant, and only remarked; a split keeps them together.

    Args:
        series: Rows that can be used so far.
        marks: Of the scans by row.
    """
    known = [each for each in series if each.row in marks]
    for rows in _grouped(known, lambda each: marks[each.row]).values():
        if len({os.path.realpath(each.path) for each in rows}) < 2:
            continue
        studies = len({each.study_uid for each in rows})
        patients = len({each.patient_id for each in rows} - {""})
        remark = patients < 2 and len({each.labels for each in rows}) == 1
        if patients > 1:
            said, fix = f"is listed under {patients} patients", "keep the row that is right"
        elif not remark:
            said, fix = f"is listed {len(rows)} times with different labels", "keep the row that is right"
        else:
            said = f"is listed under {studies} studies" if studies > 1 else f"is listed {len(rows)} times"
            fix = "it is used, and stays in one part of a split; remove the copies if they are not meant"
        for each in rows:
            what = f"one scan, in copies, {said} (rows {_numbers(rows)})"
            yield Problem(each.row, each.series_uid, what, fix, remark=remark)


def _shared_patients(series: Sequence[Series], names: Mapping[int, tuple[str, str]]) -> Iterator[Problem]:
    """Remark studies whose DICOM files name one patient while the table names none for them."""
    nameless = [each for each in series if names[each.row][1] and not each.patient_id]
    for rows in _grouped(nameless, lambda each: names[each.row][1]).values():
        if (count := len({each.study_uid for each in rows})) > 1:
            what = f"DICOM files of {count} studies name one patient, and the table none (rows {_numbers(rows)})"
            fix = "fill in patient_id if that is so, or else a split may tear the patient apart"
            yield Problem(rows[0].row, rows[0].series_uid, what, fix, remark=True)


def _foreign_files(series: Sequence[Series], names: Mapping[int, tuple[str, str]]) -> list[Problem]:
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


def _dicom_names(path: Path) -> tuple[str, str]:
    """StudyInstanceUID and PatientID of a DICOM series, only to be compared; empty where there are none."""
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
