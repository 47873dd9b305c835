"""Cross-entropy and focal loss over the pixels that count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dinomed.losses.pixels import UNCOUNTED, CountedPixels, PixelLoss


def total_weight(pixels: CountedPixels, class_weights: Tensor | None) -> Tensor:
    """Sum of the class weights of the counted pixels; their number without weights."""
    sizes = pixels.sizes.to(pixels.log_probs)
    return sizes.sum() if class_weights is None else (sizes * class_weights).sum()


def cross_entropy(pixels: CountedPixels, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy, weighted as `torch.nn.functional.cross_entropy` does.

    With smoothing e of C classes a pixel of class y costs (1 - e) w_y (-log p_y) + e / C sum_c w_c (-log p_c); the sum
    over pixels is divided by the sum of their w_y.

    Args:
        pixels: what counts.
        class_weights: (C,) or None.
        label_smoothing: 0 to below 1.

    Returns:
        A number; zero, with zero gradient, where no pixel has weight.
    """
    total = total_weight(pixels, class_weights)
    if not float(total) > 0:
        return pixels.zero()
    loss = functional.nll_loss(pixels.log_probs, pixels.labels, class_weights, ignore_index=UNCOUNTED)
    if not label_smoothing:
        return loss
    log_probs = pixels.log_probs
    if class_weights is not None:
        log_probs = log_probs * class_weights.view(1, -1, *[1] * (log_probs.ndim - 2))
    spread = -log_probs.sum(dim=1)
    if pixels.counted is not None:
        spread = spread * pixels.counted
    return (1 - label_smoothing) * loss + label_smoothing / pixels.num_classes * spread.sum() / total


def focal(pixels: CountedPixels, gamma: float = 2.0, class_weights: Tensor | None = None) -> Tensor:
    """Mean of (1 - p)^gamma (-log p), p the probability of a pixel's own class; cross-entropy for gamma 0.

    Weights divide out as in the cross-entropy: sum of w_y times the above, over the sum of w_y.

    Args:
        pixels: what counts.
        gamma: how much less a pixel counts the surer it is.
        class_weights: (C,) or None; the alpha of the paper, by class.

    Returns:
        A number; zero, with zero gradient, where no pixel has weight.

    Source:
        Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    total = total_weight(pixels, class_weights)
    if not float(total) > 0:
        return pixels.zero()
    own = pixels.labels if pixels.counted is None else pixels.labels.clamp(min=0)
    log_prob = pixels.log_probs.gather(1, own[:, None])[:, 0]
    # A power below one has an endless slope at zero, where the product's is none; the smallest number stands for zero.
    doubt = (-torch.expm1(log_prob)).clamp(min=torch.finfo(log_prob.dtype).tiny)
    loss = doubt**gamma * -log_prob
    if class_weights is not None:
        loss = loss * class_weights[own]
    if pixels.counted is not None:
        loss = loss * pixels.counted
    return loss.sum() / total


def check_smoothing(label_smoothing: float) -> float:
    """Return the label smoothing.

    Raises:
        ValueError: If it does not lie in 0 to below 1.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, not {label_smoothing}")
    return label_smoothing


def check_gamma(gamma: float) -> float:
    """Return the focal loss's gamma.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be finite and not negative, not {gamma}")
    return gamma


class CrossEntropyLoss(PixelLoss):
    """Cross-entropy of logits (B, C, ...) against labels (B, 1, ...).

    Args:
        class_weights: one for each class, or None.
        label_smoothing: share of each pixel's label that is spread over all classes.
        ignore_index: label of the pixels that count nowhere, or None.

    Raises:
        ValueError: If a weight or the smoothing is out of range.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        self.label_smoothing = check_smoothing(label_smoothing)

    def loss(self, pixels: CountedPixels, class_weights: Tensor | None) -> Tensor:
        """Return the loss of checked pixels."""
        return cross_entropy(pixels, class_weights, self.label_smoothing)


class FocalLoss(PixelLoss):
    """Focal loss of logits (B, C, ...) against labels (B, 1, ...), over the softmax; over the sigmoid for one channel.

    Args:
        gamma: how much less a pixel counts the surer it is; 0 is the cross-entropy.
        class_weights: one for each class, or None.
        ignore_index: label of the pixels that count nowhere, or None.

    Raises:
        ValueError: If a weight or gamma is out of range.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        self.gamma = check_gamma(gamma)

    def loss(self, pixels: CountedPixels, class_weights: Tensor | None) -> Tensor:
        """Return the loss of checked pixels."""
        return focal(pixels, self.gamma, class_weights)
