"""A backbone out of a trained network."""

from __future__ import annotations

import pytest
import torch

from dinomed.bundle.backbone_files import save_best_backbone, start_backbone
from dinomed.bundle.checkpoint import load_network
from dinomed.errors import WeightsError
from dinomed.networks import DINOv3Adapter, create_backbone
from dinomed.networks.bags import BagHead
from dinomed.networks.patch_classifier import PatchClassifier

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}


def make(seed, **options):
    torch.manual_seed(seed)
    return create_backbone("dinov3_vits16", frozen=False, **{**SMALL, **options})


def equal(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def test_the_backbone_is_found_wherever_it_is(tmp_path):
    trained = make(1)
    for network in (PatchClassifier(trained, 3), DINOv3Adapter(trained), trained):
        torch.save(network.state_dict(), tmp_path / "network.pt")
        assert equal(start_backbone(make(2), tmp_path / "network.pt"), trained)


def test_without_a_file_it_stays_as_it_is():
    assert equal(start_backbone(make(2), None), make(2))


def test_another_form_is_refused(tmp_path):
    torch.save(PatchClassifier(make(1), 3).state_dict(), tmp_path / "network.pt")
    with pytest.raises(WeightsError, match="holds no ViTBackbone of this form"):
        start_backbone(make(2, embed_dim=48), tmp_path / "network.pt")
    with pytest.raises(WeightsError, match="no file"):
        start_backbone(make(2), tmp_path / "absent.pt")


def test_the_file_that_is_kept_is_one_that_a_backbone_is_built_from(tmp_path):
    trained = make(1)
    torch.save(PatchClassifier(trained, 3).state_dict(), tmp_path / "best.pt")
    save_best_backbone(make(2), tmp_path)
    read = create_backbone("dinov3_vits16", weights=str(tmp_path / "backbone.pt"), **SMALL)
    for name, value in trained.state_dict().items():
        wanted = value.half().float() if value.ndim > 1 else value
        torch.testing.assert_close(read.state_dict()[name], wanted, rtol=0, atol=0)


def test_the_images_head_can_be_the_start_of_a_bags_head(tmp_path):
    network = PatchClassifier(make(1), 3, "all")
    torch.save(network.state_dict(), tmp_path / "best.pt")
    save_best_backbone(make(2), tmp_path)
    head = load_network(BagHead(96, 3, "smoothmax", hidden_features=0), tmp_path / "head.pt")
    vectors = torch.randn(2, 1, 96)
    torch.testing.assert_close(head(vectors), network.head(vectors[:, 0]))
