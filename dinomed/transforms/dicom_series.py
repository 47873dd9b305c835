"""A folder of DICOM files as one volume: which files belong together, in which order, on which grid.

The grid is built here from `ImagePositionPatient` and `ImageOrientationPatient`: the third column of the affine is the
step from slice to slice as it was measured, so that the shear of a tilted gantry stays in it.
Source: DICOM PS3.3, C.7.6.2 Image Plane Module and C.7.6.16 Multi-frame Functional Groups.

Nothing here reads, keeps or reports a patient's name, dates or free text.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.uid import MediaStorageDirectoryStorage

from dinomed.transforms.dicom_frames import Slice, slices_of
from dinomed.transforms.volume_checks import COPY_AGAIN, cause_of, excerpt, refusal, shown, two_dimensional

HEADER_TAGS = [
    "BitsAllocated",
    "BitsStored",
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "Modality",
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SharedFunctionalGroupsSequence",
]
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NO_UID = "not given"
MOST_SERIES_LISTED = 20
# Positions are often rounded to 0.1 mm, so even spacing can only be asked for within a part of the slice distance.
UNEVEN_LIMIT = 0.1
SAME_POSITION_MM = 0.01


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """The slices of one series in order.

    Attributes:
        path: What the user gave.
        slices: In the direction of the third voxel axis.
        shape: Numbers of voxels (columns, rows, slices).
        affine: Voxel to RAS+ mm (4, 4).
    """

    path: Path
    slices: tuple[Slice, ...]
    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]


def is_dicom_file(path: Path) -> bool:
    """Whether a regular file starts like DICOM: with its magic, or, without a preamble, with a first group of tags."""
    try:
        return _starts_like_dicom(path)
    except OSError:
        return False


def _starts_like_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(132)
    # Group 0008, elements 0000 to 001F, little-endian: how files begin that were stored without a preamble.
    starts_with_group_8 = head[:2] == b"\x08\0" and head[3:4] == b"\0" and head[2:3] < b"\x20"
    return head[128:132] == b"DICM" or (starts_with_group_8 and len(head) == 132)


def holds_dicom(folder: Path) -> bool:
    """Whether a DICOM file lies directly in a folder."""
    try:
        return any(is_dicom_file(path) for path in sorted(folder.iterdir()))
    except OSError:
        return False


def find_series(path: Path) -> DicomSeries:
    """Find the series in a folder, or the series that one of its files belongs to.

    Args:
        path: A folder with one series, or one DICOM file: then the other files of its series are taken from its folder.

    Raises:
        VolumeError: No images, several series (all are listed), or slices that form no regular grid.
    """
    with warnings.catch_warnings():  # pydicom warns of values while they are looked at
        warnings.simplefilter("ignore")
        if path.is_dir():
            chosen = _only_series(path, _images_by_series(path))
        else:
            uid = _series_uid(_read_header(path))
            chosen = _images_by_series(path.parent).get(uid, [])
            if not chosen:
                raise refusal(path, "is a DICOM file without an image", "give the files of a CT or MRI series")
        slices = [part for file, header in chosen for part in slices_of(file, header)]
    _check_alike(path, slices)
    ordered, affine = _stack(path, slices)
    return DicomSeries(path, tuple(ordered), (slices[0].columns, slices[0].rows, len(slices)), affine)


def _images_by_series(folder: Path) -> dict[str, list[tuple[Path, Any]]]:
    """Headers of all images that lie directly in a folder, by series; files of other kinds are passed over.

    Raises:
        VolumeError: A file that must be a slice is damaged: leaving it out would change the scan without a word.
    """
    series: dict[str, list[tuple[Path, Any]]] = {}
    others: list[tuple[Path, str]] = []
    for path in sorted(folder.iterdir()):
        if not _is_dicom_or_refused(path):
            continue
        header = _read_header(path)
        if "Rows" in header and "Columns" in header:
            series.setdefault(_series_uid(header), []).append((path, header))
        elif header.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:  # a report or a plan
            others.append((path, _series_uid(header)))
    for path, uid in others:
        if uid in series:
            raise refusal(path, "belongs to the series but holds no image size", COPY_AGAIN)
        if uid == NO_UID:
            raise refusal(path, "is a DICOM file without a series", "copy it again, or take it out of the folder")
    return series


def _is_dicom_or_refused(path: Path) -> bool:
    """Whether a file is DICOM; one that cannot be opened, or is so only by its name, may be a slice."""
    if path.name.startswith(".") or not path.is_file():
        return False
    try:
        is_dicom = _starts_like_dicom(path)
    except OSError as error:
        raise refusal(path, f"cannot be opened ({cause_of(error)})", "ask for the right to read it") from error
    if not is_dicom and path.suffix.lower() in DICOM_SUFFIXES:
        raise refusal(path, "is named like a DICOM file but is none", "copy it again, or take it out of the folder")
    return is_dicom


def _read_header(path: Path) -> Any:
    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        for name in HEADER_TAGS:  # values are parsed when they are first looked at
            getattr(header, name, None)
    except Exception as error:  # whatever pydicom makes of damaged elements
        raise refusal(path, f"cannot be read as DICOM ({cause_of(error)})", COPY_AGAIN) from error
    return header


def _series_uid(header: Any) -> str:
    return str(header.get("SeriesInstanceUID", "") or NO_UID)


def _only_series(folder: Path, series: dict[str, list[tuple[Path, Any]]]) -> list[tuple[Path, Any]]:
    if not series:
        inner = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and holds_dicom(path)]
        remedy = "give a NIfTI, NRRD, MetaImage or MGH file, or a folder with the files of one DICOM series"
        if inner:
            remedy = f"give one of its folders that do, such as {shown(inner[0])}"
        raise refusal(folder, "is a folder that holds no DICOM images", remedy)
    if len(series) > 1:
        listed = [
            f"series {excerpt(header.get('SeriesNumber') or '?')} ({excerpt(header.get('Modality') or '?')},"
            f" {len(images)} files, UID {excerpt(uid, 64)}, with {shown(images[0][0].name)})"
            for uid, images in list(series.items())[:MOST_SERIES_LISTED]
            for header in [images[0][1]]
        ]
        if len(series) > MOST_SERIES_LISTED:
            listed.append(f"and {len(series) - MOST_SERIES_LISTED} more")
        raise refusal(
            folder,
            f"holds {len(series)} DICOM series: {', '.join(listed)}",
            "give one file of the series that you want instead of the folder, or a folder with that series alone",
        )
    return next(iter(series.values()))


def _check_alike(path: Path, slices: Sequence[Slice]) -> None:
    """Refuse series whose slices cannot lie on one grid."""
    first = slices[0]
    for part in slices[1:]:
        remedy = "take the files that differ (often a localiser) out of the folder"
        if (part.rows, part.columns) != (first.rows, first.columns):
            sizes = f"{first.columns} x {first.rows} and {part.columns} x {part.rows}"
            raise refusal(path, f"mixes slices of {sizes} pixels ({first.name} and {part.name})", remedy)
        if not np.allclose(part.orientation, first.orientation, atol=1e-3):
            raise refusal(path, f"mixes slices of different orientation ({first.name} and {part.name})", remedy)
        if not np.allclose(part.spacing_mm, first.spacing_mm, rtol=1e-3, atol=0):
            raise refusal(path, f"mixes slices of different pixel spacing ({first.name} and {part.name})", remedy)
    if len(slices) < 2:
        raise two_dimensional(path, (first.columns, first.rows, 1))


def _stack(path: Path, slices: Sequence[Slice]) -> tuple[list[Slice], npt.NDArray[np.float64]]:
    """Order slices along their normal and build the affine, voxel (column, row, slice) to RAS+ mm."""
    along_row, along_column = slices[0].orientation[:3], slices[0].orientation[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if not np.allclose(lengths, 1.0, atol=0.01) or abs(along_row @ along_column) > 0.01:
        raise refusal(path, "has a damaged ImageOrientationPatient: no two right-angled unit vectors", COPY_AGAIN)
    normal = np.cross(along_row, along_column)
    order = np.argsort([part.position_mm @ normal for part in slices], kind="stable")
    ordered = [slices[index] for index in order]
    positions_mm = np.array([part.position_mm for part in ordered])
    _check_gaps(path, ordered, np.diff(positions_mm @ normal))
    step_mm = (positions_mm[-1] - positions_mm[0]) / (len(ordered) - 1)
    even = positions_mm[0] + np.arange(len(ordered))[:, None] * step_mm
    deviation_mm = positions_mm - even
    off_height_mm = np.abs(deviation_mm @ normal)
    off_line_mm = np.linalg.norm(deviation_mm - (deviation_mm @ normal)[:, None] * normal, axis=1)
    row_spacing_mm, column_spacing_mm = slices[0].spacing_mm
    worst = int(np.argmax(np.maximum(off_height_mm, off_line_mm)))
    if off_height_mm.max() > UNEVEN_LIMIT * (step_mm @ normal) or off_line_mm.max() > 0.5 * min(slices[0].spacing_mm):
        raise refusal(
            path,
            f"has slices that are not evenly spaced: {ordered[worst].name} lies"
            f" {np.linalg.norm(deviation_mm[worst]):.2f} mm away from a regular stack",
            "export the series again, or resample it to even slices first",
        )
    lps = np.eye(4)
    lps[:3, 0] = along_row * column_spacing_mm
    lps[:3, 1] = along_column * row_spacing_mm
    lps[:3, 2] = step_mm
    lps[:3, 3] = positions_mm[0]
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps + 0.0  # no negative zeros


def _check_gaps(path: Path, ordered: Sequence[Slice], gaps_mm: npt.NDArray[np.float64]) -> None:
    """Refuse repeated and missing slices; `gaps_mm` are the distances from each slice to the next."""
    repeated = np.flatnonzero(gaps_mm < SAME_POSITION_MM)
    if repeated.size:
        one, other = ordered[repeated[0]], ordered[repeated[0] + 1]
        raise refusal(
            path,
            f"holds {repeated.size} slices at positions that are already taken (such as {one.name} and {other.name})",
            "delete the copies, or put each echo, time point or reconstruction into a folder of its own",
        )
    typical_mm = float(np.median(gaps_mm))
    holes = np.flatnonzero(gaps_mm > 1.5 * typical_mm)
    if holes.size:
        missing = int(sum(round(gap / typical_mm) - 1 for gap in gaps_mm[holes])) or holes.size
        before, after = ordered[holes[0]], ordered[holes[0] + 1]
        raise refusal(
            path,
            f"lacks {missing} slice{'s' if missing > 1 else ''}: {before.name} and {after.name} are"
            f" {gaps_mm[holes[0]]:.2f} mm apart where {typical_mm:.2f} mm is usual",
            "export or copy the complete series again",
        )
