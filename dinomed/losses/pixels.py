"""The pixels of a batch that a loss counts: checked labels, and log-probabilities in full precision."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

UNCOUNTED = -100  # the label of pixels that count nowhere, which torch's own losses leave out too


@dataclass(frozen=True)
class CountedPixels:
    """What every loss starts from.

    Attributes:
        log_probs: (B, C, ...) float32, or float64 where the logits are; any finite number where a pixel does not count.
        labels: (B, ...) int64, `UNCOUNTED` where a pixel does not count.
        counted: (B, ...) bool; None where all count.
        sizes: (C,) int64, the counted pixels of each class.
    """

    log_probs: Tensor
    labels: Tensor
    counted: Tensor | None
    sizes: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes, two for logits of one channel."""
        return self.log_probs.shape[1]

    def present_classes(self, include_background: bool = True) -> list[int]:
        """Classes that the labels show."""
        present: list[int] = torch.nonzero(self.sizes).flatten().tolist()
        return [index for index in present if index or include_background]

    def zero(self) -> Tensor:
        """A loss of zero whose gradient is zero, not missing."""
        return self.log_probs[:0].sum()


def check_labels(target: Tensor, like: Tensor, num_classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Labels as int64 with `UNCOUNTED` for `ignore_index`, and the number of pixels of each class.

    Args:
        target: (B, 1, ...) labels of any type that holds whole numbers.
        like: (B, C, ...), the logits or probabilities that the labels belong to.
        num_classes: labels lie below.
        ignore_index: label that counts nowhere, inside or outside that range; None for none.

    Returns:
        (B, ...) int64 and (num_classes,) int64.

    Raises:
        ValueError: If the shapes do not fit, a label is no whole number, or one is out of range.
    """
    if like.ndim < 2 or target.shape != (like.shape[0], 1, *like.shape[2:]):
        raise ValueError(
            f"target must have the shape (B, 1, ...) of logits {tuple(like.shape)}, not {tuple(target.shape)}"
        )
    given = target[:, 0].as_subclass(Tensor)
    labels = given.long()
    if given.is_floating_point() and not torch.equal(labels.to(given.dtype), given):
        raise ValueError("target holds numbers that are no labels; labels are whole numbers")
    valid = labels
    if ignore_index is not None:
        ignored = labels == ignore_index
        valid = labels[~ignored]
        labels = labels.masked_fill(ignored, UNCOUNTED)
    if valid.numel() and not (int(valid.min()) >= 0 and int(valid.max()) < num_classes):
        raise ValueError(
            f"target holds labels {int(valid.min())} to {int(valid.max())}; they must lie in 0..{num_classes - 1}"
            + ("; name a label that shall not count ignore_index" if ignore_index is None else f" or be {ignore_index}")
        )
    return labels, torch.bincount(valid.flatten(), minlength=num_classes)


def counted_pixels(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> CountedPixels:
    """Check logits and labels, and give the log-probabilities of the pixels that count.

    One channel is the logit of label 1 against label 0, as under a sigmoid. It counts as two classes, the first with
    the logit 0, so that every loss means the same for one channel as for two: sigmoid(x) is the softmax of (0, x).

    Args:
        logits: (B, C, ...) of any floating type; bfloat16 and float16 are computed in float32.
        target: (B, 1, ...) labels.
        ignore_index: label of the pixels that count nowhere, or None.

    Raises:
        ValueError: If the shapes do not fit, there is no class, or a label is out of range.
    """
    if logits.ndim < 2 or not logits.shape[1]:
        raise ValueError(f"logits must have the shape (B, C, ...) with a channel for each class, not {logits.shape}")
    logits = logits.as_subclass(Tensor)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    labels, sizes = check_labels(target, logits, logits.shape[1], ignore_index)
    counted = None
    if ignore_index is not None and int(sizes.sum()) < labels.numel():
        counted = labels != UNCOUNTED
        logits = logits.masked_fill(~counted[:, None], 0)  # not even a NaN or an infinity there reaches the gradient
    return CountedPixels(logits.log_softmax(dim=1), labels, counted, sizes)


def class_weight_tensor(class_weights: Sequence[float] | None) -> Tensor | None:
    """Class weights as a float32 tensor.

    Raises:
        ValueError: If one is negative or not finite, or all are zero.
    """
    if class_weights is None:
        return None
    weights = [float(weight) for weight in class_weights]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(f"class_weights must be finite, not negative and not all zero, not {weights}")
    return torch.tensor(weights, dtype=torch.float32)


def weights_like(class_weights: Tensor | None, pixels: CountedPixels) -> Tensor | None:
    """Class weights in the type and on the device of the pixels.

    Raises:
        ValueError: If there is not one weight for each class.
    """
    if class_weights is None:
        return None
    if class_weights.shape != (pixels.num_classes,):
        raise ValueError(
            f"class_weights must hold one weight for each of {pixels.num_classes} classes, not {class_weights.numel()}"
        )
    return class_weights.to(pixels.log_probs)


def mean_of_present(scores: Tensor, present: Sequence[int], class_weights: Tensor | None) -> Tensor | None:
    """Mean of the scores of the present classes, by their weights; None where no weight is left."""
    if not present:
        return None
    if class_weights is None:
        return scores.mean()
    weights = class_weights[list(present)]
    total = weights.sum()
    return (weights * scores).sum() / total if float(total) > 0 else None


class PixelLoss(nn.Module, ABC):
    """A loss of logits against label maps; says what all of them share.

    Args:
        class_weights: one for each class (two for logits of one channel), or None.
        ignore_index: label of the pixels that count nowhere, or None.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None, ignore_index: int | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", class_weight_tensor(class_weights), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, C, ...) against labels (B, 1, ...).

        Raises:
            ValueError: If the shapes do not fit, a label is out of range, or the weights are not one for each class.
        """
        pixels = counted_pixels(logits, target, self.ignore_index)
        return self.loss(pixels, weights_like(self.class_weights, pixels))

    @abstractmethod
    def loss(self, pixels: CountedPixels, class_weights: Tensor | None) -> Tensor:
        """Return the loss of checked pixels."""
