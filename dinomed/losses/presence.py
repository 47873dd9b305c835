"""Whether kinds of findings are present in an image and in each of its patches, learnt from maps of the findings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def present_kinds(maps: Tensor, num_kinds: int, smallest_pixels: int) -> Tensor:
    """Say what maps of findings show.

    Args:
        maps: (B, 1, H, W) integers: the kind, from 1 on, 0 for nothing.
        num_kinds: Number of kinds.
        smallest_pixels: A kind with fewer pixels does not count.

    Returns:
        (B, 1 + num_kinds) float32: whether any kind is shown, then each.
    """
    counts = torch.stack([(maps == kind + 1).sum((1, 2, 3)) for kind in range(num_kinds)], dim=1)
    shown = (counts >= smallest_pixels).float()
    return torch.cat([shown.amax(1, keepdim=True), shown], dim=1)


class PresenceLoss(nn.Module):
    """Binary cross-entropy of images and of their patches or cells, added.

    Args:
        num_kinds: Number of kinds; the network gives one logit more, "any" in front.
        smallest_pixels: A kind with fewer pixels in an image does not count.
        smallest_share: Part of a patch or cell that a kind must cover to count there.
        patch_weight: Of the patches' loss.
        positive_weight: Of patches or cells that show a kind, which are rare.
    """

    def __init__(
        self,
        num_kinds: int,
        smallest_pixels: int,
        smallest_share: float = 0.04,
        patch_weight: float = 1.0,
        positive_weight: float = 5.0,
    ) -> None:
        super().__init__()
        self.num_kinds = num_kinds
        self.smallest_pixels = smallest_pixels
        self.smallest_share = smallest_share
        self.patch_weight = patch_weight
        self.positive_weight = positive_weight

    def forward(self, logits: Mapping[str, Tensor], maps: Tensor) -> Tensor:
        """Compare the logits of a `PatchClassifier` with maps (B, 1, H, W) as `present_kinds` takes them."""
        image, patches = logits["image"].float(), logits["patches"].float()
        whole = F.binary_cross_entropy_with_logits(image, present_kinds(maps, self.num_kinds, self.smallest_pixels))
        kinds = torch.cat([(maps == kind + 1) for kind in range(self.num_kinds)], dim=1).float()
        size = (patches.shape[-2], patches.shape[-1])
        shares = F.adaptive_avg_pool2d(torch.cat([kinds.amax(1, keepdim=True), kinds], dim=1), size)
        shown = (shares >= self.smallest_share).float()
        weight = torch.full((), self.positive_weight, device=patches.device)
        return whole + self.patch_weight * F.binary_cross_entropy_with_logits(patches, shown, pos_weight=weight)
