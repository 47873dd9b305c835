"""Overlap of label maps, from a confusion matrix that is updated as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor


def confusion_matrix(predicted: Tensor, reference: Tensor, num_classes: int) -> Tensor:
    """Count how often each reference label met each predicted label.

    Args:
        predicted: label map of any shape, integers below `num_classes`.
        reference: label map of the same shape.
        num_classes: number of labels, background included.

    Returns:
        (num_classes, num_classes) int64: rows are reference labels, columns predicted ones.

    Raises:
        ValueError: if the shapes differ or a label is out of range.
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"predicted has shape {tuple(predicted.shape)}, reference {tuple(reference.shape)}")
    if predicted.numel() == 0:
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=predicted.device)
    for name, labels in (("predicted", predicted), ("reference", reference)):
        if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            raise ValueError(
                f"{name} labels run from {int(labels.min())} to {int(labels.max())}; they must lie in "
                f"0..{num_classes - 1}"
            )
    pairs = reference.reshape(-1).int() * num_classes + predicted.reshape(-1).int()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def group_confusion(confusion: Tensor, class_groups: Sequence[Sequence[int]]) -> Tensor:
    """Merge the rows and columns of a confusion matrix by groups of classes."""
    merge = torch.zeros(len(class_groups), len(confusion), dtype=confusion.dtype, device=confusion.device)
    for index, group in enumerate(class_groups):
        merge[index, list(group)] = 1
    return (merge.double() @ confusion.double() @ merge.double().T).to(confusion.dtype)


def dice_scores(confusion: Tensor) -> Tensor:
    """Dice coefficient per class, 2 |A and B| / (|A| + |B|).

    Args:
        confusion: (classes, classes) counts.

    Returns:
        (classes,) float64; a class that occurs in neither map is NaN.
    """
    counts = confusion.double()
    return 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))


class LabelDice(Metric):
    """Mean Dice over the foreground classes that occur, pooled over everything seen; an Ignite metric.

    In a distributed run the counts of all processes are pooled. Where no foreground occurs at all the mean is 0.

    Args:
        num_classes: number of labels, background included.
        class_groups: groups of classes that count as one; the first group is the background.
        output_transform: from the engine's output to a pair of label maps, or of lists of them.
        reduction: "mean" for one number, "none" for a dictionary by class (absent classes left out).
    """

    def __init__(
        self,
        num_classes: int,
        class_groups: Sequence[Sequence[int]] | None = None,
        output_transform: Callable[..., Any] = lambda output: output,
        reduction: str = "mean",
    ) -> None:
        if reduction not in ("mean", "none"):
            raise ValueError(f'reduction must be "mean" or "none", not {reduction!r}')
        self.num_classes = num_classes
        self.class_groups = class_groups
        self.reduction = reduction
        super().__init__(output_transform=output_transform, device=torch.device("cpu"))

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def reset(self) -> None:
        """Forget everything seen."""
        self._confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def update(self, output: tuple[Any, Any]) -> None:
        """Add label maps: a tensor or a list of tensors for each side."""
        predicted, reference = output
        if isinstance(predicted, Tensor):
            predicted, reference = [predicted], [reference]
        for one, other in zip(predicted, reference, strict=True):
            pair = (torch.as_tensor(one).cpu(), torch.as_tensor(other).cpu())
            self._confusion += confusion_matrix(*pair, num_classes=self.num_classes)

    @sync_all_reduce("_confusion")  # type: ignore[untyped-decorator]
    def compute(self) -> float | dict[str, float]:
        """Return the mean, or the scores by class."""
        confusion = self._confusion
        if self.class_groups is not None:
            confusion = group_confusion(confusion, self.class_groups)
        scores = dice_scores(confusion)
        if self.reduction == "none":
            return {str(k): float(score) for k, score in enumerate(scores) if not torch.isnan(score)}
        return float(scores[1:].nanmean()) if bool((~scores[1:].isnan()).any()) else 0.0
