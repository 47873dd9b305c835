"""The loss of classified pictures: one class, several labels, or several tasks at once; hard or soft labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def class_loss(logits: Tensor, label: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of one class a picture.

    Args:
        logits: (B, K).
        label: Class numbers (B,), or probabilities (B, K) that sum to 1.
        label_smoothing: Share of each label that is spread over all classes.

    Returns:
        The mean over the batch.

    Raises:
        ValueError: If the shapes do not fit.
    """
    soft = label.ndim == 2
    if logits.ndim != 2 or (label.shape != logits.shape if soft else label.shape != logits.shape[:1]):
        raise ValueError(
            f"logits (B, K) need labels (B,) or (B, K), not {tuple(label.shape)} for {tuple(logits.shape)}; "
            "is task right?"
        )
    return functional.cross_entropy(
        logits, label.to(logits.dtype) if soft else label.long(), label_smoothing=label_smoothing
    )


def label_loss(
    logits: Tensor, label: Tensor, positive_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy of several labels a picture.

    Args:
        logits: (B, K).
        label: (B, K), 0 and 1 or probabilities.
        positive_weights: (K,), how much more a positive counts than a negative; None for equally.
        label_smoothing: Share by which labels move towards one half.

    Returns:
        The mean over batch and labels.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if logits.ndim != 2 or label.shape != logits.shape:
        raise ValueError(
            f"logits (B, K) need labels (B, K), not {tuple(label.shape)} for {tuple(logits.shape)}; is task right?"
        )
    target = label.to(logits.dtype) * (1 - label_smoothing) + 0.5 * label_smoothing
    return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=positive_weights)


class ClassificationLoss(nn.Module):
    """The loss of a kind of labels; of several tasks the sum.

    Args:
        kind: "multiclass", "multilabel" or "multitask" (a class for each task).
        label_smoothing: From 0 to below 1.
        positive_weights: Of "multilabel", one for each label; None for none.
        task_weights: Factor of each task's loss by its name; None, or a task that is not named, counts as 1.

    Raises:
        ValueError: If the kind is unknown or a number makes no sense.
    """

    positive_weights: Tensor | None

    def __init__(
        self,
        kind: str = "multiclass",
        label_smoothing: float = 0.0,
        positive_weights: Sequence[float] | None = None,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("multiclass", "multilabel", "multitask"):
            raise ValueError(f"the kind {kind!r} is unknown; choose from multiclass, multilabel, multitask")
        number = isinstance(label_smoothing, (int, float)) and not isinstance(label_smoothing, bool)
        if not (number and 0 <= label_smoothing < 1):
            raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing!r}")
        if positive_weights is not None and kind != "multilabel":
            raise ValueError(f"positive_weights belong to multilabel, not to {kind}; leave them out")
        if any(weight < 0 for weight in (task_weights or {}).values()):
            raise ValueError(f"task_weights must not be negative: {task_weights!r}")
        self.kind = kind
        self.label_smoothing = float(label_smoothing)
        self.task_weights = dict(task_weights or {})
        weights = None if positive_weights is None else torch.tensor([float(weight) for weight in positive_weights])
        self.register_buffer("positive_weights", weights, persistent=False)

    def forward(self, logits: Any, label: Any) -> Tensor:
        """Give the loss of logits (B, K), or of those of each task by its name, against labels of the same form.

        Raises:
            ValueError: If logits and labels do not fit each other.
        """
        if self.kind != "multitask":
            return self._of_one(logits, label)
        if not isinstance(logits, Mapping) or not isinstance(label, Mapping) or set(logits) != set(label):
            given = [sorted(each) if isinstance(each, Mapping) else type(each).__name__ for each in (logits, label)]
            raise ValueError(f"logits and labels must have the same tasks, not {given[0]} and {given[1]}")
        losses = [self.task_weights.get(task, 1.0) * self._of_one(logits[task], label[task]) for task in logits]
        return torch.stack(losses).sum()

    def _of_one(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.kind != "multilabel":
            return class_loss(logits, label, self.label_smoothing)
        weights = self.positive_weights
        weights = None if weights is None else weights.to(logits.device)
        return label_loss(logits, label, weights, self.label_smoothing)

    def extra_repr(self) -> str:
        """Tell the settings, by which a resumed training knows its loss again."""
        weights = (
            None if self.positive_weights is None else [round(float(weight), 6) for weight in self.positive_weights]
        )
        return f"{self.kind}, label_smoothing={self.label_smoothing}, {weights}, {self.task_weights}"
