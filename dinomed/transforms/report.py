"""The report of one case as strict JSON: which scan, which model, how much of what, how sure, how long it took.

`docs/results.md` describes every key. The report names the scan's file but none of its patient fields.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np

from dinomed.transforms.provenance import describe_transforms, file_sha256, software_versions, to_json
from dinomed.transforms.volume_checks import shown

if TYPE_CHECKING:
    from dinomed.transforms.prediction import Prediction, ResultPaths

SCHEMA = "dinomed-segmentation-1"
NOTICE = "Not a medical device. For research use; do not base a diagnosis or a treatment on it."
STAGES = ("load", "preprocess", "infer", "labels", "write")
LOW_CONFIDENCE = 0.5
"""Below this mean confidence a label's outline is more often doubtful than not, and the report says so."""


@dataclass(frozen=True)
class RunInfo:
    """Model, device and settings of a run; the same for all of its cases."""

    bundle: str
    version: str
    overlay: str | None = None
    weights_file: str | None = None
    weights_sha256: str | None = None
    device: str | None = None
    precision: str | None = None
    planes: tuple[str, ...] = ()
    preprocessing: tuple[Mapping[str, Any], ...] = ()
    class_groups: tuple[tuple[int, ...], ...] | None = None
    inference: tuple[Mapping[str, Any], ...] = ()

    def model(self) -> dict[str, Any]:
        """Return what identifies the model, as the report holds it."""
        return {
            "bundle": self.bundle,
            "version": self.version,
            "overlay": self.overlay,
            "weights_file": self.weights_file,
            "weights_sha256": self.weights_sha256,
        }

    def settings(self) -> dict[str, Any]:
        """Return how the model was run, as the report holds it."""
        groups = None if self.class_groups is None else [list(group) for group in self.class_groups]
        return {
            "device": self.device,
            "precision": self.precision,
            "planes": list(self.planes),
            "class_groups": groups,
        }


def describe_run(
    bundle: str,
    version: str,
    weights_path: str | os.PathLike[str] | None,
    *,
    overlay: str | None = None,
    device: Any = None,
    precision: Any = None,
    planes: Sequence[str] | str | None = None,
    class_groups: Sequence[Sequence[int]] | None = None,
    inference: Any = (),
    preprocessing: Any = (),
) -> RunInfo:
    """Describe a run by what a configuration or a predictor knows of it.

    Args:
        bundle: Name of the model.
        version: Of the bundle.
        weights_path: File of the weights; identified by its checksum where it is there.
        overlay: Name of a variant of the bundle.
        device: Where the network runs.
        precision: How it computes, as a word or a dtype.
        planes: Planes that it sees, also as "axial,coronal".
        class_groups: Outputs of the network that make each label; None where each is a label.
        inference: Inferer, network or transforms, see `describe_transforms`.
        preprocessing: The chain of transforms, or a description of it.
    """
    weights = None if weights_path is None else Path(weights_path)
    return RunInfo(
        bundle=bundle,
        version=version,
        overlay=overlay,
        weights_file=weights.name if weights else None,
        weights_sha256=file_sha256(weights) if weights and weights.is_file() else None,
        device=None if device is None else str(device),
        precision=to_json(precision),
        planes=tuple(planes.split(",")) if isinstance(planes, str) else tuple(planes or ()),
        class_groups=None if class_groups is None else tuple(tuple(group) for group in class_groups),
        inference=tuple(describe_transforms(inference)),
        preprocessing=tuple(describe_transforms(preprocessing)),
    )


def deciding(report: Mapping[str, Any]) -> dict[str, Any]:
    """Pick from a report what decides the voxels of a label map; equal answers mean that nothing needs to be redone.

    File names, the name of an overlay, the device and versions of software are left out.
    """
    sections = (report.get(name) for name in ("input", "model", "run"))
    scan, model, run = (section if isinstance(section, Mapping) else {} for section in sections)
    labels = report.get("labels")
    rows = [row for row in labels if isinstance(row, Mapping)] if isinstance(labels, list) else []
    pairs = [[row.get("value"), row.get("name")] for row in rows]
    return {
        "input": [scan.get("sha256"), scan.get("frame")],
        "model": [model.get(name) for name in ("bundle", "version", "weights_sha256")],
        "run": [run.get(name) for name in ("precision", "planes", "class_groups")],
        "preprocessing": report.get("preprocessing"),
        "inference": report.get("inference"),
        # A value without a name has a row of its own, which nobody could know before.
        "labels": [pair for pair in pairs if pair[1] != f"label {pair[0]}"],
    }


def planned(run: RunInfo, label_names: Mapping[int, str], checksum: str | None, frame: int | None) -> dict[str, Any]:
    """Return as much of a case's report as is known before the case is done: all that `deciding` looks at."""
    sections = {
        "input": {"sha256": checksum, "frame": frame},
        "model": run.model(),
        "run": run.settings(),
        "preprocessing": list(run.preprocessing),
        "inference": list(run.inference),
        "labels": [{"value": value, "name": name} for value, name in label_names.items()],
    }
    clean: dict[str, Any] = to_json(sections)
    return clean


def name_labels(names: Mapping[Any, Any] | Sequence[str]) -> dict[int, str]:
    """Return names by label value, from a sequence in order of value or from a mapping (keys may be digits)."""
    if isinstance(names, Mapping):
        return {int(value): str(name) for value, name in sorted(names.items(), key=lambda item: int(item[0]))}
    return dict(enumerate(str(name) for name in names))


def count_voxels(labels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Count the voxels of each of the 256 label values, slab by slab so that no wide copy of the map is made."""
    counts = np.zeros(256, dtype=np.int64)
    slowest = int(np.argmax(labels.strides))
    for slab in np.moveaxis(labels, slowest, 0):
        counts += np.bincount(slab.ravel(order="K"), minlength=256)
    return counts


def voxel_volume_mm3(affine: np.ndarray[Any, Any]) -> float:
    """Return the volume of one voxel; right for sheared grids too."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))


def label_table(
    label_names: Mapping[int, str],
    counts: np.ndarray[Any, np.dtype[np.int64]],
    mean_confidence: Mapping[int, float | None],
    affine: np.ndarray[Any, Any],
) -> list[dict[str, Any]]:
    """Return one row per label value: value, name, volume_ml, voxels, mean_confidence (None where absent).

    A value without a name that does occur gets a row of its own, so that nothing in the label map goes unreported.
    """
    voxel_ml = voxel_volume_mm3(affine) / 1000.0
    values = sorted(set(label_names) | {int(value) for value in np.flatnonzero(counts)})
    return [
        {
            "value": value,
            "name": label_names.get(value, f"label {value}"),
            "volume_ml": int(counts[value]) * voxel_ml,
            "voxels": int(counts[value]),
            "mean_confidence": to_json(mean_confidence.get(value)) if counts[value] else None,
        }
        for value in values
    ]


def warnings_of(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what a reader of the numbers should know: structures that are absent or doubtful."""
    foreground = [row for row in table if row["value"] != 0]
    absent = [row["name"] for row in foreground if row["voxels"] == 0]
    if foreground and len(absent) == len(foreground):
        return ["no structure was found; check that the scan shows what the model was made for"]
    found = [f"not found: {', '.join(absent)}"] if absent else []
    doubtful = [
        f"{row['name']} ({row['mean_confidence']:.2f})"
        for row in foreground
        if row["mean_confidence"] is not None and row["mean_confidence"] < LOW_CONFIDENCE
    ]
    return found + (
        [f"mean confidence below {LOW_CONFIDENCE}, check by eye: {', '.join(doubtful)}"] if doubtful else []
    )


def build_report(prediction: Prediction, paths: ResultPaths, checksum: str | None) -> dict[str, Any]:
    """Return the report of one case, made of strict JSON values only."""
    affine = np.asarray(prediction.grid.affine, dtype=np.float64)
    run = prediction.run
    timings = {stage: prediction.timings_s.get(stage) for stage in STAGES}
    report = {
        "schema": SCHEMA,
        "case": shown(prediction.case),
        "input": {
            "name": shown(prediction.path.name),
            "format": prediction.grid.format,
            "frame": prediction.frame,
            "sha256": checksum,
        },
        "outputs": {
            "labels": shown(paths.labels.name),
            "report": shown(paths.report.name),
            "picture": shown(paths.picture.name),
        },
        "model": run.model(),
        "run": run.settings(),
        "software": software_versions(),
        "preprocessing": list(run.preprocessing),
        "inference": list(run.inference),
        "grid": _grid(prediction.labels.shape, affine) | {"affine": affine.tolist()},
        "network_grid": _grid(prediction.image.shape, np.asarray(prediction.image_affine, dtype=np.float64)),
        "labels": prediction.table,
        "timings_s": timings,
        "warnings": prediction.warnings,
        "notice": NOTICE,
    }
    clean: dict[str, Any] = to_json(report)
    return clean


def _grid(shape: Sequence[int], affine: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    return {
        "shape": list(shape),
        "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        "orientation": "".join(code or "?" for code in nibabel.aff2axcodes(affine)),
        "voxel_volume_mm3": voxel_volume_mm3(affine),
    }


def to_text(report: Mapping[str, Any]) -> str:
    """Return the report as JSON text; NaN and infinities are refused."""
    return json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
