"""The key score of each kind of labels, and means over tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine

from dinomed.metrics.task_scores import further_scores, key_score


def score(metrics: dict[str, Any], *batches: list[dict[str, Any]]) -> dict[str, float]:
    engine = Engine(lambda engine, batch: batch)
    for name, metric in metrics.items():
        metric.attach(engine, name)
    return dict(engine.run(list(batches)).metrics)


def test_one_class_is_scored_by_top1_over_all_batches() -> None:
    logits = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 2.0], [5.0, 0.0, 0.0]]
    items = [{"pred": torch.tensor(row), "label": label} for row, label in zip(logits, [0, 1, 0, 1], strict=True)]
    assert score(key_score("multiclass", ["a", "b", "c"]), items[:3], items[3:]) == {"top1": 0.5}


def test_several_labels_are_scored_by_their_mean_auroc() -> None:
    logits, labels = [[2.0, -1.0], [1.0, 0.0], [0.0, 5.0], [-1.0, 1.0]], [[1, 0], [0, 1], [1, 0], [0, 1]]
    items = [
        {"pred": torch.tensor(row), "label": torch.tensor(label)} for row, label in zip(logits, labels, strict=True)
    ]
    # First label: pairs won 3 of 4; second: (0, 1) against (-1, 5), 2 of 4.
    assert score(key_score("multilabel", ["a", "b"]), items) == {"macro_auroc": pytest.approx((0.75 + 0.5) / 2)}


def test_several_tasks_are_scored_by_their_mean_and_each() -> None:
    names = {"colour": ["r", "g"], "shape": ["x", "y", "z"]}
    right, wrong = torch.tensor([9.0, 0.0]), torch.tensor([9.0, 0.0, 0.0])
    items = [
        {"pred": {"colour": right, "shape": wrong}, "label": {"colour": torch.tensor(0), "shape": torch.tensor(k)}}
        for k in (0, 1, 2, 1)
    ]
    metrics = {**key_score("multitask", names), **further_scores("multitask", names)}
    found = score(metrics, items[:2], items[2:])
    assert found == {"mean_top1": pytest.approx(0.625), "top1_colour": 1.0, "top1_shape": 0.25}
    assert further_scores("multiclass", ["a"]) == {}


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="choose from multiclass"):
        key_score("binary", ["a"])
