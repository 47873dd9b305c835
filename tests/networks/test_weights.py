"""Loading weights: every layout, and an exact error for everything that does not fit."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinomed.errors import WeightsError
from dinomed.networks import create_backbone, hub_weights
from dinomed.networks.backbones import TimmBackbone, pad_to_multiple
from dinomed.networks.weights import load_weights

State = dict[str, Tensor]
SMALL_VIT: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_CONVNEXT: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def small(name: str = "dinov3_vits16", **options: Any) -> TimmBackbone:
    return create_backbone(name, **{**(SMALL_CONVNEXT if "convnext" in name else SMALL_VIT), **options})


def random_state(backbone: TimmBackbone, seed: int = 0) -> State:
    """Random numbers for every parameter of the timm network, and its own RoPE periods."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in backbone.model.state_dict().items()
    }
    if "rope.periods" in state:
        state["rope.periods"] = backbone.model.rope.periods.clone()
    return state


def official_vit(state: State) -> State:
    """Name timm's parameters as the official network does: joined, masked qkv bias, layer scales, storage tokens."""
    official: State = {"mask_token": torch.zeros(1, 32)}
    for key, value in state.items():
        if key.endswith("q_bias"):
            joined = key.replace("q_bias", "qkv.bias")
            # The key bias is masked, so whatever stands there must not count; the mask itself may be NaN.
            official[joined] = torch.cat([value, torch.full_like(value, 7.0), state[key.replace("q_bias", "v_bias")]])
            official[f"{joined}_mask"] = torch.full_like(official[joined], torch.nan)
        elif not key.endswith("v_bias"):
            for old, new in (
                ("reg_token", "storage_tokens"),
                ("rope.", "rope_embed."),
                ("fc1_g", "w1"),
                ("fc1_x", "w2"),
            ):
                key = key.replace(old, new)
            if any("fc1_g" in k for k in state):
                key = key.replace("mlp.fc2", "mlp.w3")
            official[re.sub(r"gamma_(\d)", r"ls\1.gamma", key)] = value
    return official


def hugging_face_vit(state: State) -> State:
    """Name timm's parameters as transformers does: apart, the blocks called layers."""
    names = {
        "reg_token": "embeddings.register_tokens",
        "cls_token": "embeddings.cls_token",
        "patch_embed.proj": "embeddings.patch_embeddings",
        "blocks.": "layer.",
        "attn.proj": "attention.o_proj",
        "mlp.fc1_g": "mlp.gate_proj",
        "mlp.fc1_x": "mlp.up_proj",
        "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
        "attn.q_bias": "attention.q_proj.bias",
        "attn.v_bias": "attention.v_proj.bias",
    }
    theirs: State = {"embeddings.mask_token": torch.zeros(1, 1, 32)}
    for key, value in state.items():
        if key == "rope.periods":
            continue
        for old, new in names.items():
            key = key.replace(old, new)
        key = re.sub(r"gamma_(\d)", r"layer_scale\1.lambda1", key)
        if key.endswith("attn.qkv.weight"):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                theirs[key.replace("attn.qkv.weight", f"attention.{letter}_proj.weight")] = part.clone()
        else:
            theirs[key] = value
    return theirs


def training_checkpoint(state: State) -> dict[str, Any]:
    teacher = {f"backbone.{key}": value for key, value in official_vit(state).items()}
    return {
        "teacher": {**teacher, "dino_head.mlp.0.weight": torch.zeros(4, 4), "ibot_head.x": torch.zeros(1)},
        "iteration": 9,
    }


def flat_training_checkpoint(state: State) -> State:
    teacher = {f"module.teacher.backbone.{key}": value for key, value in official_vit(state).items()}
    student = {key.replace("teacher", "student"): value + 1 for key, value in teacher.items()}
    return {**student, **teacher, "module.teacher.dino_head.last.weight": torch.zeros(2)}


def timm_vit(state: State) -> State:
    return {key: value for key, value in state.items() if key != "rope.periods"}


def own_state_dict(state: State) -> State:
    return {f"model.{key}": value for key, value in state.items()}


VIT_LAYOUTS: dict[str, Callable[[State], dict[str, Any]]] = {
    "official": official_vit,
    "hugging_face": hugging_face_vit,
    "timm": timm_vit,
    "training_checkpoint": training_checkpoint,
    "flat_training_checkpoint": flat_training_checkpoint,
    "own_state_dict": own_state_dict,
}


def official_convnext(state: State) -> State:
    official: State = {}
    for key, value in state.items():
        key = re.sub(
            r"^stages\.(\d+)\.downsample", r"downsample_layers.\1", key.replace("stem.", "downsample_layers.0.")
        )
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        official[key.replace("head.norm", "norm")] = value
    return {**official, "norms.3.weight": official["norm.weight"], "norms.3.bias": official["norm.bias"]}


def hugging_face_convnext(state: State) -> State:
    theirs: State = {}
    for key, value in state.items():
        key = key.replace("stem.", "stages.0.downsample_layers.").replace(".downsample.", ".downsample_layers.")
        key = key.replace(".blocks.", ".layers.").replace("conv_dw", "depthwise_conv")
        key = re.sub(r"(layers\.\d+)\.norm", r"\1.layer_norm", key.replace("mlp.fc", "pointwise_conv"))
        theirs[key.replace("head.norm", "layer_norm")] = value
    return theirs


def newer_hugging_face_convnext(state: State) -> State:
    return {f"model.{k}" if k.startswith("stages") else k: v for k, v in hugging_face_convnext(state).items()}


def save(content: dict[str, Any], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.clone() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def assert_holds(backbone: TimmBackbone, state: State) -> None:
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", ["dinov3_vits16", "dinov3_vits16plus", "dinov3_vit7b16", "meddinov3_vitb16"])
@pytest.mark.parametrize("layout", VIT_LAYOUTS)
def test_every_transformer_layout_fills_every_parameter(name: str, layout: str, tmp_path: Path) -> None:
    backbone = small(name)
    state = random_state(backbone)
    loaded = load_weights(backbone, save(VIT_LAYOUTS[layout](state), tmp_path / "weights.pth"))
    assert_holds(backbone, state)
    assert not any(attention.k_bias.any() for attention in _attentions(backbone) if attention.k_bias is not None)
    assert loaded.layout.endswith("in a training checkpoint") == (layout not in ("official", "hugging_face", "timm"))


def _attentions(backbone: TimmBackbone) -> list[Any]:
    return [block.attn for block in backbone.model.blocks]


@pytest.mark.parametrize(
    "layout", [official_convnext, hugging_face_convnext, newer_hugging_face_convnext, dict, own_state_dict]
)
def test_every_convnext_layout_fills_every_parameter(layout: Callable[[State], State], tmp_path: Path) -> None:
    backbone = small("dinov3_convnext_tiny")
    state = random_state(backbone)
    load_weights(backbone, save(layout(state), tmp_path / "weights.pth"))
    assert_holds(backbone, state)


@pytest.mark.parametrize("layout", ["official", "hugging_face", "timm", "flat_training_checkpoint"])
def test_safetensors_load_like_pth(layout: str, tmp_path: Path) -> None:
    backbone = small()
    state = random_state(backbone)
    load_weights(backbone, save(VIT_LAYOUTS[layout](state), tmp_path / "weights.safetensors"))
    assert_holds(backbone, state)


def test_create_backbone_loads_a_path_given_as_text(tmp_path: Path) -> None:
    state = random_state(small())
    path = save(official_vit(state), tmp_path / "weights.pth")
    backbone = small(weights=str(path))
    assert_holds(backbone, state)
    assert backbone.frozen


def test_periods_of_the_official_file_are_used_as_they_are(tmp_path: Path) -> None:
    state = random_state(small())
    state["rope.periods"] = state["rope.periods"].bfloat16()  # as the released files hold them
    backbone = small(weights=save(official_vit(state), tmp_path / "weights.pth"))
    assert not torch.equal(backbone.model.rope.periods, small().model.rope.periods)
    assert torch.equal(backbone.model.rope.periods, state["rope.periods"].float())


def test_other_rope_periods_are_refused(tmp_path: Path) -> None:
    state = random_state(small())
    state["rope.periods"] = state["rope.periods"] ** 1.5
    with pytest.raises(WeightsError, match="trained with other RoPE periods"):
        small(weights=save(official_vit(state), tmp_path / "weights.pth"))


def test_a_folder_of_shards_loads(tmp_path: Path) -> None:
    backbone = small()
    state = random_state(backbone)
    theirs = hugging_face_vit(state)
    halves = [dict(list(theirs.items())[::2]), dict(list(theirs.items())[1::2])]
    index = {}
    for number, half in enumerate(halves):
        save(half, tmp_path / f"model-{number}.safetensors")
        index.update(dict.fromkeys(half, f"model-{number}.safetensors"))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    load_weights(backbone, tmp_path)
    assert_holds(backbone, state)


@pytest.mark.parametrize(("key", "value"), [("layer_norm_eps", 1e-6), ("rope_theta", 50.0), ("num_attention_heads", 4)])
def test_a_hugging_face_folder_with_other_settings_is_refused(key: str, value: float, tmp_path: Path) -> None:
    save(hugging_face_vit(random_state(small())), tmp_path / "model.safetensors")
    config = {"layer_norm_eps": 1e-5, "rope_theta": 100.0, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_weights(small(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(WeightsError, match=rf"config\.json has {key}"):
        load_weights(small(), tmp_path)


@pytest.mark.parametrize("layout", ["official", "hugging_face", "timm"])
def test_each_missing_key_is_named_as_the_file_names_it(layout: str, tmp_path: Path) -> None:
    content = VIT_LAYOUTS[layout](random_state(small()))
    for key in content:
        if "mask" in key:
            continue
        path = save({k: v for k, v in content.items() if k != key}, tmp_path / "weights.pth")
        with pytest.raises(WeightsError, match=rf"1 missing \({re.escape(key)}\)"):
            small(weights=path)


def test_each_missing_key_of_a_convnext_is_named(tmp_path: Path) -> None:
    content = official_convnext(random_state(small("dinov3_convnext_tiny")))
    for key in content:
        if "norms." in key:
            continue
        path = save({k: v for k, v in content.items() if k != key}, tmp_path / "weights.pth")
        with pytest.raises(WeightsError, match=rf"1 missing \({re.escape(key)}\)"):
            small("dinov3_convnext_tiny", weights=path)


@pytest.mark.parametrize("layout", ["official", "hugging_face", "timm", "own_state_dict"])
def test_unexpected_and_misshaped_keys_are_listed_together(layout: str, tmp_path: Path) -> None:
    content = VIT_LAYOUTS[layout](random_state(small()))
    content["decoder.weight"] = torch.zeros(1)
    norm = next(key for key in content if key.endswith("norm.weight"))
    content[norm] = torch.zeros(5)
    with pytest.raises(WeightsError) as caught:
        small(weights=save(content, tmp_path / "weights.pth"))
    message = str(caught.value)
    assert "1 unexpected (decoder.weight)" in message
    assert "1 of another shape (norm.weight: (5,) in the file, (32,) in the network)" in message
    assert "missing" not in message


def test_a_wider_network_lists_ten_keys_and_counts_the_rest(tmp_path: Path) -> None:
    path = save(official_vit(random_state(small(embed_dim=64))), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"\d\d of another shape \(.*, and \d+ more\)") as caught:
        small(weights=path)
    assert str(caught.value).count("in the file") == 10


def test_a_deeper_file_is_unexpected_and_a_shallower_one_missing(tmp_path: Path) -> None:
    path = save(official_vit(random_state(small())), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"14 unexpected \(blocks\.1\."):
        small(depth=1, weights=path)
    with pytest.raises(WeightsError, match=r"14 missing \(blocks\.2\."):
        small(depth=3, weights=path)


def test_a_file_that_does_not_fit_leaves_the_backbone_as_it_was(tmp_path: Path) -> None:
    backbone = small()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    content = official_vit(random_state(backbone))
    del content["norm.bias"]
    with pytest.raises(WeightsError):
        load_weights(backbone, save(content, tmp_path / "weights.pth"))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    content = official_vit(random_state(small()))
    content["blocks.1.mlp.fc1.weight"][3, 4] = torch.nan
    with pytest.raises(WeightsError, match=r"1 not finite \(blocks\.1\.mlp\.fc1\.weight\)"):
        small(weights=save(content, tmp_path / "weights.pth"))


def test_zero_qkv_biases_may_be_dropped_but_others_may_not(tmp_path: Path) -> None:
    state = random_state(small("dinov3_vitb16"))
    state["rope.periods"] = small("meddinov3_vitb16").model.rope.periods
    for layout in (official_vit, hugging_face_vit, timm_vit):
        with pytest.raises(WeightsError, match=r"not zero\).*would be lost"):
            small("meddinov3_vitb16", weights=save(layout(state), tmp_path / "weights.pth"))
    for key in state:
        if key.endswith("_bias"):
            state[key] = torch.zeros_like(state[key])
    for layout in (official_vit, hugging_face_vit, timm_vit):
        assert_holds(small("meddinov3_vitb16", weights=save(layout(state), tmp_path / "weights.pth")), state)


def test_a_key_bias_that_no_mask_silences_is_refused(tmp_path: Path) -> None:
    content = {k: v for k, v in official_vit(random_state(small())).items() if not k.endswith("bias_mask")}
    with pytest.raises(WeightsError, match=r"2 unexpected \(blocks\.0\.attn\.qkv\.bias \(not zero\)"):
        small(weights=save(content, tmp_path / "weights.pth"))


def test_timm_files_without_qkv_biases_fit_where_the_released_ones_are_zero(tmp_path: Path) -> None:
    state = random_state(small("dinov3_vitb16"))
    path = save({k: v for k, v in timm_vit(state).items() if not k.endswith("_bias")}, tmp_path / "weights.pth")
    backbone = small("dinov3_vitb16", weights=path)
    zeroed = {key: torch.zeros_like(value) if key.endswith("_bias") else value for key, value in state.items()}
    assert_holds(backbone, zeroed)
    with pytest.raises(WeightsError, match="4 missing"):
        small("dinov3_vits16", weights=path)


def test_a_meddinov3_file_in_another_network_says_what_to_build(golden_dir: Path) -> None:
    options = {"embed_dim": 64, "depth": 4, "num_heads": 2}
    with pytest.raises(WeightsError, match="build meddinov3_vitb16"):
        create_backbone("dinov3_vitb16", weights=golden_dir / "backbone_meddinov3.pth", **options)


def test_the_other_family_is_refused(tmp_path: Path) -> None:
    path = save(official_convnext(random_state(small("dinov3_convnext_tiny"))), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="official ConvNeXt layout, which dinov3_vits16 cannot take"):
        small(weights=path)


def test_a_strange_network_is_refused_with_its_first_keys(tmp_path: Path) -> None:
    path = save({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"none of the DINOv3 layouts \(its first keys: conv1\.weight, fc\.bias\)"):
        small(weights=path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_hash_in_the_name_is_checked(suffix: str, tmp_path: Path) -> None:
    state = random_state(small())
    path = save(timm_vit(state), tmp_path / f"weights.{suffix}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    right = path.rename(tmp_path / f"weights-{digest}.{suffix}")
    assert_holds(small(weights=right), state)
    wrong = right.rename(tmp_path / f"weights-0000beef.{suffix}")
    with pytest.raises(WeightsError, match=f"SHA-256 {digest}.*promises 0000beef"):
        small(weights=wrong)


class Payload:
    """A pickle that would run code if it were loaded without care."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Payload, "ran", True)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": Payload()}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"refused.*objects other than tensors"):
        small(weights=tmp_path / "weights.pth")
    assert not Payload.ran


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("size", [0, 7, 1000, -100])
def test_a_truncated_file_is_damaged(suffix: str, size: int, tmp_path: Path) -> None:
    path = save(timm_vit(random_state(small())), tmp_path / f"weights.{suffix}")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=re.escape(str(path))) as caught:
        small(weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_text_is_no_weights_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_text("<html>Access to this model is restricted</html>")
    with pytest.raises(WeightsError, match=r"no PyTorch file|no weights file"):
        small(weights=path)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)}, {}])
def test_what_is_no_dictionary_of_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"not a dictionary of named tensors|none of the DINOv3 layouts"):
        small(weights=tmp_path / "weights.pth")


def test_old_pickle_files_still_load(tmp_path: Path) -> None:
    state = random_state(small())
    torch.save(official_vit(state), tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    assert_holds(small(weights=tmp_path / "weights.pth"), state)


def test_absent_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file .*nowhere\.pth"):
        small(weights=tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        small(weights=tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_plain_python_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"a": Path("x")}))
    with pytest.raises(WeightsError):
        small(weights=tmp_path / "weights.pth")


def test_hub_weights_come_from_the_cache_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state(small("dinov3_vit_tiny16"))
    path = save(timm_vit(state), tmp_path / "model.safetensors")
    asked = []

    def cached(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(path)

    monkeypatch.setattr(hub_weights, "try_to_load_from_cache", cached)
    assert_holds(small("dinov3_vit_tiny16", weights="timm"), state)
    assert asked == [("timm/vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m", "model.safetensors")]


def test_hub_weights_are_downloaded_when_the_hub_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state(small("dinov3_convnext_base"))
    path = save(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(hub_weights, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub_weights, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(hub_weights, "hf_hub_download", lambda *_, **__: str(path))
    assert_holds(small("dinov3_convnext_base", weights="timm"), state)


@pytest.mark.parametrize("failure", ["refused", "hangs", "download"])
def test_without_network_the_hub_fails_soon_and_names_the_ways(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def metadata(url: str, timeout: float) -> None:
        assert url.startswith("https://")
        assert timeout <= 10
        if failure == "hangs":
            time.sleep(30)
        if failure == "refused":
            raise OSError("Name or service not known")

    def download(*_: object, **__: object) -> str:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub_weights, "_PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(hub_weights, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub_weights, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(hub_weights, "hf_hub_download", download)
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        small(weights="timm")
    assert time.monotonic() - start < 5
    message = str(caught.value)
    for way in (
        'weights="/path/to/file.pth"',
        "Hugging Face",
        "hf download timm/vit_small_patch16_dinov3_qkvb.lvd1689m",
    ):
        assert way in message
    assert "\n" not in message


def test_meddinov3_has_no_hub_weights() -> None:
    with pytest.raises(WeightsError, match="no weights for meddinov3_vitb16"):
        small("meddinov3_vitb16", weights="timm")


@pytest.mark.parametrize("gated", [False, True])
def test_features_match_transformers_at_an_odd_size(gated: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=192,
        use_gated_mlp=gated, num_register_tokens=4, layer_norm_eps=1e-5, hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    reference = transformers.DINOv3ViTModel(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path)
    name = "dinov3_vits16plus" if gated else "dinov3_vits16"
    backbone = create_backbone(name, weights=tmp_path, embed_dim=48, depth=2, num_heads=2)
    assert_equals_transformers(backbone, reference, prefix_tokens=5)


def test_convnext_features_match_transformers_at_an_odd_size(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    reference = transformers.DINOv3ConvNextModel(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path)
    assert_equals_transformers(small("dinov3_convnext_tiny", weights=tmp_path), reference, prefix_tokens=1)


def assert_equals_transformers(backbone: TimmBackbone, reference: Any, prefix_tokens: int) -> None:
    image = torch.randn(2, 3, 75, 130)
    with torch.no_grad():
        tokens = reference(pad_to_multiple(image, backbone.multiple)).last_hidden_state
    last = backbone.forward_last(image)
    patches = last.patch_map.flatten(2).transpose(1, 2)
    assert (patches - tokens[:, prefix_tokens:]).abs().max() <= 1e-4 * tokens.abs().max()
    if prefix_tokens > 1:  # the ConvNeXt's class token is the mean of its map, so padding is part of its reference's
        assert (last.class_token - tokens[:, 0]).abs().max() <= 1e-4 * tokens.abs().max()


def test_the_report_says_what_was_recognised_and_left_out(golden_dir: Path) -> None:
    backbone = create_backbone("meddinov3_vitb16", embed_dim=64, depth=4, num_heads=2)
    loaded = load_weights(backbone, golden_dir / "backbone_meddinov3.pth")
    assert loaded.layout == "official transformer layout in a training checkpoint"
    assert loaded.left_out == ("mask_token",)
