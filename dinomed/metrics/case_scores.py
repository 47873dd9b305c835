"""Scores of one case, label by label: the rows of an evaluation's tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dinomed.metrics.overlap import (
    class_accuracies,
    confusion_matrix,
    dice_scores,
    iou_scores,
    segmentation_scores,
)
from dinomed.metrics.volumes import volume_scores

Row = dict[str, Any]

VOLUME_KINDS = ("dice", "hd95_mm", "nsd")
IMAGE_KINDS = ("iou", "dice", "accuracy")


@dataclass(frozen=True)
class CaseScores:
    """What was measured on one case.

    Attributes:
        case: Its name.
        summary: Means over the labels that occur; None where none does.
        labels: A row for each label that either map has: number, name, scores (None where it has none), voxels of both
            maps, `found`.
        regions: The same for unions of labels, each of them.
        confusion: (labels, labels) int64 counts, rows reference, columns prediction, as a sparse tensor.
    """

    case: str
    summary: Row
    labels: list[Row]
    confusion: Tensor
    regions: list[Row] = field(default_factory=list)


def found(reference: int, predicted: int) -> str:
    """Say which of the two maps has a label."""
    if reference and predicted:
        return "both"
    return "missed" if reference else "spurious" if predicted else "absent"


def score_volume(
    case: str,
    predicted: Tensor,
    reference: Tensor,
    label_names: Sequence[str],
    spacing_mm: Sequence[float],
    tolerance_mm: float = 2.0,
    region_groups: Mapping[str, Sequence[int]] | None = None,
    ignore_index: int | None = None,
) -> CaseScores:
    """Score a label map of a scan: Dice, HD95 and surface Dice of each label but the background.

    A label that only one map has gets Dice and surface Dice 0 and no HD95; it is counted as missed or spurious.

    Args:
        case: Name of the case.
        predicted: (X, Y, Z) labels.
        reference: (X, Y, Z) labels.
        label_names: One per label, background first.
        spacing_mm: Of the voxels, one for each axis.
        tolerance_mm: Of the surface Dice.
        region_groups: Unions of labels that are scored too, by name.
        ignore_index: Voxels with this reference label count nowhere.

    Raises:
        ValueError: If shapes or labels do not fit.
    """
    options: dict[str, Any] = {
        "spacing_mm": spacing_mm,
        "tolerance_mm": tolerance_mm,
        "ignore_index": ignore_index,
        "missed_mm": math.nan,
    }
    count = len(label_names)
    confusion = confusion_matrix(predicted, reference, count, ignore_index)
    scores = volume_scores(predicted, reference, count, **options)
    rows = _rows(confusion, label_names, {kind: scores[kind] for kind in VOLUME_KINDS}, "voxels")[1:]
    rows = [row for row in rows if row["label"] != ignore_index]
    summary: Row = {f"mean_{kind}": _mean(row[kind] for row in rows) for kind in VOLUME_KINDS}
    summary |= _presence(rows)
    regions = []
    for name, members in (region_groups or {}).items():
        inside = torch.zeros(max(count, (ignore_index or 0) + 1), dtype=torch.uint8)
        inside[list(members)] = 1
        if ignore_index is not None:
            inside[ignore_index] = 2
        maps = [inside[labels.int()] for labels in (predicted, reference)]
        if ignore_index is not None:  # what is predicted as the ignored label is simply no part of the region
            maps[0][maps[0] == 2] = 0
        union = volume_scores(maps[0], maps[1], 2, **(options | {"ignore_index": None if ignore_index is None else 2}))
        both = confusion_matrix(maps[0], maps[1], 2, None if ignore_index is None else 2)
        row = _rows(both, ["", name], {kind: union[kind] for kind in VOLUME_KINDS}, "voxels")[1]
        regions.append(row | {"label": _runs(members)})
    return CaseScores(case, summary, _occurring(rows), confusion.to_sparse(), regions)


def score_image(
    case: str, predicted: Tensor, reference: Tensor, label_names: Sequence[str], ignore_index: int | None = None
) -> CaseScores:
    """Score a label map of a picture: IoU, Dice and accuracy of each label, the background's too.

    Args:
        case: Name of the case.
        predicted: (H, W) labels.
        reference: (H, W) labels.
        label_names: One per label.
        ignore_index: Pixels with this reference label count nowhere.

    Raises:
        ValueError: If shapes or labels do not fit.
    """
    confusion = confusion_matrix(predicted, reference, len(label_names), ignore_index)
    rows = image_rows(confusion, label_names, ignore_index)
    scores = segmentation_scores(confusion, None, ignore_index)
    kinds = ("mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy")
    summary: Row = {kind: scores.get(kind) for kind in kinds}
    summary |= _presence(rows)
    return CaseScores(case, summary, _occurring(rows), confusion.to_sparse())


def image_rows(confusion: Tensor, label_names: Sequence[str], ignore_index: int | None = None) -> list[Row]:
    """Return a row per label of a confusion matrix of pictures, one or many.

    Args:
        confusion: (labels, labels) counts.
        label_names: One per label.
        ignore_index: Label that was not counted and gets no row.
    """
    scores = {"iou": iou_scores(confusion), "dice": dice_scores(confusion), "accuracy": class_accuracies(confusion)}
    rows = _rows(confusion, label_names, scores, "pixels")
    return [row for row in rows if row["label"] != ignore_index]


def _rows(confusion: Tensor, label_names: Sequence[str], scores: Mapping[str, Tensor], unit: str) -> list[Row]:
    reference, predicted = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    values = {kind: [None if math.isnan(value) else value for value in each.tolist()] for kind, each in scores.items()}
    return [
        {
            "label": label,
            "name": name,
            **{kind: each[label] for kind, each in values.items()},
            f"reference_{unit}": reference[label],
            f"predicted_{unit}": predicted[label],
            "found": found(reference[label], predicted[label]),
        }
        for label, name in enumerate(label_names)
    ]


def _runs(members: Sequence[int]) -> str:
    """Write numbers with their runs shortened, as in 2+3+26-50."""
    runs: list[list[int]] = []
    for member in sorted(members):
        if runs and member == runs[-1][-1] + 1:
            runs[-1].append(member)
        else:
            runs.append([member])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else "+".join(map(str, run)) for run in runs]
    return "+".join(texts)


def _occurring(rows: Sequence[Row]) -> list[Row]:
    """Leave out what neither map has: of hundreds of labels a case shows few, and all cases are kept."""
    return [row for row in rows if row["found"] != "absent"]


def _presence(rows: Sequence[Row]) -> Row:
    kinds = [row["found"] for row in rows]
    return {
        "labels_in_reference": kinds.count("both") + kinds.count("missed"),
        "missed": kinds.count("missed"),
        "spurious": kinds.count("spurious"),
    }


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
