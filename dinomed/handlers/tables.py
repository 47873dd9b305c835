"""Tables of an evaluation: Dice by case and label, as CSV and JSON."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from dinomed.metrics.overlap import confusion_matrix, dice_scores, group_confusion

logger = logging.getLogger(__name__)


class DiceTable:
    """Write `dice.csv` (a row a case) and `dice.json` (cases and means) when an evaluation ends.

    Args:
        folder: where the files go.
        label_names: of the label maps, background first.
        num_classes: classes of the reference label maps.
        class_groups: groups of these classes that make the labels; None where each class is a label.
        region_groups: unions of classes that are scored too, by name.
    """

    def __init__(
        self,
        folder: str | Path,
        label_names: Sequence[str],
        num_classes: int,
        class_groups: Sequence[Sequence[int]] | None = None,
        region_groups: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.label_names = list(label_names)
        self.num_classes = num_classes
        self.class_groups = class_groups
        self.region_groups = dict(region_groups or {})
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output items hold "pred" and "label"."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_batch)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def add_batch(self, engine: Engine) -> None:
        """Score the cases of a batch."""
        for item, batch in zip(engine.state.output, engine.state.batch, strict=True):
            name = Path(str(batch["image"].meta.get("filename_or_obj", len(self.rows)))).name
            self.rows.append({"case": name, **self.score(item["pred"], item["label"])})
            logger.info("%s: %s", name, _rounded(self.rows[-1]))

    def score(self, predicted: torch.Tensor, reference: torch.Tensor) -> dict[str, float | None]:
        """Dice by label and region of one case; None where neither map has it."""
        confusion = confusion_matrix(torch.as_tensor(predicted), torch.as_tensor(reference), self.num_classes)
        if self.class_groups is not None:  # the prediction already holds labels, the reference still classes
            rows = torch.stack([confusion[list(group)].sum(0) for group in self.class_groups])
            confusion = rows[:, : len(self.class_groups)]
        scores = dict(zip(self.label_names[1:], dice_scores(confusion)[1:].tolist(), strict=True))
        if self.class_groups is None:
            for name, members in self.region_groups.items():
                rest = [k for k in range(self.num_classes) if k not in members]
                scores[name] = float(dice_scores(group_confusion(confusion, [rest, list(members)]))[1])
        return {name: None if math.isnan(score) else score for name, score in scores.items()}

    def write(self, engine: Engine) -> None:
        """Write both files; each through a temporary name."""
        if not self.rows:
            return
        names = [name for name in self.rows[0] if name != "case"]
        means: dict[str, Any] = {}
        for name in names:
            values = [row[name] for row in self.rows if row[name] is not None]
            means[name] = sum(values) / len(values) if values else None
        means, rows = _rounded(means), [_rounded(row) for row in self.rows]
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / ".dice.csv.tmp"
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=["case", *names])
            writer.writeheader()
            writer.writerows([*rows, {"case": "mean", **means}])
        temporary.replace(self.folder / "dice.csv")
        temporary = self.folder / ".dice.json.tmp"
        temporary.write_text(json.dumps({"mean": means, "cases": rows}, indent=2, allow_nan=False) + "\n")
        temporary.replace(self.folder / "dice.json")
        logger.info("mean Dice: %s; tables in %s", means, self.folder)


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
