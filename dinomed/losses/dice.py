"""Dice for label maps in which a batch rarely shows every class, alone and beside cross-entropy or focal loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinomed.losses.cross_entropy import check_gamma, check_smoothing, cross_entropy, focal
from dinomed.losses.pixels import UNCOUNTED, CountedPixels, PixelLoss, check_labels, mean_of_present


def dice_of_classes(
    probs: Tensor, labels: Tensor, counted: Tensor | None, sizes: Tensor, present: Sequence[int], smooth: float
) -> Tensor:
    """Soft Dice coefficients of some classes, pooled over the batch."""
    scores = []
    by_class = probs.unbind(dim=1)  # in the backward pass an index would fill a gradient of all classes for each class
    for index in present:
        given, wanted = by_class[index], labels == index
        if counted is not None:
            given = given.masked_fill(~counted, 0)
        overlap = (given * wanted).sum()
        scores.append((2 * overlap + smooth) / (given.sum() + sizes[index] + smooth))
    return torch.stack(scores) if scores else probs[:0].flatten()


def dice_of_present_classes(
    probs: Tensor, target: Tensor, smooth: float = 1.0, ignore_index: int | None = None
) -> Tensor:
    """Soft Dice coefficient of each class that the target shows, pooled over the batch.

    A class that the target does not show is left out. Scoring it would reward the network for a zero everywhere, with a
    gradient that grows the nearer it comes to that; classes that are absent from many batches are then never learned.

    Args:
        probs: (B, C, ...) probabilities.
        target: (B, 1, ...) integer labels below C.
        smooth: added to numerator and denominator.
        ignore_index: label of the pixels that count nowhere, or None.

    Returns:
        (present classes,) coefficients, (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth).

    Raises:
        ValueError: If the shapes do not fit or a label is out of range.
    """
    labels, sizes = check_labels(target, probs, probs.shape[1], ignore_index)
    counted = None if ignore_index is None else labels != UNCOUNTED
    return dice_of_classes(probs, labels, counted, sizes, torch.nonzero(sizes).flatten().tolist(), smooth)


def dice_loss(
    pixels: CountedPixels, smooth: float = 1.0, class_weights: Tensor | None = None, include_background: bool = True
) -> Tensor:
    """One minus the mean Dice of the classes that the pixels show; zero, with zero gradient, where they show none."""
    present = pixels.present_classes(include_background)
    scores = dice_of_classes(pixels.log_probs.exp(), pixels.labels, pixels.counted, pixels.sizes, present, smooth)
    mean = mean_of_present(scores, present, class_weights)
    return pixels.zero() if mean is None else 1 - mean


def check_smooth(smooth: float) -> float:
    """Return the smoothing of the Dice coefficient.

    Raises:
        ValueError: If it is negative.
    """
    if not smooth >= 0:
        raise ValueError(f"smooth must not be negative, not {smooth}")
    return smooth


class DiceLoss(PixelLoss):
    """One minus the mean soft Dice of the classes that the batch shows, pooled over the batch.

    Args:
        smooth: added to numerator and denominator, in pixels.
        class_weights: of the mean over classes, one for each, or None.
        ignore_index: label of the pixels that count nowhere, or None.
        include_background: whether class 0 has a part in the mean.

    Raises:
        ValueError: If a weight or `smooth` is out of range.
    """

    def __init__(
        self,
        smooth: float = 1.0,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        include_background: bool = True,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        self.smooth = check_smooth(smooth)
        self.include_background = include_background

    def loss(self, pixels: CountedPixels, class_weights: Tensor | None) -> Tensor:
        """Return the loss of checked pixels."""
        return dice_loss(pixels, self.smooth, class_weights, self.include_background)


class DiceCrossEntropyLoss(PixelLoss):
    """Cross-entropy plus one minus the mean Dice of the classes that the batch shows.

    Args:
        smooth: of the Dice coefficient, in pixels.
        dice_weight: factor of the Dice term.
        cross_entropy_weight: factor of the cross-entropy.
        class_weights: of the cross-entropy, one for each class; rare classes are learned sooner with larger ones.
        label_smoothing: of the cross-entropy.
        ignore_index: label of the pixels that count nowhere, or None.
        include_background: whether class 0 has a part in the mean Dice.

    Raises:
        ValueError: If a class weight, `smooth` or the label smoothing is out of range.
    """

    def __init__(
        self,
        smooth: float = 1.0,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        include_background: bool = True,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        self.smooth = check_smooth(smooth)
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.label_smoothing = check_smoothing(label_smoothing)
        self.include_background = include_background

    def loss(self, pixels: CountedPixels, class_weights: Tensor | None) -> Tensor:
        """Return the loss of checked pixels."""
        dice = dice_loss(pixels, self.smooth, include_background=self.include_background)
        return self.dice_weight * dice + self.cross_entropy_weight * cross_entropy(
            pixels, class_weights, self.label_smoothing
        )


class DiceFocalLoss(PixelLoss):
    """Focal loss plus one minus the mean Dice of the classes that the batch shows.

    Args:
        smooth: of the Dice coefficient, in pixels.
        dice_weight: factor of the Dice term.
        focal_weight: factor of the focal term.
        gamma: of the focal term.
        class_weights: of the focal term, one for each class, or None.
        ignore_index: label of the pixels that count nowhere, or None.
        include_background: whether class 0 has a part in the mean Dice.

    Raises:
        ValueError: If a class weight, `smooth` or gamma is out of range.
    """

    def __init__(
        self,
        smooth: float = 1.0,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        include_background: bool = True,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        self.smooth = check_smooth(smooth)
        self.dice_weight = dice_weight
        self.focal_weight = focal_weight
        self.gamma = check_gamma(gamma)
        self.include_background = include_background

    def loss(self, pixels: CountedPixels, class_weights: Tensor | None) -> Tensor:
        """Return the loss of checked pixels."""
        dice = dice_loss(pixels, self.smooth, include_background=self.include_background)
        return self.dice_weight * dice + self.focal_weight * focal(pixels, self.gamma, class_weights)
