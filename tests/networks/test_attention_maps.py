"""Maps of attention, gradients, occlusion and similarity."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinomed.networks import create_backbone
from dinomed.networks.attention_maps import (
    attention_rollout,
    attention_weights,
    occlusion,
    patch_similarity,
    token_gradients,
)

VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}
NAMES = ("dinov3_vits16", "dinov3_vits16plus", "dinov3_vit7b16", "meddinov3_vitb16")  # biases, MLPs, bfloat16 table


def make_backbone(name="dinov3_vits16", frozen=True, **options):
    """A backbone whose layer scales and biases matter, as in trained weights."""
    torch.manual_seed(0)
    backbone = create_backbone(name, frozen=frozen, **(VIT | options))
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            if "gamma" in key:
                parameter.fill_(0.5)
            elif "bias" in key or "token" in key:
                parameter.normal_(std=0.3)
            elif "qkv" in key:
                parameter.mul_(12.0)
    return backbone.eval()


def first_tokens(backbone, images):
    """What enters the first block, caught on its way."""
    caught = {}

    def catch(module, given, named):
        caught.setdefault("tokens", given[0])
        caught.setdefault("rope", named["rope"])

    handle = backbone.model.blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    tokens = backbone.forward_last(images)
    handle.remove()
    return caught["tokens"], caught["rope"], tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_those_that_the_layer_itself_uses(name):
    backbone = make_backbone(name)
    tokens, rope, _ = first_tokens(backbone, torch.randn(2, 3, 48, 40))
    for block in backbone.model.blocks:
        normed = block.norm1(tokens)
        weights, values = attention_weights(block.attn, normed, rope)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 14))
        assert weights.amax(-1).mean() > 0.2, "nearly uniform weights would prove nothing"
        mine = block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mine, block.attn(normed, rope=rope), atol=1e-5, rtol=0)
        tokens = block(tokens, rope=rope)


def test_rollout_multiplies_the_layers_as_published():
    backbone = make_backbone()
    images = torch.randn(2, 3, 48, 32)
    caught = []
    handles = [
        block.attn.register_forward_pre_hook(
            lambda module, given, named: caught.append((module, given[0], named["rope"])), with_kwargs=True
        )
        for block in backbone.model.blocks
    ]
    backbone.forward_last(images)
    for handle in handles:
        handle.remove()
    rolled = [torch.eye(11, dtype=torch.float64) for _ in images]
    for module, tokens, rope in caught:
        weights, _ = attention_weights(module, tokens, rope)
        for index in range(len(images)):
            step = 0.5 * weights[index].double().mean(0) + 0.5 * torch.eye(11)
            rolled[index] = (step / step.sum(-1, keepdim=True)) @ rolled[index]
    wanted = torch.stack([each[0, 5:].reshape(3, 2) for each in rolled])
    found = attention_rollout(backbone, images)
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention_rollout(backbone, images, batch_size=1), found)
    assert (found > 0).all()
    assert (found.sum((1, 2)) < 1).all()


def test_equal_keys_spread_the_attention_evenly():
    backbone = make_backbone(depth=1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        backbone.model.blocks[0].attn.qkv.weight[32:64].zero_()
    uniform = attention_rollout(backbone, images)
    torch.testing.assert_close(uniform, torch.full((1, 4, 4), 0.5 / 21))


@pytest.mark.parametrize(("size", "cells"), [((50, 33), (4, 3)), ((16, 100), (1, 7)), ((7, 5), (1, 1))])
def test_images_of_any_size_are_padded_as_in_the_backbone(size, cells):
    backbone = make_backbone()
    images = torch.randn(2, 3, *size)
    whole = backbone.forward_last(images)
    assert whole.patch_map.shape[-2:] == cells
    assert attention_rollout(backbone, images).shape == (2, *cells)
    seen = {}

    def score(class_token, patch_map):
        seen.update(class_token=class_token, patch_map=patch_map)
        return class_token.sum(-1)

    assert token_gradients(backbone, score, images).shape == (2, *cells)
    torch.testing.assert_close(seen["class_token"], whole.class_token)
    torch.testing.assert_close(seen["patch_map"], whole.patch_map)
    assert occlusion(lambda each: each.mean((1, 2, 3)), images, fill=0.0).shape == (2, *cells)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_times_activations_are_the_first_order_share_of_the_score(name):
    backbone = make_backbone(name)
    images = torch.randn(1, 3, 32, 48)
    direction = torch.randn(32)
    found = token_gradients(backbone, lambda cls, patches: cls @ direction, images)
    tokens, rope, _ = first_tokens(backbone, images)
    *blocks, last = backbone.model.blocks
    for block in blocks:
        tokens = block(tokens, rope=rope)
    leaf = tokens.detach().clone().requires_grad_()
    score = (backbone.model.norm(last(leaf, rope=rope))[:, 0] @ direction).sum()
    score.backward()
    wanted = (leaf.grad * leaf).sum(-1)[0, 5:].clamp(min=0).reshape(1, 2, 3).detach()
    torch.testing.assert_close(found, wanted)
    assert found.max() > 0
    assert (found == 0).any(), "the negative part is cut off"


def test_gradients_work_frozen_and_in_inference_mode_and_leave_nothing_behind():
    backbone, head = make_backbone(), nn.Linear(32, 1)
    images = torch.randn(2, 3, 32, 32)

    def score(class_token, patch_map):
        return head(class_token + patch_map.mean((-2, -1))).squeeze(-1)

    wanted = token_gradients(backbone, score, images)
    torch.testing.assert_close(token_gradients(backbone, score, images, batch_size=1), wanted)
    with torch.inference_mode():
        made_there = images.clone()
        torch.testing.assert_close(token_gradients(backbone, score, made_there), wanted)
    for network in (backbone, head):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.training
    assert not wanted.requires_grad
    released = make_backbone(frozen=False)
    torch.testing.assert_close(token_gradients(released, score, images), wanted)
    assert all(parameter.grad is None for parameter in released.parameters())


def test_a_score_without_a_gradient_or_of_another_shape_is_refused():
    backbone, images = make_backbone(), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="do not detach"):
        token_gradients(backbone, lambda cls, patches: cls.detach().sum(-1), images)
    with pytest.raises(ValueError, match=r"one differentiable number an image, \(2,\), not \(2, 32\)"):
        token_gradients(backbone, lambda cls, patches: cls, images)


def test_occlusion_falls_where_the_score_looks_and_nowhere_else():
    images = torch.zeros(2, 3, 64, 48)
    images[0, :, 32:48, 16:32] = 4.0  # cell (2, 1)
    images[1, :, 0:16, 32:48] = 2.0  # cell (0, 2)
    drops = occlusion(lambda each: each.amax((1, 2, 3)), images, patch=16, stride=16, fill=0.0, batch_size=5)
    wanted = torch.zeros(2, 4, 3)
    wanted[0, 2, 1], wanted[1, 0, 2] = 4.0, 2.0
    torch.testing.assert_close(drops, wanted)
    wide = occlusion(lambda each: each.sum((1, 2, 3)), images, patch=32, stride=16, fill=0.0)
    assert int(wide[0].argmax()) == 2 * 3 + 1, "the window shares its cell's centre"
    assert wide[0, 2, 1] == pytest.approx(4.0 * 3 * 16 * 16)
    assert wide[0, 1, 1] == pytest.approx(4.0 * 3 * 8 * 16)
    assert wide[0, 0, 1] == 0


def test_occlusion_fills_each_channel_with_its_own_value_and_keeps_the_images():
    images = torch.randn(1, 3, 32, 32)
    kept = images.clone()
    seen = []

    def score(each):
        seen.append(each.clone())
        return each.flatten(1).sum(1)

    occlusion(score, images, patch=16, stride=16, fill=[-2.0, -1.0, 0.5], batch_size=3)
    assert torch.equal(images, kept)
    assert [len(each) for each in seen] == [1, 3, 1]
    wanted = torch.tensor([-2.0, -1.0, 0.5])[:, None, None].expand(3, 16, 16)
    assert torch.equal(seen[1][0, :, :16, :16], wanted)
    assert torch.equal(seen[1][0, :, 16:], kept[0, :, 16:])


def test_occlusion_follows_a_flipped_image():
    backbone, direction = make_backbone(), torch.randn(3, 64, 64)
    images = torch.randn(1, 3, 64, 64)
    plain = occlusion(lambda each: (each * direction).sum((1, 2, 3)), images, fill=0.0)
    flipped = occlusion(lambda each: (each.flip(-1) * direction).sum((1, 2, 3)), images.flip(-1), fill=0.0)
    torch.testing.assert_close(flipped.flip(-1), plain, atol=1e-3, rtol=1e-4)
    assert occlusion(lambda each: backbone.forward_last(each).class_token.sum(-1), images, fill=0.0).abs().max() > 0


def test_similarity_is_the_cosine_to_the_reference_patch():
    torch.manual_seed(0)
    patch_map = torch.randn(2, 6, 3, 4) * 5
    patch_map[1, :, 2, 3] = 0.0
    found = patch_similarity(patch_map, 1, 2)
    wanted = nn.functional.cosine_similarity(patch_map, patch_map[:, :, 1:2, 2:3].expand_as(patch_map), dim=1)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found[:, 1, 2], torch.ones(2))
    assert found[1, 2, 3] == 0
    for row, column in ((3, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match=r"rows are 0\.\.2, columns 0\.\.3"):
            patch_similarity(patch_map, row, column)


def test_what_does_not_fit_is_refused_with_what_works():
    convnext = create_backbone("dinov3_convnext_tiny", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"dinov3_convnext_tiny is no transformer.*take occlusion or patch similarity"):
        attention_rollout(convnext, images)
    with pytest.raises(ValueError, match="no token gradients"):
        token_gradients(convnext, lambda cls, patches: cls.sum(-1), images)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), not \(1, 1, 32, 32\)"):
        attention_rollout(make_backbone(), images[:, :1])
    for wrong in ({"patch": 8}, {"patch": 33}, {"stride": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="as large as the stride or larger by an even number"):
            occlusion(lambda each: each.sum((1, 2, 3)), images, fill=0.0, **wrong)
    with pytest.raises(ValueError, match="2 values for 3 channels"):
        occlusion(lambda each: each.sum((1, 2, 3)), images, fill=[0.0, 1.0])
