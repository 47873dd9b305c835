"""Classification of bags: one answer for several images together, such as the slices of a scan.

A bag is classified from the vectors of its images, which a backbone has made before. How the images become one answer
is the pooling, and what a single image's logits mean depends on it, see `BagHead.instance_logits`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dinomed.networks.classifier import ClassificationHead, GatedAttentionPooling

POOLINGS = ("mean", "meanmax", "attention", "smoothmax")
SHARPNESS = 4.0
"""Of the smooth maximum: 0 would be the mean of the logits, infinity their maximum."""


class BagHead(nn.Module):
    """Logits of bags of vectors.

    Args:
        in_features: Length C of the vectors.
        num_classes: Number of logits K.
        pooling: "mean" classifies the mean vector, "meanmax" the mean and the maximum joined, "attention" the mean
            weighted by a gated attention (multiple-instance learning), "smoothmax" classifies every vector and takes
            a smooth maximum of the logits over the bag (log-mean-exp).
        hidden_features: Width of the head; 0 makes it one linear layer.
        dropout: Probability before the last layer.
        attention_features: Width of the attention.

    Raises:
        ValueError: If the pooling is unknown or a number makes no sense.

    Source: attention, Ilse et al., ICML 2018; smooth maximum, Pinheiro and Collobert, "From Image-level to Pixel-level
    Labeling with Convolutional Networks", CVPR 2015.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pooling: str = "attention",
        hidden_features: int = 256,
        dropout: float = 0.2,
        attention_features: int = 128,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is unknown; choose from {', '.join(POOLINGS)}")
        self.in_features = in_features
        self.num_classes = num_classes
        self.pooling = pooling
        width = 2 * in_features if pooling == "meanmax" else in_features
        self.classify = ClassificationHead(width, num_classes, hidden_features, dropout)
        self.attend = GatedAttentionPooling(in_features, attention_features) if pooling == "attention" else None

    def forward(self, bags: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map bags (B, N, C) to logits (B, K).

        Args:
            bags: Vectors; what stands in those that do not count has no influence.
            valid: Which vectors count, (B, N) bool; None: all. Every bag needs at least one.
        """
        if valid is None:
            valid = torch.ones(bags.shape[:2], dtype=torch.bool, device=bags.device)
        counted = valid[..., None]
        bags = bags.masked_fill(~counted, 0.0)
        if self.attend is not None:
            logits: Tensor = self.classify(self.attend(bags, valid)[0])
            return logits
        if self.pooling == "smoothmax":
            scores = (SHARPNESS * self.classify(bags)).masked_fill(~counted, float("-inf"))
            counts = valid.sum(dim=1, keepdim=True)
            smooth: Tensor = (scores.logsumexp(dim=1) - counts.to(scores.dtype).log()) / SHARPNESS
            return smooth
        pooled = bags.sum(dim=1) / valid.sum(dim=1, keepdim=True)
        if self.pooling == "meanmax":
            largest = bags.masked_fill(~counted, -math.inf).amax(dim=1)
            pooled = torch.cat([pooled, largest], dim=1)
        logits = self.classify(pooled)
        return logits

    def instance_logits(self, bags: Tensor) -> Tensor:
        """Map bags (B, N, C) to the logits of each vector by itself, (B, N, K).

        With "smoothmax" these are what the bag's logits are made of. With the other poolings the head was trained on
        pooled vectors, and this is what it says of a bag of this one vector: a ranking, not a probability.
        """
        vectors = torch.cat([bags, bags], dim=-1) if self.pooling == "meanmax" else bags
        logits: Tensor = self.classify(vectors)
        return logits

    def attention(self, bags: Tensor, valid: Tensor | None = None) -> Tensor | None:
        """Give the weight of each vector in its bag, (B, N), which sum to 1; None where the pooling is no attention."""
        if self.attend is None:
            return None
        weights: Tensor = self.attend(bags, valid)[1]
        return weights
