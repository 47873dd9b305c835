"""The adapter against published numbers, and as a backbone among backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dinomed.networks import adapter as adapters
from dinomed.networks import folding
from dinomed.networks.adapter import DINOv3Adapter, default_num_heads
from dinomed.networks.backbones import Backbone
from dinomed.networks.blocks import ConvNormAct

RENAMED = {
    "spm.stem.0": "spatial_prior.stem.0.0",
    "spm.stem.1": "spatial_prior.stem.0.1",
    "spm.stem.3": "spatial_prior.stem.1.0",
    "spm.stem.4": "spatial_prior.stem.1.1",
    "spm.stem.6": "spatial_prior.stem.2.0",
    "spm.stem.7": "spatial_prior.stem.2.1",
    "spm.conv2": "spatial_prior.stages.0",
    "spm.conv3": "spatial_prior.stages.1",
    "spm.conv4": "spatial_prior.stages.2",
    "spm.fc1": "spatial_prior.projections.0",
    "spm.fc2": "spatial_prior.projections.1",
    "spm.fc3": "spatial_prior.projections.2",
    "spm.fc4": "spatial_prior.projections.3",
    "interactions.0.extractor": "extractors.0",
    "interactions.1.extractor": "extractors.1",
    "interactions.2.extractor": "extractors.2",
    "interactions.3.extractor": "extractors.3",
    "interactions.3.extra_extractors.0": "extractors.4",
    "interactions.3.extra_extractors.1": "extractors.5",
    "norm1": "norms.0",
    "norm2": "norms.1",
    "norm3": "norms.2",
    "norm4": "norms.3",
    "level_embed": "level_embedding",
    ".attn.": ".attention.",
    "feat_norm": "feature_norm",
    "dwconv.dwconv": "dwconv",
}


class StandInViT(Backbone):
    """Four maps at stride 16, each a patch embedding of its own."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.channels = [width] * 4
        self.strides = [16] * 4
        self.multiple = 16
        self.embeddings = nn.ModuleList(nn.Conv2d(3, width, kernel_size=16, stride=16) for _ in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [embed(image) for embed in self.embeddings]


def reference_state(arrays: dict[str, Tensor], renamed: dict[str, str]) -> dict[str, Tensor]:
    state = {}
    for key, array in arrays.items():
        if key.startswith("param."):
            name = key.removeprefix("param.")
            for theirs, ours in renamed.items():
                name = name.replace(theirs, ours)
            state[name] = array
    return state


def test_adapter_matches_the_published_numbers(golden_dir: Path) -> None:
    arrays = load_file(golden_dir / "dinov3_adapter.safetensors")
    adapter = DINOv3Adapter(StandInViT(), stem_width=16, num_heads=4).eval()
    state = reference_state(arrays, RENAMED)
    missing, unexpected = adapter.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    token_maps = [arrays[f"input.tokens.{i}"].transpose(1, 2).reshape(2, 64, 6, 8) for i in range(4)]
    with torch.no_grad():
        maps = adapter.fuse(arrays["input.image"], token_maps)
    for i, ours in enumerate(maps):
        expected = arrays[f"output.{i + 1}"]
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_token_maps_can_be_left_out(golden_dir: Path) -> None:
    arrays = load_file(golden_dir / "dinov3_adapter.safetensors")
    adapters = [DINOv3Adapter(StandInViT(), stem_width=16, add_token_maps=add).eval() for add in (True, False)]
    adapters[1].load_state_dict(adapters[0].state_dict())
    with_tokens, without = (adapter(arrays["input.image"])[2] for adapter in adapters)
    scale = adapters[0].norms[2].weight / (adapters[0].norms[2].running_var + 1e-5).sqrt()
    tokens = adapters[0].backbone(arrays["input.image"])[2]
    torch.testing.assert_close(with_tokens - without, tokens * scale.view(1, -1, 1, 1), rtol=1e-4, atol=1e-4)


def test_defaults_are_the_published_ones() -> None:
    adapter = DINOv3Adapter(StandInViT(384))
    extractor = adapter.extractors[0]
    assert len(adapter.extractors) == 4 + 2
    assert adapter.spatial_prior.stem[0][0].out_channels == 64
    assert extractor.attention.num_points == 4
    assert extractor.attention.value_proj.out_features == 192
    assert extractor.ffn.fc1.out_features == 96
    assert extractor.drop_path.drop_prob == 0.3
    assert adapter.add_token_maps


@pytest.mark.parametrize(
    ("width", "heads"), [(64, 1), (192, 3), (384, 6), (768, 12), (1024, 16), (1280, 20), (4096, 64), (80, 1), (200, 2)]
)
def test_default_heads_divide_the_width(width: int, heads: int) -> None:
    assert default_num_heads(width, width // 2) == heads
    assert (width // 2) % heads == 0


@pytest.mark.parametrize("size", [(96, 128), (97, 127), (31, 65), (5, 7)])
def test_any_image_size_gives_maps_of_the_rounded_up_size(size: tuple[int, int]) -> None:
    adapter = DINOv3Adapter(StandInViT(32), stem_width=8).eval()
    maps = adapter(torch.randn(2, 3, *size))
    assert adapter.channels == [32] * 4
    for level, stride in zip(maps, adapter.strides, strict=True):
        assert level.shape == (2, 32, -(-size[0] // stride), -(-size[1] // stride))


def test_an_odd_image_gives_the_cropped_maps_of_the_padded_image() -> None:
    adapter = DINOv3Adapter(StandInViT(32), stem_width=8).eval()
    image = torch.randn(1, 3, 50, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :50, :70] = image
    for ours, whole in zip(adapter(image), adapter(padded), strict=True):
        torch.testing.assert_close(ours, whole[..., : ours.shape[-2], : ours.shape[-1]])


def test_offsets_start_on_rays_one_to_four_pixels_long() -> None:
    adapter = DINOv3Adapter(StandInViT(64), num_heads=4)
    offsets = adapter.extractors[0].attention.sampling_offsets.bias.view(4, 4, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])[:, None] * torch.arange(1, 5).view(
        1, 4, 1
    )
    torch.testing.assert_close(offsets, expected, atol=1e-6, rtol=0)


def test_the_backbone_keeps_its_weights_when_the_adapter_starts_its_own() -> None:
    backbone = StandInViT()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    DINOv3Adapter(backbone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_drop_path_skips_feed_forwards_in_training_only() -> None:
    torch.manual_seed(0)
    adapter = DINOv3Adapter(StandInViT(32), stem_width=8, drop_path=0.5)
    for module in adapter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    image = torch.randn(1, 3, 64, 64)
    trained = [adapter.train()(image)[2] for _ in range(4)]
    assert any(not torch.equal(trained[0], other) for other in trained[1:])
    assert torch.equal(adapter.eval()(image)[2], adapter(image)[2])


def test_norm_layer_is_the_callers_choice() -> None:
    def group_norm(channels: int) -> nn.Module:
        return nn.GroupNorm(4, channels)

    adapter = DINOv3Adapter(StandInViT(32), stem_width=8, norm_layer=group_norm)
    assert not [module for module in adapter.modules() if isinstance(module, nn.BatchNorm2d)]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(DINOv3Adapter(StandInViT(32), stem_width=8))
    kinds = {type(module) for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}


def test_every_query_place_stays_in_single_precision_under_autocast() -> None:
    adapter = DINOv3Adapter(StandInViT(32), stem_width=8).eval()
    seen: list[torch.dtype] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func == torch.ops.dinomed.ms_deform_attn_fused.default:
                seen.extend(args[i].dtype for i in (0, 3))
            return func(*args, **(kwargs or {}))

    with Watch(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        adapter(torch.randn(1, 3, 64, 64))
    assert seen == [torch.bfloat16, torch.float32] * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_folding_takes_half_precision_with_float32_norms(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = ConvNormAct(3, 8).eval()
    block[1].running_var.fill_(1e-8)
    block[1].eps = 1e-8
    image = 1e-4 * torch.randn(1, 3, 8, 8)
    wanted = block(image)
    block[0].to(dtype)
    mixed = block(image.to(dtype))
    assert mixed.dtype == dtype
    assert (mixed.float() - wanted).norm() < 0.02 * wanted.norm()
    assert block.to(dtype)(image.to(dtype)).isfinite().all()


def test_a_convolution_that_is_watched_or_another_is_not_folded() -> None:
    torch.manual_seed(0)
    adapter, image = DINOv3Adapter(StandInViT(32), stem_width=8).eval(), torch.randn(1, 3, 64, 64)
    seen: list[str] = []
    watched = [name for name, module in adapter.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    watched = [*(name for name in watched if "backbone" not in name), "up"]
    for name in watched:
        adapter.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    adapter(image)
    assert set(seen) == set(watched)

    class Tripled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    plain = ConvNormAct(3, 8).eval()
    other = ConvNormAct(3, 8).eval()
    other[0] = Tripled(3, 8, 3, padding=1, bias=False)
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(other(image), 3 * plain(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("add_token_maps", [True, False])
def test_folding_batch_norm_in_inference_changes_nothing_but_rounding(
    add_token_maps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    adapter = DINOv3Adapter(StandInViT(32), stem_width=8, add_token_maps=add_token_maps).double().eval()
    for module in adapter.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    folded = adapter(image)
    for module in (folding, adapters):
        monkeypatch.setattr(module, "norm_affine", lambda norm: None)
    for ours, plain in zip(folded, adapter(image), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_heads_that_do_not_divide_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"num_heads=6 does not divide the 32 channels.*use 1"):
        DINOv3Adapter(StandInViT(64), num_heads=6)


def test_a_backbone_with_other_maps_is_refused_with_the_fix() -> None:
    backbone = StandInViT()
    backbone.strides = [4, 8, 16, 32]
    with pytest.raises(ValueError, match=r"four maps at stride 16.*use a ViT backbone"):
        DINOv3Adapter(backbone)
