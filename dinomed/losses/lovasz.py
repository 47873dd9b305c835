"""Lovasz-softmax: a convex surrogate of one minus the Jaccard index (IoU)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinomed.losses.pixels import CountedPixels, PixelLoss, mean_of_present


def lovasz_extension_of_jaccard_loss(errors: Tensor, wanted: Tensor) -> Tensor:
    """The Lovasz extension of one minus the IoU, at a vector of errors.

    With the n largest errors taken for the misclassified pixels, the IoU is (wanted pixels not among them) / (wanted
    pixels and all of them). The extension weights each error by how much the loss grows as its pixel joins. Pixels are
    counted in whole numbers and the ratio taken in double precision, since float32 counts no further than 2^24 pixels.

    Args:
        errors: (N,) in [0, 1].
        wanted: (N,) bool, the pixels of the class; at least one.

    Returns:
        A number; at errors that are 0 or 1, one minus the IoU itself.
    """
    ordered, order = torch.sort(errors, descending=True)
    inside = wanted[order].long()
    size = inside.sum()
    remaining = size - inside.cumsum(0)
    union = size + (1 - inside).cumsum(0)
    jaccard_loss = 1 - remaining.double() / union.double()
    growth = jaccard_loss.diff(prepend=jaccard_loss.new_zeros(1))
    return torch.dot(ordered, growth.to(ordered.dtype))


def lovasz_softmax(
    pixels: CountedPixels, class_weights: Tensor | None = None, include_background: bool = True
) -> Tensor:
    """Mean of the Lovasz extension over the classes that the pixels show, pooled over the batch.

    Args:
        pixels: what counts.
        class_weights: of the mean over classes, (C,) or None.
        include_background: whether class 0 has a part in the mean.

    Returns:
        A number; zero, with zero gradient, where no class with weight is shown.

    Source:
        Berman, Triki, Blaschko, The Lovasz-Softmax loss, CVPR 2018, equations 8, 9, 11 and 12.
    """
    present = pixels.present_classes(include_background)
    if not present:
        return pixels.zero()
    counted = pixels.counted
    labels = pixels.labels.flatten() if counted is None else pixels.labels[counted]
    losses = []
    by_class = pixels.log_probs.unbind(dim=1)  # an index would fill a gradient of all classes for each class
    for index in present:
        probs = by_class[index].exp()
        probs = probs.flatten() if counted is None else probs[counted]
        wanted = labels == index
        losses.append(lovasz_extension_of_jaccard_loss(torch.where(wanted, 1 - probs, probs), wanted))
    mean = mean_of_present(torch.stack(losses), present, class_weights)
    return pixels.zero() if mean is None else mean


class LovaszSoftmaxLoss(PixelLoss):
    """Lovasz-softmax loss of logits (B, C, ...) against labels (B, 1, ...), over the classes that the batch shows.

    Args:
        class_weights: of the mean over classes, one for each, or None.
        ignore_index: label of the pixels that count nowhere, or None.
        include_background: whether class 0 has a part in the mean.

    Raises:
        ValueError: If a weight is out of range.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        include_background: bool = True,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        self.include_background = include_background

    def loss(self, pixels: CountedPixels, class_weights: Tensor | None) -> Tensor:
        """Return the loss of checked pixels."""
        return lovasz_softmax(pixels, class_weights, self.include_background)
