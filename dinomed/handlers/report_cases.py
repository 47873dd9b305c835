"""The cases that the report of an evaluation keeps: ranked, drawn, and gathered from all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.handlers.processes import gathered
from dinomed.handlers.report_pictures import draw_image, draw_volume
from dinomed.metrics.case_scores import CaseScores


@dataclass
class ReportedCase:
    """A case of an evaluation.

    Attributes:
        key: What tells it from others.
        scores: What was measured.
        rank_score: What it is ranked by, more is better; None for a case without a label.
        png: Its picture, while it is among the worst or the best.
    """

    key: str
    scores: CaseScores
    rank_score: float | None
    png: bytes | None = None


def all_cases(entries: list[ReportedCase], is_volume: bool | None) -> tuple[list[ReportedCase], list[bool | None]]:
    """Bring the cases of all processes together, in the order of the data, and the kinds that they saw.

    A case that several processes had, so that all have equally many, counts once.
    """
    parts = gathered((entries, is_volume))
    if len(parts) == 1:
        return parts[0][0], [parts[0][1]]
    longest = max(len(part) for part, _ in parts)
    in_order = [part[k] for k in range(longest) for part, _ in parts if k < len(part)]
    first: dict[str, ReportedCase] = {}
    for entry in in_order:
        first.setdefault(entry.key, entry)
    return list(first.values()), [kind for _, kind in parts]


def ends(
    entries: Sequence[ReportedCase], count: int, overlapping: bool = False
) -> tuple[list[ReportedCase], list[ReportedCase]]:
    """Return the worst cases, worst first, and the best, best first; of few cases each is in one of the two."""
    ranked = sorted(
        (entry for entry in entries if entry.rank_score is not None), key=lambda entry: entry.rank_score or 0.0
    )
    worst = ranked[: count if overlapping else min(count, (len(ranked) + 1) // 2)]
    rest = ranked if overlapping else ranked[len(worst) :]
    return worst, rest[::-1][:count]


def ranking(scores: CaseScores) -> str:
    """Say in words what a case is ranked by."""
    name = "mean_iou" if "mean_iou" in scores.summary else "mean_dice"
    value = scores.summary[name]
    return f"{name.replace('_', ' ').replace('iou', 'IoU').replace('dice', 'Dice')} " + (
        "-" if value is None else f"{value:.3f}"
    )


def draw_case(
    item: Mapping[str, Any],
    predicted: Tensor,
    reference: Tensor,
    scores: CaseScores,
    label_names: Sequence[str],
    ignore_index: int | None,
) -> bytes:
    """Draw a case as PNG.

    Args:
        item: "image" and "label" with their affines.
        predicted: (X, Y, Z) or (H, W) labels.
        reference: Of the same shape.
        scores: Named in the title.
        label_names: One per label.
        ignore_index: Reference label that does not count.
    """
    image = item["image"]
    array = torch.as_tensor(image).as_subclass(Tensor).float().cpu().numpy()
    title = f"{scores.case}: {ranking(scores)}"
    if reference.ndim == 2:
        return draw_image(array, predicted.numpy(), reference.numpy(), title, label_names, ignore_index)
    affines = [np.asarray(getattr(each, "affine", np.eye(4)), dtype=np.float64) for each in (image, item["label"])]
    maps = [predicted, reference]
    if ignore_index is not None:  # what is not counted is shown as background in both
        maps = [labels.masked_fill(reference == ignore_index, 0) for labels in maps]
    given, wanted = (labels.to(torch.uint8).numpy() for labels in maps)
    return draw_volume(array[array.shape[0] // 2], affines[0], given, wanted, affines[1], title, label_names)
