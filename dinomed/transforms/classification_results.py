"""The classification of one CT, and its results: a folder of numbers, maps and pictures, written all together.

`OUTPUT/CASE/` is made in a hidden folder beside its destination and renamed when it is complete. Where the folder is
there already its files are replaced one by one, `summary.json` last, so that a summary never stands beside files of
another run.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dinomed.errors import InputError, OutputError
from dinomed.transforms.classification_files import STALE, described_files, fill_folder
from dinomed.transforms.heat_maps import FloatArray, HeatMap, Indices, canonical_positions, slice_grid
from dinomed.transforms.prediction import staging
from dinomed.transforms.report import RunInfo
from dinomed.transforms.slice_boxes import SliceBox
from dinomed.transforms.volume_checks import cause_of, shown
from dinomed.transforms.volume_reading import Grid

SUMMARY = "summary.json"


@dataclass(frozen=True)
class TopSlice:
    """A slice among those with the highest probability of a label.

    Attributes:
        rank: 1 for the highest.
        index: Its place along the slice axis in the file's own voxels.
        probability: Of the label, not calibrated.
    """

    rank: int
    index: int
    probability: float


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """How alike the patches of one slice and a reference patch are.

    Attributes:
        row: Row of the reference patch, from 0 in front.
        column: Its column, from 0 on the patient's left.
        slice_index: The slice's place along the slice axis in the file's own voxels.
        values: Cosines (h, w) float32.
        image_size: Rows and columns in pixels of the slice as the backbone saw it, after resizing, before padding.
        cell_px: Side of a patch in those pixels.
        box: Where in the image the slice lies; None where it fills the whole of it.
    """

    row: int
    column: int
    slice_index: int
    values: FloatArray
    image_size: tuple[int, int]
    cell_px: int = 16
    box: SliceBox | None = None

    @property
    def place(self) -> SliceBox:
        """Where in the image the slice lies."""
        return self.box or SliceBox(0, 0, *self.image_size)

    def __post_init__(self) -> None:
        cells = tuple(ceil(pixels / self.cell_px) for pixels in self.image_size)
        inside = 0 <= self.row < cells[0] and 0 <= self.column < cells[1]
        if self.values.shape != cells or not inside or not np.isfinite(self.values).all():
            raise ValueError(
                f"a similarity map of {self.image_size} pixels has {cells} finite values and its reference inside, not "
                f"{self.values.shape} and ({self.row}, {self.column})"
            )


@dataclass(frozen=True)
class ClassificationPaths:
    """Where the results of a case lie: its folder, the summary, and all files with the summary last."""

    folder: Path
    summary: Path
    files: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class Classification:
    """What a model says of one CT, with what is needed to report and draw it.

    Attributes:
        case: The name that the results carry.
        path: The scan.
        grid: The scan's grid.
        label_names: Names of the K labels; slices are ranked and shown by the first.
        probabilities: Of the whole scan, (K,).
        calibrated: The same after calibration; None where a label has none.
        thresholds: Decide between yes and no, for the calibrated probability where there is one, else for the plain
            one; None for no decision.
        slice_probs: Of single slices, (N, K) float32.
        slice_indices: The slices' places along `slice_axis` in the file's own voxels, (N,) int64.
        slice_axis: The file's voxel axis that the slices follow.
        slice_note: What the probabilities of single slices are, in a sentence.
        slice_embeddings: (N, C) float32.
        volume_embedding: (C',) float32.
        run: Model, device and settings.
        maps: Heat maps, at most one of a kind and label.
        similarity: Similarity to a reference patch, if it was asked for.
        timings_s: Seconds per stage.
        peak_memory_bytes: Most memory that the process held; None where it is not known.
        warnings: Sentences that a reader should know.
        image_hu: The scan's voxels (X, Y, Z), for the pictures; None: read again from `path`.
        top_k: How many slices `top_slices` gives.

    Raises:
        ValueError: If shapes do not fit each other, or numbers are not finite.
    """

    case: str
    path: Path
    grid: Grid
    label_names: tuple[str, ...]
    probabilities: FloatArray
    calibrated: tuple[float | None, ...]
    thresholds: tuple[float | None, ...]
    slice_probs: FloatArray
    slice_indices: Indices
    slice_axis: int
    slice_note: str
    slice_embeddings: FloatArray
    volume_embedding: FloatArray
    run: RunInfo
    maps: tuple[HeatMap, ...] = ()
    similarity: SimilarityMap | None = None
    timings_s: Mapping[str, float | None] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    image_hu: npt.NDArray[np.float32] | None = None
    top_k: int = 5

    def __post_init__(self) -> None:
        labels, slices = len(self.label_names), len(self.slice_indices)
        wrong = [
            f"{name} must have {wanted}, not {found}"
            for name, wanted, found in (
                ("probabilities", (labels,), self.probabilities.shape),
                ("calibrated", labels, len(self.calibrated)),
                ("thresholds", labels, len(self.thresholds)),
                ("slice_probs", (slices, labels), self.slice_probs.shape),
                ("slice_embeddings", slices, len(self.slice_embeddings)),
                ("slice_axis", slice_grid(self.grid).axes[2], self.slice_axis),
            )
            if wanted != found
        ]
        if self.case in ("", ".", "..") or os.path.basename(self.case) != self.case:
            wrong.append(f"the case {self.case!r} is no name for a folder")
        numbers = [self.probabilities, self.slice_probs, [each for each in self.calibrated if each is not None]]
        if any(not ((np.asarray(each) >= 0) & (np.asarray(each) <= 1)).all() for each in numbers):
            wrong.append("probabilities must lie in 0..1")
        names = [heat.name for heat in self.maps]
        wrong += [f"there are two maps named {name}" for name in sorted(set(names)) if names.count(name) > 1]
        strange = sorted({heat.label for heat in self.maps if heat.label is not None} - set(self.label_names))
        wrong += [f"a map is of {label!r}, which is no label" for label in strange]
        if wrong or not labels or not slices:
            raise ValueError("; ".join(wrong) or "a classification needs a label and a slice")
        for indices in (self.slice_indices, *(heat.slice_indices for heat in self.maps)):
            canonical_positions(indices, self.grid)  # refuses places outside the scan

    @property
    def predicted(self) -> tuple[bool | None, ...]:
        """Whether each label reaches its threshold; None where it has none."""
        decisive = [
            float(plain) if calibrated is None else calibrated
            for plain, calibrated in zip(self.probabilities, self.calibrated, strict=True)
        ]
        return tuple(
            None if threshold is None else value >= threshold
            for value, threshold in zip(decisive, self.thresholds, strict=True)
        )

    @property
    def top_slices(self) -> tuple[TopSlice, ...]:
        """The `top_k` slices with the highest probability of the first label, highest first."""
        return self.top_slices_of(self.label_names[0])

    def top_slices_of(self, label: str) -> tuple[TopSlice, ...]:
        """The `top_k` slices with the highest probability of a label; of equal ones the one nearer to the feet."""
        probs = self.slice_probs[:, self.label_names.index(label)]
        places = canonical_positions(self.slice_indices, self.grid)
        order = sorted(range(len(probs)), key=lambda i: (-float(probs[i]), places[i]))[: self.top_k]
        return tuple(
            TopSlice(rank, int(self.slice_indices[i]), float(probs[i])) for rank, i in enumerate(order, start=1)
        )

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> ClassificationPaths:
        """Write the case's folder into `folder`.

        Args:
            folder: Made if absent.
            overwrite: Replace results of the same case; without it they are an error.

        Raises:
            OutputError: If results exist and may not be replaced, or the folder cannot be written.
        """
        return write_classification(self, folder, overwrite)


def write_classification(
    classification: Classification, folder: str | os.PathLike[str], overwrite: bool = False
) -> ClassificationPaths:
    """Write the results of a case into `folder`/CASE; arguments and errors as those of `Classification.save`."""
    started_s = time.perf_counter()
    case_folder = Path(folder) / classification.case
    names = list(described_files(classification))
    paths = ClassificationPaths(case_folder, case_folder / SUMMARY, tuple(case_folder / name for name in names))
    existing = [path for path in paths.files if path.exists()]
    if existing and not overwrite:
        raise OutputError(
            f"{shown(existing[0])} exists already; pass overwrite (--overwrite) or choose another output folder"
        )
    try:
        with staging(Path(folder), classification.case) as stage:
            made = stage / "case"  # the staging folder itself can be entered by its owner alone
            made.mkdir()
            fill_folder(classification, made, started_s)
            _move(made, paths)
    except (OSError, OutputError) as error:
        reason = error.__cause__ if isinstance(error, OutputError) and error.__cause__ else error
        raise OutputError(
            f"{shown(Path(folder))}: the results of {shown(classification.case)} cannot be written "
            f"({cause_of(reason)}); check the permissions and the free space, or choose another output folder"
        ) from error
    return paths


def _move(made: Path, paths: ClassificationPaths) -> None:
    """Put a complete folder in its place; files of an earlier run that this one does not have are removed."""
    if not paths.folder.exists():
        os.rename(made, paths.folder)
        return
    for path in (paths.folder, *paths.files):
        if path.is_dir() != (path == paths.folder) and path.exists():
            raise OSError(f"{shown(path)} is {'a folder' if path.is_dir() else 'no folder'}")
    stale = _written_before(paths.summary) - {path.name for path in paths.files}
    # The old summary must not stand beside new files.
    paths.summary.unlink(missing_ok=True)
    for name in stale:
        (paths.folder / name).unlink(missing_ok=True)
    for path in paths.files:
        os.replace(made / path.name, path)


def _written_before(summary: Path) -> set[str]:
    """Names of the files that an earlier summary lists, as far as they are of our making."""
    try:
        listed = json.loads(summary.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in listed if isinstance(name, str) and re.fullmatch(STALE, name)}


def check_reference(row: int, column: int, place: SliceBox, cell_px: int) -> None:
    """Refuse a patch that holds nothing of the slice, only the air that makes it square.

    Args:
        row: Of the patch.
        column: Of the patch.
        place: Where in the image the slice lies.
        cell_px: Side of a patch.

    Raises:
        InputError: If it does.
    """
    rows, columns = place.cells(cell_px)
    if not (rows.start <= row < rows.stop and columns.start <= column < columns.stop):
        raise InputError(
            f"the reference patch {row},{column} lies beside the slice, in the air that makes it a square; give "
            f"row,col with row in {rows.start}..{rows.stop - 1} and col in {columns.start}..{columns.stop - 1}"
        )


def choose_reference(text: str, rows: int, columns: int) -> tuple[int, int]:
    """Read which patch the others are compared with.

    Args:
        text: "center", or "row,col" counted from 0: rows from the front, columns from the patient's left.
        rows: Rows of patches.
        columns: Columns of patches.

    Returns:
        Row and column.

    Raises:
        InputError: If the text says neither, or the patch lies outside.
    """
    if text.strip().lower() in ("center", "centre"):
        return rows // 2, columns // 2
    allowed = f"give center, or row,col with row in 0..{rows - 1} and col in 0..{columns - 1}"
    numbers = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text, re.ASCII)
    if numbers is None:
        raise InputError(f"the reference patch {text!r} cannot be read; {allowed}")
    row, column = int(numbers[1]), int(numbers[2])
    if row >= rows or column >= columns:
        raise InputError(f"the reference patch {row},{column} lies outside the slice's patches; {allowed}")
    return row, column
