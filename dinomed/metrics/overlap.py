"""Overlap of label maps, from a confusion matrix that is updated as it goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from dinomed.metrics.native_size import labels_at_size

CHUNK_VOXELS = 2**24
"""Voxels that are counted at a time, so that a large scan's labels are never held in a wider type."""


def confusion_matrix(predicted: Tensor, reference: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Count how often each reference label met each predicted label.

    Args:
        predicted: label map of any shape, integers below `num_classes`.
        reference: label map of the same shape.
        num_classes: number of labels, background included.
        ignore_index: where the reference has this label nothing is counted; None for no such label.

    Returns:
        (num_classes, num_classes) int64: rows are reference labels, columns predicted ones.

    Raises:
        ValueError: if the shapes differ or a label that counts is out of range.
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"predicted has shape {tuple(predicted.shape)}, reference {tuple(reference.shape)}")
    counts = torch.zeros(num_classes**2, dtype=torch.int64, device=predicted.device)
    given, wanted = (labels.reshape(-1).split(CHUNK_VOXELS) for labels in (predicted, reference))
    for predicted, reference in zip(given, wanted, strict=True):
        if ignore_index is not None:
            counted = reference != ignore_index
            predicted, reference = predicted[counted], reference[counted]
        if predicted.numel() == 0:
            continue
        for name, labels in (("predicted", predicted), ("reference", reference)):
            if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
                raise ValueError(
                    f"{name} labels run from {int(labels.min())} to {int(labels.max())}; they must lie in "
                    f"0..{num_classes - 1}"
                )
        pairs = reference.int() * num_classes + predicted.int()
        counts += torch.bincount(pairs, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


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


def iou_scores(confusion: Tensor) -> Tensor:
    """Intersection over union (Jaccard index) per class, |A and B| / |A or B|.

    Args:
        confusion: (classes, classes) counts.

    Returns:
        (classes,) float64; a class that occurs in neither map is NaN, one that occurs in one alone is 0.
    """
    counts = confusion.double()
    overlap = counts.diagonal()
    return overlap / (counts.sum(0) + counts.sum(1) - overlap)


def class_accuracies(confusion: Tensor) -> Tensor:
    """Share of each reference label's pixels that were predicted so (recall).

    Args:
        confusion: (classes, classes) counts.

    Returns:
        (classes,) float64; a class that does not occur in the reference is NaN.
    """
    counts = confusion.double()
    return counts.diagonal() / counts.sum(1)


def pixel_accuracy(confusion: Tensor) -> float:
    """Share of all counted pixels that were predicted rightly; NaN where none was counted."""
    counts = confusion.double()
    return float(counts.diagonal().sum() / counts.sum())


def segmentation_scores(
    confusion: Tensor, class_names: Sequence[str] | None = None, ignore_index: int | None = None
) -> dict[str, float]:
    """All scores of a confusion matrix by name; what no pixel speaks of is left out.

    The means leave out the classes without a score: for `mean_iou` and `mean_dice` those that occur in neither map, for
    `mean_accuracy` those that do not occur in the reference.

    Args:
        confusion: (classes, classes) counts.
        class_names: one for each class; its number where None.
        ignore_index: label that was not counted; where it is a class, this class has no score.

    Returns:
        "mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy", and "iou/NAME", "dice/NAME", "accuracy/NAME".

    Raises:
        ValueError: if there is not one name for each class.
    """
    names = [str(index) for index in range(len(confusion))] if class_names is None else list(class_names)
    if len(set(names)) != len(confusion):
        raise ValueError(f"class_names must hold {len(confusion)} different names, not {names}")
    found: dict[str, float] = {}
    by_class: dict[str, float] = {}
    for kind, scores in (
        ("iou", iou_scores(confusion)),
        ("dice", dice_scores(confusion)),
        ("accuracy", class_accuracies(confusion)),
    ):
        if ignore_index is not None and 0 <= ignore_index < len(scores):
            scores[ignore_index] = math.nan
        found[f"mean_{kind}"] = float(scores.nanmean())
        by_class |= {f"{kind}/{name}": score for name, score in zip(names, scores.tolist(), strict=True)}
    found["pixel_accuracy"] = pixel_accuracy(confusion)
    return {name: score for name, score in (found | by_class).items() if not math.isnan(score)}


class ConfusionMetric(Metric):
    """A confusion matrix that is updated as it goes; the base of the Ignite metrics of label maps.

    Memory is that of one matrix and of one pair of maps. In a distributed run the counts of all processes are pooled.

    Args:
        num_classes: number of labels, background included.
        class_groups: groups of classes that count as one.
        output_transform: from the engine's output to a pair (predicted, reference) of tensors, or of lists of them.
        ignore_index: where the reference has this label nothing is counted.
        from_logits: whether the first of the pair holds logits (C, ...), or a batch (B, C, ...), of any size; they are
            resized to the reference's size (1, ...) as `labels_at_size` says.

    Raises:
        ValueError: if there is no class.
    """

    def __init__(
        self,
        num_classes: int,
        class_groups: Sequence[Sequence[int]] | None = None,
        output_transform: Callable[..., Any] = lambda output: output,
        ignore_index: int | None = None,
        from_logits: bool = False,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.class_groups = class_groups
        self.ignore_index = ignore_index
        self.from_logits = from_logits
        super().__init__(output_transform=output_transform, device=torch.device("cpu"))

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def reset(self) -> None:
        """Forget everything seen."""
        self._confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def update(self, output: tuple[Any, Any]) -> None:
        """Add label maps or logits: a tensor or a list of tensors for each side."""
        predicted, reference = output
        if isinstance(predicted, Tensor) and not self.from_logits:  # logits come as a batch, and are taken case by case
            predicted, reference = [predicted], [reference]
        for one, other in zip(predicted, reference, strict=True):
            given, wanted = (torch.as_tensor(labels).as_subclass(Tensor) for labels in (one, other))
            if self.from_logits:
                given = labels_at_size(given, wanted.shape[1:], self.num_classes)
            self._confusion += confusion_matrix(given.cpu(), wanted.cpu(), self.num_classes, self.ignore_index)

    @sync_all_reduce("_confusion")  # type: ignore[untyped-decorator]
    def confusion(self) -> Tensor:
        """Return the counts of all processes, classes merged by their groups."""
        if self.class_groups is None:
            return self._confusion
        return group_confusion(self._confusion, self.class_groups)

    def compute(self) -> Any:
        """Return the counts."""
        return self.confusion()


class LabelDice(ConfusionMetric):
    """Mean Dice over the foreground classes that occur, pooled over everything seen; an Ignite metric.

    In a distributed run the counts of all processes are pooled. Where no foreground occurs at all the mean is 0.

    Args:
        num_classes: number of labels, background included.
        class_groups: groups of classes that count as one; the first group is the background.
        output_transform: from the engine's output to a pair of label maps, or of lists of them.
        reduction: "mean" for one number, "none" for a dictionary by class (absent classes left out).
        ignore_index: where the reference has this label nothing is counted.
        from_logits: whether the first of the pair holds logits, as in `ConfusionMetric`.
    """

    def __init__(
        self,
        num_classes: int,
        class_groups: Sequence[Sequence[int]] | None = None,
        output_transform: Callable[..., Any] = lambda output: output,
        reduction: str = "mean",
        ignore_index: int | None = None,
        from_logits: bool = False,
    ) -> None:
        if reduction not in ("mean", "none"):
            raise ValueError(f'reduction must be "mean" or "none", not {reduction!r}')
        self.reduction = reduction
        super().__init__(num_classes, class_groups, output_transform, ignore_index, from_logits)

    def compute(self) -> float | dict[str, float]:
        """Return the mean, or the scores by class."""
        scores = dice_scores(self.confusion())
        if self.reduction == "none":
            return {str(k): float(score) for k, score in enumerate(scores) if not torch.isnan(score)}
        return float(scores[1:].nanmean()) if bool((~scores[1:].isnan()).any()) else 0.0


class SegmentationScores(ConfusionMetric):
    """mIoU, mean Dice, pixel and mean accuracy, and scores by class, pooled over everything seen; an Ignite metric.

    Args:
        num_classes: number of labels, background included.
        score: name of one score of `segmentation_scores`, such as "mean_iou", to give it alone (NaN where nothing
            speaks of it); None for the dictionary of all, whose entries Ignite puts beside the other metrics.
        class_names: one for each class, or for each group.
        class_groups: groups of classes that count as one.
        output_transform: from the engine's output to a pair of label maps (or logits and label maps), or of lists.
        ignore_index: where the reference has this label nothing is counted.
        from_logits: whether the first of the pair holds logits, as in `ConfusionMetric`.

    Raises:
        ValueError: if there is no class, no such score, or not one name for each class.
    """

    def __init__(
        self,
        num_classes: int,
        score: str | None = None,
        class_names: Sequence[str] | None = None,
        class_groups: Sequence[Sequence[int]] | None = None,
        output_transform: Callable[..., Any] = lambda output: output,
        ignore_index: int | None = None,
        from_logits: bool = False,
    ) -> None:
        self.score = score
        self.class_names = class_names
        length = num_classes if class_groups is None else len(class_groups)
        known = segmentation_scores(torch.eye(max(length, 1)), class_names)
        if score is not None and score not in known:
            raise ValueError(f"score {score!r} is none of {', '.join(known)}")
        super().__init__(num_classes, class_groups, output_transform, ignore_index, from_logits)

    def compute(self) -> float | dict[str, float]:
        """Return one score, or all by name."""
        ignored_class = self.ignore_index if self.class_groups is None else None
        scores = segmentation_scores(self.confusion(), self.class_names, ignored_class)
        return scores if self.score is None else scores.get(self.score, math.nan)
