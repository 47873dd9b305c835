"""Label maps that a model has made, kept by weights and scan: for the second request, for strategies and scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.data.series_checks import MARK_DIGITS, content_mark
from dinomed.errors import DinomedError
from dinomed.handlers.whole_files import write_file
from dinomed.label_app.models import LabelModel
from dinomed.transforms.prediction import Prediction
from dinomed.transforms.provenance import to_json
from dinomed.transforms.volumes import write_labels


@dataclass(frozen=True)
class Predicted:
    """A label map on its scan's grid, and what is known of it.

    Attributes:
        labels: The NIfTI file.
        facts: `table` with a row for each label, `confidence`, `volumes_ml`, `warnings`, `weights_sha256`.
    """

    labels: Path
    facts: dict[str, Any]

    @property
    def uncertainty(self) -> float:
        """One less the mean confidence over all that is not background; 1 where nothing was found."""
        rows = [row for row in self.facts["table"] if row["value"] and row["voxels"]]
        voxels = sum(row["voxels"] for row in rows)
        sure = sum(row["voxels"] * row["mean_confidence"] for row in rows)
        return 1.0 - sure / voxels if voxels else 1.0


class Predictions:
    """A folder of label maps.

    Args:
        folder: Made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def known(self, model: LabelModel, scan: str | Path) -> Predicted | None:
        """Return what the model of the moment has already made of a scan.

        Raises:
            InputError: If the scan cannot be read.
        """
        entry = self._entry(model, model.weights_sha256(), content_mark(scan))
        labels, facts = (entry.with_name(entry.name + ending) for ending in (".nii.gz", ".json"))
        try:
            return Predicted(labels, json.loads(facts.read_text(encoding="utf-8"))) if labels.is_file() else None
        except (OSError, ValueError):
            return None

    def make(self, model: LabelModel, scan: str | Path) -> Predicted:
        """Return a scan's label map, made now if it is not known.

        Raises:
            DinomedError: As `Predictor.segment`.
        """
        found = self.known(model, scan)
        if found is not None:
            return found
        mark = content_mark(scan)
        prediction = model.predictor().segment(scan)
        if not isinstance(prediction, Prediction):
            raise DinomedError(f"the bundle {model.name} is for pictures")
        used = prediction.run.weights_sha256 or model.weights_sha256()  # a training may have ended meanwhile
        entry = self._entry(model, used, mark)
        labels, facts = entry.with_name(f"{entry.name}.nii.gz"), facts_of(prediction)
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_labels(prediction.labels, prediction.grid, labels)
        write_file(entry.with_name(f"{entry.name}.json"), json.dumps(facts))  # last: it says that both are whole
        return Predicted(labels, facts)

    def forget_others(self, model: LabelModel) -> None:
        """Remove what was made with other weights."""
        current = model.weights_sha256()[:MARK_DIGITS]
        for folder in (self.folder / model.name).glob("*"):
            if folder.name != current:
                shutil.rmtree(folder, ignore_errors=True)

    def _entry(self, model: LabelModel, weights_sha256: str, mark: str) -> Path:
        return self.folder / model.name / weights_sha256[:MARK_DIGITS] / mark


def facts_of(prediction: Prediction) -> dict[str, Any]:
    """Return what a client should know of a prediction, as JSON values."""
    facts: dict[str, Any] = to_json(
        {
            "table": prediction.table,
            "confidence": prediction.confidence,
            "volumes_ml": prediction.volumes_ml,
            "warnings": prediction.warnings,
            "weights_sha256": prediction.run.weights_sha256,
            "timings_s": prediction.timings_s,
        }
    )
    return facts
