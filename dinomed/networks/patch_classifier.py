"""A classifier that answers for the whole image and for each of its patches, to teach a backbone where things are."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dinomed.networks.backbones import TimmBackbone
from dinomed.networks.classifier import features_width, join_features


class PatchClassifier(nn.Module):
    """Logits of images and of their patches.

    Args:
        backbone: Class and patch tokens come from its last layer; its freezing is its own affair.
        num_classes: Number K of logits.
        features: What the image's logits are made of: one of `dinomed.networks.classifier.FEATURES`.
        cells: Logits of a patch along each of its sides; more teach the tokens finer detail.

    Raises:
        ValueError: If the features are unknown or there are no cells.
    """

    def __init__(self, backbone: TimmBackbone, num_classes: int, features: str = "both", cells: int = 1) -> None:
        super().__init__()
        if cells < 1:
            raise ValueError(f"cells must be 1 or more, not {cells}")
        self.cells = cells
        self.features = features
        self.head = nn.Linear(features_width(backbone, features), num_classes)
        self.patch_head = nn.Conv2d(backbone.model.num_features, num_classes * cells**2, 1)
        self.backbone = backbone

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to "image" logits (B, K) and "patches" logits (B, K, cells * h, cells * w)."""
        tokens = self.backbone.forward_last(image)
        logits = self.head(join_features(tokens, self.features))
        return {"image": logits, "patches": F.pixel_shuffle(self.patch_head(tokens.patch_map), self.cells)}
