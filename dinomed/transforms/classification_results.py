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
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dinomed.errors import OutputError
from dinomed.transforms.classification_files import STALE, described_files, fill_folder
from dinomed.transforms.heat_maps import FloatArray, HeatMap, Indices, canonical_positions, slice_grid
from dinomed.transforms.prediction import staging
from dinomed.transforms.report import RunInfo
from dinomed.transforms.similarity_map import SimilarityMap
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
