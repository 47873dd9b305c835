"""The backbone contract, for every family, on small random networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dinomed.networks.backbone_specs import BACKBONES
from dinomed.networks.backbones import TimmBackbone, create_backbone, pad_to_multiple
from dinomed.networks.rope import RopeTable

SMALL_VIT: dict[str, Any] = {"embed_dim": 64, "depth": 4, "num_heads": 2}
SMALL_CONVNEXT: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}
ALL_NAMES = list(BACKBONES)
FAMILIES = ["dinov3_vit_tiny16", "dinov3_vits16plus", "meddinov3_vitb16", "dinov3_convnext_tiny"]


def small_options(name: str) -> dict[str, Any]:
    return SMALL_CONVNEXT if "convnext" in name else SMALL_VIT


def small_backbone(name: str, seed: int = 0, **options: Any) -> TimmBackbone:
    """A small network whose every parameter matters: fresh layer scales of 1e-5 would hide the blocks."""
    torch.manual_seed(seed)
    backbone = create_backbone(name, **{**small_options(name), **options})
    with torch.no_grad():
        for parameter_name, parameter in backbone.named_parameters():
            if "gamma" in parameter_name or "bias" in parameter_name:
                parameter.uniform_(-0.5, 0.5)
    return backbone


def random_image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def relative_error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_name_keeps_the_contract_at_sizes_that_are_no_multiple(name: str) -> None:
    backbone = small_backbone(name)
    height, width = 50, 70
    maps = backbone(random_image(2, 3, height, width))
    assert len(maps) == len(backbone.channels) == len(backbone.strides)
    assert backbone.strides == ([4, 8, 16, 32] if "convnext" in name else [16] * 4)
    for features, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert features.shape == (2, channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize(
    ("name", "width", "layers"),
    [
        ("dinov3_vit_tiny16", 192, [2, 5, 8, 11]),
        ("dinov3_vits16", 384, [2, 5, 8, 11]),
        ("dinov3_vits16plus", 384, [2, 5, 8, 11]),
        ("dinov3_vitb16", 768, [2, 5, 8, 11]),
        ("dinov3_vitl16", 1024, [4, 11, 17, 23]),
        ("dinov3_vith16plus", 1280, [7, 15, 23, 31]),
        ("dinov3_vit7b16", 4096, [9, 19, 29, 39]),
        ("meddinov3_vitb16", 768, [2, 5, 8, 11]),
    ],
)
def test_full_sized_transformers_tap_the_published_layers(name: str, width: int, layers: list[int]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert backbone.layers == layers
    assert backbone.channels == [width] * 4


@pytest.mark.parametrize(("size", "first"), [("tiny", 96), ("small", 96), ("base", 128), ("large", 192)])
def test_full_sized_convnexts_double_their_channels(size: str, first: int) -> None:
    with torch.device("meta"):
        backbone = create_backbone(f"dinov3_convnext_{size}")
    assert backbone.channels == [first, 2 * first, 4 * first, 8 * first]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_odd_size_gives_the_maps_of_the_image_padded_with_zeros(name: str) -> None:
    backbone = small_backbone(name)
    image = random_image(1, 3, 45, 83)
    padded = functional.pad(image, (0, -83 % backbone.multiple, 0, -45 % backbone.multiple))
    for features, reference in zip(backbone(image), backbone(padded), strict=True):
        rows, columns = features.shape[-2:]
        assert torch.equal(features, reference[..., :rows, :columns])


def test_padding_leaves_a_fitting_image_alone() -> None:
    image = random_image(1, 3, 32, 64)
    assert pad_to_multiple(image, 32) is image
    assert pad_to_multiple(image[..., :1, :1], 32).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", ["dinov3_vit_tiny16", "dinov3_vits16plus", "dinov3_vit7b16"])
def test_transformer_equals_timm_in_evaluation_mode(name: str) -> None:
    backbone = small_backbone(name)
    reference = timm.create_model(BACKBONES[name].timm_model, num_classes=0, **SMALL_VIT).eval()
    state = {key: value for key, value in backbone.model.state_dict().items() if key != "rope.periods"}
    reference.load_state_dict(state)
    image = random_image(2, 3, 64, 96)
    with torch.no_grad():
        maps = reference.forward_intermediates(image, indices=[0, 1, 2, 3], norm=True, intermediates_only=True)
    for features, expected in zip(backbone(image), maps, strict=True):
        assert relative_error(features, expected) < 1e-6


@pytest.mark.parametrize("file", ["backbone_official.pth", "backbone_hf", "backbone_hf/model.safetensors"])
def test_features_match_the_official_network(golden_dir: Path, file: str) -> None:
    backbone = create_backbone("dinov3_vits16", weights=golden_dir / file, **SMALL_VIT)
    assert_matches_transformer(backbone, load_file(golden_dir / "backbone_expected.safetensors"))


def test_features_match_meddinov3_with_the_settings_of_its_reference_file(golden_dir: Path) -> None:
    weights = golden_dir / "backbone_meddinov3.pth"
    backbone = create_backbone("meddinov3_vitb16", weights=weights, norm_eps=1e-5, rope_bfloat16=False, **SMALL_VIT)
    assert_matches_transformer(backbone, load_file(golden_dir / "backbone_meddinov3_expected.safetensors"))


def assert_matches_transformer(backbone: TimmBackbone, expected: dict[str, Tensor]) -> None:
    last = backbone.forward_last(expected["input"])
    assert relative_error(last.class_token, expected["output.cls"]) <= 1e-4
    assert relative_error(last.storage_tokens, expected["output.storage"]) <= 1e-4
    assert relative_error(last.patch_map.flatten(2).transpose(1, 2), expected["output.patches"]) <= 1e-4
    for layer, tokens in enumerate(backbone.forward_tokens(expected["input"])):
        assert relative_error(tokens.class_token, expected[f"output.layer{layer}.cls"]) <= 1e-4
        assert relative_error(tokens.patch_map, expected[f"output.layer{layer}.patches"]) <= 1e-4


def test_features_match_the_official_convnext(golden_dir: Path) -> None:
    weights = golden_dir / "backbone_convnext_official.pth"
    backbone = create_backbone("dinov3_convnext_tiny", weights=weights, **SMALL_CONVNEXT)
    expected = load_file(golden_dir / "backbone_convnext_expected.safetensors")
    last = backbone.forward_last(expected["input"])
    assert relative_error(last.class_token, expected["output.cls"]) <= 1e-4
    assert relative_error(last.patch_map.flatten(2).transpose(1, 2), expected["output.patches"]) <= 1e-4
    assert torch.equal(backbone(expected["input"])[-1], last.patch_map)


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_stays_in_evaluation_mode_and_without_gradients(name: str) -> None:
    backbone = small_backbone(name, frozen=True, drop_path_rate=0.5)
    whole = nn.ModuleDict({"backbone": backbone, "head": nn.Conv2d(backbone.channels[-1], 2, 1)})
    image = random_image(1, 3, 64, 64)
    before = backbone(image)
    whole.train()
    assert whole["head"].training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    after = backbone(image)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    whole.requires_grad_(True)
    assert not any(features.requires_grad for features in backbone(image.requires_grad_()))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layers", [None, (0, 2)])
def test_gradients_reach_every_trainable_parameter(name: str, layers: tuple[int, ...] | None) -> None:
    backbone = small_backbone(name, frozen=False, layers=layers)
    assert backbone.training
    sum(
        (features * random_image(*features.shape)).sum() for features in backbone(random_image(1, 3, 64, 96))
    ).backward()
    trainable = {key: parameter for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    without = [key for key, p in trainable.items() if p.grad is None or not p.grad.any()]
    assert trainable
    assert without == []


def test_a_transformer_in_training_mode_gives_the_features_of_evaluation_mode() -> None:
    backbone = small_backbone("dinov3_vit_tiny16", frozen=False)
    image = random_image(1, 3, 64, 64)
    with torch.no_grad():
        training, evaluation = backbone.train()(image), backbone.eval()(image)
    assert all(torch.equal(a, b) for a, b in zip(training, evaluation, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_released_backbone_and_its_copy_train_again(name: str) -> None:
    backbone = copy.deepcopy(small_backbone(name, frozen=True, layers=(0, 1))).set_frozen(False).train()
    assert backbone.training
    backbone(random_image(1, 3, 64, 64))[-1].sum().backward()
    assert not any(p.requires_grad and p.grad is None for p in backbone.parameters())
    assert any(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    image, gradients = random_image(1, 3, 64, 64), []
    for enable in (False, True):
        backbone = small_backbone(name, frozen=False).set_grad_checkpointing(enable)
        backbone(image)[-1].square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_option_turns_gradient_checkpointing_on_and_keeps_random_depth(name: str) -> None:
    """Each block runs again in the backward pass, with the same draws as in the forward pass."""
    image, gradients = random_image(2, 3, 64, 64), []
    for enable in (False, True):
        torch.manual_seed(0)
        backbone = small_backbone(name, frozen=False, gradient_checkpointing=enable, drop_path_rate=0.5).train()
        model = backbone.model
        block, runs = model.blocks[-1] if hasattr(model, "blocks") else model.stages[-1].blocks[-1], []
        block.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(1)
        backbone(image)[-1].square().sum().backward()
        assert len(runs) == 1 + enable
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_chosen_layers_are_those_of_the_full_list(name: str) -> None:
    image = random_image(1, 3, 64, 64)
    full, chosen = small_backbone(name), small_backbone(name, layers=(1, -1))
    assert chosen.layers == [1, 3]
    assert chosen.channels == [full.channels[1], full.channels[3]]
    assert chosen.strides == [full.strides[1], full.strides[3]]
    expected = full(image)
    assert all(torch.equal(a, b) for a, b in zip(chosen(image), [expected[1], expected[3]], strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_last_layer_is_at_hand_when_it_is_not_tapped(name: str) -> None:
    image = random_image(2, 3, 40, 64)
    full, part = small_backbone(name), small_backbone(name, layers=(0, 1))
    expected = full.forward_tokens(image)[-1]
    for ours, reference in zip(part.forward_last(image), expected, strict=True):
        assert torch.equal(ours, reference)
    assert expected.class_token.shape == (2, full.channels[-1])
    assert expected.storage_tokens.shape == (2, 0 if "convnext" in name else 4, full.channels[-1])


def test_convnext_norms_the_last_stage_alone() -> None:
    backbone = small_backbone("dinov3_convnext_tiny")
    tokens = backbone.forward_tokens(random_image(1, 3, 64, 96))
    model = backbone.model
    with torch.no_grad():
        raw = model.forward_intermediates(random_image(1, 3, 64, 96), intermediates_only=True)
        normed = functional.layer_norm(
            raw[-1].permute(0, 2, 3, 1), (40,), model.head.norm.weight, model.head.norm.bias, 1e-6
        ).permute(0, 3, 1, 2)
    assert all(torch.equal(tokens[i].patch_map, raw[i]) for i in range(3))
    assert relative_error(tokens[3].patch_map, normed) < 1e-5
    assert relative_error(tokens[0].class_token, raw[0].mean((-2, -1))) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_autocast_stays_near_float32(name: str) -> None:
    backbone = small_backbone(name)
    image = random_image(1, 3, 64, 96)
    reference = backbone(image)
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone(image)
    for features, expected in zip(maps, reference, strict=True):
        assert relative_error(features.float(), expected) < 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_last_gives_the_same_features(name: str) -> None:
    backbone = small_backbone(name)
    image = random_image(2, 3, 50, 70)
    reference = backbone(image)
    backbone = backbone.to(memory_format=torch.channels_last)
    for features, expected in zip(backbone(image.to(memory_format=torch.channels_last)), reference, strict=True):
        assert relative_error(features, expected) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_export_keeps_the_batch_dynamic(name: str) -> None:
    backbone = small_backbone(name)
    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=8)}}
    program = torch.export.export(backbone, (random_image(2, 3, 50, 64),), dynamic_shapes=shapes).run_decompositions()
    image = random_image(3, 3, 50, 64)
    for features, expected in zip(program.module()(image), backbone(image), strict=True):
        assert relative_error(features, expected) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("frozen", [True, False])
def test_compiles_as_one_graph(name: str, frozen: bool) -> None:
    torch.compiler.reset()
    backbone = small_backbone(name, frozen=frozen).eval()
    image = random_image(1, 3, 48, 50)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    for features, expected in zip(compiled(image), backbone(image), strict=True):
        assert relative_error(features.detach(), expected.detach()) < 1e-5


def test_state_dict_of_a_copy_reproduces_the_features_bit_for_bit() -> None:
    backbone, other = small_backbone("dinov3_vit_tiny16"), small_backbone("dinov3_vit_tiny16", seed=5)
    with torch.no_grad():
        backbone.model.rope.periods.mul_(1.01)  # as if a file had brought its own
    image = random_image(1, 3, 64, 64)
    assert not torch.equal(backbone(image)[-1], other(image)[-1])
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(backbone(image)[-1], other(image)[-1])


def test_casting_the_network_leaves_rope_in_float32() -> None:
    backbone = small_backbone("dinov3_vit_tiny16").bfloat16()
    assert backbone.model.patch_embed.proj.weight.dtype == torch.bfloat16
    assert backbone.model.rope.periods.dtype == torch.float32
    assert torch.equal(backbone.model.rope.periods, RopeTable(32).periods)
    assert backbone(random_image(1, 3, 32, 32).bfloat16())[0].dtype == torch.bfloat16


def test_meddinov3_has_its_own_epsilon_and_rope() -> None:
    backbone = small_backbone("meddinov3_vitb16")
    norms = [module for module in backbone.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert {m.eps for m in small_backbone("dinov3_vitb16").modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert backbone.model.blocks[0].attn.q_bias is None
    assert backbone.model.rope.get_embed((2, 3)).dtype == torch.bfloat16
    # 100 ** (2 i / 16) with base, exponent and power in bfloat16, which has 8 significant bits.
    expected = torch.tensor([100.0 ** (i / 8) for i in range(8)])
    assert torch.equal(backbone.model.rope.periods, backbone.model.rope.periods.bfloat16().float())
    assert torch.allclose(backbone.model.rope.periods, expected, rtol=0.02)


def test_meddinov3_rotates_queries_and_keys_in_bfloat16() -> None:
    backbone = small_backbone("meddinov3_vitb16")
    attention = backbone.model.blocks[0].attn
    table = backbone.model.rope.get_embed((2, 3))
    x = random_image(1, 5 + 6, 64)
    q, k, v = attention.qkv(x).reshape(1, 11, 3, 2, 32).permute(2, 0, 3, 1, 4)

    def rotate(heads: Tensor) -> Tensor:
        heads = heads.bfloat16()
        sine, cosine = table.chunk(2, -1)
        patches = heads[:, :, 5:]
        turned = torch.cat([-patches[..., 16:], patches[..., :16]], -1)
        return torch.cat([heads[:, :, :5], patches * cosine + turned * sine], 2).float()

    expected = functional.scaled_dot_product_attention(rotate(q), rotate(k), v).transpose(1, 2).reshape(1, 11, 64)
    with torch.no_grad():
        assert relative_error(attention(x, rope=table), attention.proj(expected)) < 1e-6


def test_rope_table_follows_its_formula() -> None:
    table = RopeTable(8, temperature=100.0).get_embed((2, 3))
    row, column = -0.5, 2 / 3  # centre of patch (0, 2) in [-1, 1]
    angles = torch.tensor([2 * torch.pi * c / p for c in (row, column) for p in (1.0, 10.0)]).tile(2)
    assert table.shape == (6, 16)
    torch.testing.assert_close(table[2], torch.cat([angles.sin(), angles.cos()]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "dinov2_vits14"}, "no backbone 'dinov2_vits14'; take one of dinov3_vit_tiny16"),
        ({"layers": (3, 1)}, "must rise"),
        ({"layers": ()}, "must rise"),
        ({"layers": (0, 4)}, r"0\.\.3"),
        ({"pretrained": True}, "pretrained cannot be set"),
        ({"rope_rescale_coords": 2.0}, "rope_rescale_coords cannot be set"),
        ({"name": "dinov3_convnext_tiny", "rope_bfloat16": True}, "has no RoPE"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    arguments = {"name": "dinov3_vit_tiny16", **arguments}
    with pytest.raises(ValueError, match=sentence):
        create_backbone(**arguments, **small_options(arguments["name"]))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32)])
def test_an_image_of_the_wrong_shape_is_refused_in_a_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs an image of shape \(B, 3, H, W\)"):
        small_backbone("dinov3_vit_tiny16")(random_image(*shape))
