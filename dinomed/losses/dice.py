"""Dice and cross-entropy for label maps in which a batch rarely shows every class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def dice_of_present_classes(probs: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice coefficient of each class that the target shows, pooled over the batch.

    A class that the target does not show is left out. Scoring it would reward the network for a zero everywhere, with a
    gradient that grows the nearer it comes to that; classes that are absent from many batches are then never learned.

    Args:
        probs: (B, C, ...) probabilities.
        target: (B, 1, ...) integer labels below C.
        smooth: added to numerator and denominator.

    Returns:
        (present classes,) coefficients, (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth).

    Raises:
        ValueError: If the shapes do not fit.
    """
    if target.shape != (probs.shape[0], 1, *probs.shape[2:]):
        raise ValueError(
            f"target must have the shape (B, 1, ...) of probs {tuple(probs.shape)}, not {tuple(target.shape)}"
        )
    labels = target[:, 0].long()
    sizes = torch.stack([(labels == index).sum() for index in range(probs.shape[1])])
    present = torch.nonzero(sizes).flatten().tolist()
    scores = []
    for index in present:
        given, wanted = probs[:, index], labels == index
        overlap = (given * wanted).sum()
        scores.append((2 * overlap + smooth) / (given.sum() + sizes[index] + smooth))
    return torch.stack(scores)


class DiceCrossEntropyLoss(nn.Module):
    """Cross-entropy plus one minus the mean Dice of the classes that the batch shows.

    Args:
        smooth: of the Dice coefficient, in pixels.
        dice_weight: factor of the Dice term.
        cross_entropy_weight: factor of the cross-entropy.
        class_weights: of the cross-entropy, one for each class; rare classes are learned sooner with larger ones.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        smooth: float = 1.0,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.smooth = smooth
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, C, ...) against integer labels (B, 1, ...)."""
        log_probs = logits.float().log_softmax(dim=1)
        dice = dice_of_present_classes(log_probs.exp(), target, self.smooth)
        weights = None if self.class_weights is None else self.class_weights.to(log_probs.device)
        cross_entropy = functional.nll_loss(log_probs, target[:, 0].long(), weights)
        return self.dice_weight * (1 - dice.mean()) + self.cross_entropy_weight * cross_entropy
