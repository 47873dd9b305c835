"""The scores of a classifier's validation: what fits its kind of labels, and means over several tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.metrics import Metric

from dinomed.metrics.classification_scores import MacroAUROC, Top1


class MeanOverTasks(Metric):
    """Mean of one score over several tasks; an Ignite metric.

    Args:
        scores: A metric for each task, which takes pairs of predictions and labels of that task.
        output_transform: From the engine's output to a pair of batches of predictions and labels by task, or of lists
            of cases, each a dictionary by task.

    Attributes:
        by_task: After `compute`, the score of each task.
    """

    def __init__(
        self, scores: Mapping[str, Metric], output_transform: Callable[..., Any] = lambda output: output
    ) -> None:
        self.scores = dict(scores)
        self.by_task: dict[str, float] = {}
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forget everything seen."""
        for score in self.scores.values():
            score.reset()

    def update(self, output: tuple[Any, Any]) -> None:
        """Add cases."""
        predictions, labels = output
        for task, score in self.scores.items():
            score.update((_of_task(predictions, task), _of_task(labels, task)))

    def compute(self) -> float:
        """Return the mean.

        Raises:
            InputError: As the scores' own.
        """
        self.by_task = {task: float(score.compute()) for task, score in self.scores.items()}
        return sum(self.by_task.values()) / len(self.by_task)


def _of_task(batch: Any, task: str) -> Any:
    return batch[task] if isinstance(batch, Mapping) else [case[task] for case in batch]


def stacked_pairs(output: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """Put the predictions and labels of an engine's output items together as batches, of several tasks by task.

    Args:
        output: Items with "pred" (K,) and "label", a number, (K,), or dictionaries of these by task.
    """
    return _stacked([item["pred"] for item in output]), _stacked([item["label"] for item in output])


def _stacked(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {task: _stacked([each[task] for each in values]) for task in values[0]}
    return torch.stack([torch.as_tensor(each) for each in values])


def key_score(kind: str, label_names: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, Metric]:
    """Make the score by which best weights are chosen: top-1, macro AUROC of several labels, mean top-1 of tasks.

    Args:
        kind: "multiclass", "multilabel" or "multitask".
        label_names: Names of the classes, of several tasks by task.

    Returns:
        The metric by its name, for an engine whose output items hold logits as "pred".

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind == "multiclass":
        return {"top1": Top1(stacked_pairs)}
    if kind == "multilabel":
        names = [str(name) for name in label_names]
        return {"macro_auroc": MacroAUROC(stacked_pairs, from_logits=True, label_names=names)}
    if kind == "multitask":
        return {"mean_top1": MeanOverTasks({task: Top1() for task in label_names}, stacked_pairs)}
    raise ValueError(f"the kind {kind!r} is unknown; choose from multiclass, multilabel, multitask")


def further_scores(kind: str, label_names: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, Metric]:
    """Make further scores of a validation: of several tasks the top-1 of each.

    Args:
        kind: "multiclass", "multilabel" or "multitask".
        label_names: Names of the classes, of several tasks by task.
    """
    if kind != "multitask":
        return {}

    def only(task: str) -> Callable[[Any], Any]:
        def transform(output: Any) -> Any:
            predictions, labels = stacked_pairs(output)
            return predictions[task], labels[task]

        return transform

    return {f"top1_{task}": Top1(only(task)) for task in label_names}
