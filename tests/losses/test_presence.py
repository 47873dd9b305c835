"""Presence of findings in images and patches, learnt from maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dinomed.losses.presence import PresenceLoss, present_kinds
from dinomed.networks import create_backbone
from dinomed.networks.patch_classifier import PatchClassifier


def maps():
    made = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    made[0, 0, :8, :8] = 2  # 64 pixels in the first patch
    made[1, 0, 20, 20:23] = 1  # 3 pixels in the last one
    return made


def test_a_kind_counts_from_the_smallest_number_of_pixels_on():
    assert present_kinds(maps(), 2, smallest_pixels=1).tolist() == [[1, 0, 1], [1, 1, 0]]
    assert present_kinds(maps(), 2, smallest_pixels=4).tolist() == [[1, 0, 1], [0, 0, 0]]


def test_the_loss_is_that_of_the_images_and_of_the_patches():
    torch.manual_seed(0)
    logits = {"image": torch.randn(2, 3), "patches": torch.randn(2, 3, 2, 2)}
    shown = torch.zeros(2, 3, 2, 2)
    shown[0, [0, 2], 0, 0] = 1  # a quarter of the patch; the three pixels are too few
    whole = F.binary_cross_entropy_with_logits(logits["image"], torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    parts = F.binary_cross_entropy_with_logits(logits["patches"], shown, pos_weight=torch.tensor(5.0))
    loss = PresenceLoss(2, smallest_pixels=4, patch_weight=0.5)
    assert loss(logits, maps()).item() == pytest.approx((whole + 0.5 * parts).item(), rel=1e-6)


@pytest.mark.parametrize(("features", "width"), [("cls", 32), ("patch", 32), ("both", 64)])
def test_the_network_answers_for_images_and_patches(features, width):
    backbone = create_backbone("dinov3_vits16", embed_dim=32, depth=1, num_heads=2, frozen=False)
    network = PatchClassifier(backbone, 3, features)
    assert network.head.in_features == width
    logits = network(torch.randn(2, 3, 32, 48))
    assert logits["image"].shape == (2, 3)
    assert logits["patches"].shape == (2, 3, 2, 3)
    loss = PresenceLoss(2, smallest_pixels=4)(logits, torch.ones(2, 1, 32, 48, dtype=torch.uint8))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.patch_head.parameters())
