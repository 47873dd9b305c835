"""Classification heads, pooling over slices, and whole classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinomed.networks import Classifier, create_backbone
from dinomed.networks.classifier import ClassificationHead, GatedAttentionPooling, features_width

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
CONVNEXT = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}


def make_backbone(kind="vit", frozen=True):
    torch.manual_seed(0)
    name, options = ("dinov3_vits16", VIT) if kind == "vit" else ("dinov3_convnext_tiny", CONVNEXT)
    return create_backbone(name, frozen=frozen, **options)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
@pytest.mark.parametrize(("features", "width"), [("cls", 32), ("patch", 32), ("both", 64), ("all", 96)])
def test_a_classifier_gives_the_heads_logits_of_the_chosen_tokens(kind, features, width):
    backbone = make_backbone(kind)
    assert features_width(backbone, features) == width
    classifier = Classifier(backbone, ClassificationHead(width, 5), features).eval()
    image = torch.randn(2, 3, 50, 39)
    tokens = backbone.forward_last(image)
    parts = {"cls": [tokens.class_token], "patch": [tokens.patch_map.flatten(2).mean(-1)]}
    parts["both"] = parts["cls"] + parts["patch"]
    parts["all"] = [*parts["both"], tokens.patch_map.amax((-2, -1))]
    wanted = classifier.head(torch.cat(parts[features], dim=1))
    assert wanted.shape == (2, 5)
    torch.testing.assert_close(classifier(image), wanted)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_reach_what_is_trained_and_nothing_else(frozen):
    classifier = Classifier(make_backbone(frozen=frozen), ClassificationHead(64, 3)).train()
    classifier(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in classifier.head.parameters())
    reached = [parameter.grad is not None for parameter in classifier.backbone.parameters()]
    assert (
        not any(reached)
        if frozen
        else all(
            parameter.grad is not None for parameter in classifier.backbone.parameters() if parameter.requires_grad
        )
    )


def test_several_tasks_have_a_head_each():
    heads = {"organ": ClassificationHead(32, 4, hidden_features=0), "side": ClassificationHead(32, 2)}
    classifier = Classifier(make_backbone(), heads, "cls").eval()
    logits = classifier(torch.randn(3, 3, 32, 32))
    assert {name: tuple(each.shape) for name, each in logits.items()} == {"organ": (3, 4), "side": (3, 2)}


def test_tasks_may_have_names_that_modules_have_already():
    names = ("type", "half", "v1.0", "task:type", "colour")
    heads = {name: ClassificationHead(32, number) for number, name in enumerate(names, start=2)}
    classifier = Classifier(make_backbone(), heads, "cls").eval()
    logits = classifier(torch.randn(1, 3, 32, 32))
    assert {name: each.shape[1] for name, each in logits.items()} == dict(zip(names, range(2, 7), strict=True))
    state = classifier.state_dict()
    assert any(key.startswith("head.colour.") for key in state)
    classifier.load_state_dict(state, strict=True)


def test_a_head_is_one_linear_layer_or_a_small_network():
    assert [type(layer) for layer in ClassificationHead(8, 3, hidden_features=0)] == [nn.Linear]
    head = ClassificationHead(8, 3, hidden_features=16, dropout=0.4)
    assert [type(layer) for layer in head] == [nn.LayerNorm, nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
    assert head[3].p == 0.4
    assert head[1].out_features == 16


def test_what_does_not_fit_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="in_features=64"):
        Classifier(make_backbone(), ClassificationHead(32, 3))
    with pytest.raises(ValueError, match="choose from cls, patch, both"):
        Classifier(make_backbone(), ClassificationHead(32, 3), "mean")
    with pytest.raises(ValueError, match="1 or more features and classes"):
        ClassificationHead(8, 0)


def test_gated_attention_is_a_weighted_mean_that_ignores_the_order():
    torch.manual_seed(0)
    pooling, bags = GatedAttentionPooling(6, 4), torch.randn(3, 5, 6)
    pooled, weights = pooling(bags)
    scores = torch.stack(
        [
            pooling.score(torch.tanh(pooling.value(vector)) * torch.sigmoid(pooling.gate(vector)))[..., 0]
            for vector in bags.unbind(1)
        ],
        dim=1,
    )
    torch.testing.assert_close(weights, scores.softmax(1))
    torch.testing.assert_close(pooled, torch.einsum("bn,bnc->bc", weights, bags))
    order = torch.randperm(5)
    torch.testing.assert_close(pooling(bags[:, order])[0], pooled)


def test_padding_of_a_bag_counts_nothing_even_where_it_is_no_number():
    torch.manual_seed(0)
    pooling, bags = GatedAttentionPooling(6, 4), torch.randn(2, 5, 6)
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    padded = bags.clone()
    padded[0, 3:] = float("nan")
    pooled, weights = pooling(padded, valid)
    alone, _ = pooling(bags[:1, :3])
    torch.testing.assert_close(pooled[:1], alone)
    assert weights[0, 3:].eq(0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
