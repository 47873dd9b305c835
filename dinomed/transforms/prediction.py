"""The segmentation of one scan, and its results: a label map, a JSON report and a picture, written all together.

`<case>_seg.nii.gz`, `<case>_seg.json` and `<case>_seg.png` are made in a hidden folder beside their destination and
renamed when all three are complete; the report comes last, so that a report is never there without the other two.
Where a run is stopped between these renames, the next one into the same folder finishes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import OutputError
from dinomed.transforms.picture import PictureText, draw_picture
from dinomed.transforms.provenance import scan_sha256
from dinomed.transforms.report import RunInfo, build_report, count_voxels, label_table, to_text, warnings_of
from dinomed.transforms.volume_checks import cause_of, shown
from dinomed.transforms.volumes import Grid, case_name, write_labels

PARTIAL, WHOLE = ".partial", ".whole"
"""Endings of the hidden folder of a case while it is filled, and once all three results in it are complete."""

ABANDONED_S = 900.0
"""Age after which a folder that is still being filled, which takes seconds, belongs to a run that was stopped."""


@dataclass(frozen=True)
class ResultPaths:
    """Where the three results of a case lie."""

    labels: Path
    report: Path
    picture: Path

    @classmethod
    def of(cls, folder: str | os.PathLike[str], case: str) -> ResultPaths:
        """Return the paths of a case's results in a folder."""
        root = Path(folder)
        return cls(root / f"{case}_seg.nii.gz", root / f"{case}_seg.json", root / f"{case}_seg.png")

    def existing(self) -> list[Path]:
        """Return those of the three that are there."""
        return [path for path in (self.labels, self.report, self.picture) if path.exists()]


@dataclass(eq=False)
class Prediction:
    """The segmentation of one scan on its own grid, with what is needed to report and draw it.

    Attributes:
        path: The scan.
        labels: uint8 (X, Y, Z) on the scan's grid.
        grid: The scan's grid.
        label_names: Name of each label value, background 0 included.
        mean_confidence: Mean probability of the winning label over the label's voxels; None where it is absent.
        image: float32 (X, Y, Z) that the network saw, on its own grid.
        image_affine: (4, 4), network voxel -> RAS+ mm.
        run: Model, device and settings.
        frame: Frame of a 4-D scan, None for a 3-D one.
        timings_s: Seconds per stage: load, preprocess, infer, labels, and write after saving.
        case: The name that the results carry.
        doubts: Sentences on how it was made, which go with its warnings.
        table: One row per label value: value, name, volume_ml, voxels, mean_confidence.
    """

    path: Path
    labels: np.ndarray[Any, np.dtype[np.uint8]]
    grid: Grid
    label_names: Mapping[int, str]
    mean_confidence: Mapping[int, float | None]
    image: np.ndarray[Any, np.dtype[np.float32]]
    image_affine: np.ndarray[Any, np.dtype[np.float64]]
    run: RunInfo
    frame: int | None = None
    timings_s: dict[str, float | None] = field(default_factory=dict)
    case: str = ""
    doubts: tuple[str, ...] = ()
    table: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.case = self.case or case_name(self.path)
        counts = count_voxels(self.labels)
        self.table = label_table(self.label_names, counts, self.mean_confidence, self.grid.affine)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Millilitres by the label's name, background left out."""
        return {row["name"]: row["volume_ml"] for row in self.table if row["value"] != 0}

    @property
    def confidence(self) -> dict[str, float | None]:
        """Mean confidence by the label's name, None where the label is absent."""
        return {row["name"]: row["mean_confidence"] for row in self.table}

    @property
    def warnings(self) -> list[str]:
        """What a reader of the numbers should know: structures that are absent or doubtful, and `doubts`."""
        return [*warnings_of(self.table), *self.doubts]

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> ResultPaths:
        """Write the label map, the report and the picture.

        Args:
            folder: Made if absent.
            overwrite: Replace results of the same name; without it they are an error.

        Raises:
            OutputError: If results exist and may not be replaced, or the folder cannot be written.
        """
        return write_results(self, folder, overwrite)


def write_results(prediction: Prediction, folder: str | os.PathLike[str], overwrite: bool = False) -> ResultPaths:
    """Write `<case>_seg.nii.gz`, `<case>_seg.json` and `<case>_seg.png`, all three or none.

    Args:
        prediction: What to write; its `timings_s` gains `write`.
        folder: Made if absent.
        overwrite: Replace results of the same name; without it they are an error.

    Returns:
        The three paths.

    Raises:
        OutputError: If results exist and may not be replaced, or the folder cannot be written.
    """
    paths = ResultPaths.of(folder, prediction.case)
    started_s = time.perf_counter()
    existing = paths.existing()
    if existing and not overwrite:
        raise OutputError(
            f"{shown(existing[0])} exists already; pass overwrite (--overwrite) or choose another output folder"
        )
    checksum = _scan_sha256(prediction.path)
    try:
        with staging(Path(folder), prediction.case) as stage:
            write_labels(prediction.labels, prediction.grid, stage / paths.labels.name)
            _draw(prediction, stage / paths.picture.name)
            prediction.timings_s["write"] = time.perf_counter() - started_s
            report = build_report(prediction, paths, checksum)
            (stage / paths.report.name).write_text(to_text(report), encoding="utf-8")
            for path in paths.existing():
                if path.is_dir():
                    raise IsADirectoryError(f"{shown(path)} is a folder")
            _move(stage.rename(stage.with_suffix(WHOLE)))
    except (OSError, OutputError) as error:
        reason = error.__cause__ if isinstance(error, OutputError) and error.__cause__ else error
        raise OutputError(
            f"{shown(Path(folder))}: the results of {shown(prediction.case)} cannot be written ({cause_of(reason)}); "
            "check the permissions and the free space, or choose another output folder"
        ) from error
    return paths


def _move(stage: Path) -> None:
    """Put staged results in their places, the report last; what an earlier try has moved already stays there."""
    staged = [path for ending in (".png", ".nii.gz", ".json") for path in sorted(stage.glob(f"*_seg{ending}"))]
    if any(path.name.endswith(".nii.gz") for path in staged):
        # The old report must not stand beside the new label map.
        for path in staged:
            if path.suffix == ".json":
                (stage.parent / path.name).unlink(missing_ok=True)
    for path in staged:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.replace(path, stage.parent / path.name)
    shutil.rmtree(stage, ignore_errors=True)


def finish_stopped(folder: str | os.PathLike[str]) -> None:
    """Clear up after runs that were stopped while they wrote into a folder.

    Results that were whole are put in place, unless something newer is there by now; what was not whole is removed. A
    folder that was filled a moment ago may belong to a running process and is left alone.

    Raises:
        OutputError: If the folder cannot be changed.
    """
    root = Path(folder)
    try:
        for stage in sorted(root.glob(".*_seg.*")) if root.is_dir() else []:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if stage.suffix == WHOLE:
                    _finish(stage)
                elif stage.suffix == PARTIAL and time.time() - stage.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"{shown(root)}: what a stopped run left there cannot be put in place ({cause_of(error)}); check the "
            "permissions, or choose another output folder"
        ) from error


def _finish(stage: Path) -> None:
    for path in stage.iterdir():
        place = stage.parent / path.name
        if place.exists() and place.stat().st_mtime > path.stat().st_mtime:
            shutil.rmtree(stage, ignore_errors=True)
            return
    _move(stage)


def _scan_sha256(path: Path) -> str | None:
    try:
        return scan_sha256(path)
    except OSError:  # the scan may have been moved since it was read
        return None


def _draw(prediction: Prediction, path: Path) -> None:
    run = prediction.run
    size = " x ".join(map(str, prediction.labels.shape))
    spacing_mm = " x ".join(f"{mm:.1f}" for mm in np.linalg.norm(prediction.grid.affine[:3, :3], axis=0))
    text = PictureText(
        case=shown(prediction.case),
        grid=f"{size} voxels, {spacing_mm} mm",
        model=f"{run.bundle} {run.version}" + (f" ({run.overlay})" if run.overlay else ""),
        rows=[row for row in prediction.table if row["value"] != 0],
    )
    draw_picture(prediction.image, prediction.image_affine, prediction.labels, prediction.grid.affine, text, path)


@contextmanager
def staging(folder: Path, case: str) -> Iterator[Path]:
    """Give a hidden folder on the same disk; it is removed in the end, unless its results were about to be moved."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=_stage_prefix(case), suffix=PARTIAL, dir=folder))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _stage_prefix(case: str) -> str:
    digest = hashlib.sha256(os.fsencode(case)).hexdigest()[:12]
    return f".{digest}_seg."


def read_report(report_path: Path) -> dict[str, Any] | None:
    """Read a report that an earlier run left, or None where there is none that is whole."""
    try:
        report = json.loads(report_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None
