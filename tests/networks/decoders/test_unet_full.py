"""The adapter's UNet decoder against published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dinomed.networks.decoders import UNetFullDecoder

RENAMED = {
    "feature_projection.projections": "projections",
    "bottleneck.conv": "bottleneck.0",
    "bottleneck.bn": "bottleneck.1",
    "decoder.decoder_blocks": "blocks",
    ".upconv.": ".up.",
    "conv_block.0.conv": "convs.0.0",
    "conv_block.0.bn": "convs.0.1",
    "conv_block.1.conv": "convs.1.0",
    "conv_block.1.bn": "convs.1.1",
}


def test_logits_match_the_published_numbers(golden_dir: Path) -> None:
    arrays = load_file(golden_dir / "unet_full.safetensors")
    decoder = UNetFullDecoder([64] * 4, [4, 8, 16, 32], decoder_channels=(32, 24, 16, 8)).eval()
    head = nn.Conv2d(decoder.out_channels, 3, decoder.head_kernel_size)
    state = {key.removeprefix("param."): array for key, array in arrays.items() if key.startswith("param.")}
    head.load_state_dict({name: state.pop(f"segmentation_head.{name}") for name in ("weight", "bias")})
    for theirs, ours in RENAMED.items():
        state = {key.replace(theirs, ours): array for key, array in state.items()}
    decoder.load_state_dict(state)
    with torch.no_grad():
        features = decoder([arrays[f"input.level.{i}"] for i in (1, 2, 3, 4)], arrays["input.image"])
        logits = decoder.logits_resize(head(features), 96, 128)
    expected = arrays["output.logits"]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_wrong_strides_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"strides \(4, 8, 16, 32\).*wrap a ViT backbone in DINOv3Adapter"):
        UNetFullDecoder([64] * 4, [16] * 4)


def test_default_widths_are_the_published_ones() -> None:
    decoder = UNetFullDecoder([384] * 4, [4, 8, 16, 32])
    assert [decoder.bottleneck[0].out_channels, *(block.up.out_channels for block in decoder.blocks)] == [
        256,
        128,
        64,
        32,
    ]
    assert decoder.out_channels == 32


def test_maps_of_an_odd_image_are_cropped_to_the_finer_skip() -> None:
    decoder = UNetFullDecoder([8, 12, 16, 20], [4, 8, 16, 32], decoder_channels=(8, 8, 8, 8)).eval()
    image = torch.randn(1, 3, 70, 43)
    maps = [torch.randn(1, c, -(-70 // s), -(-43 // s)) for c, s in zip((8, 12, 16, 20), (4, 8, 16, 32), strict=True)]
    assert decoder(maps, image).shape == (1, 8, 18, 11)


def test_norm_layer_is_the_callers_choice() -> None:
    decoder = UNetFullDecoder([64] * 4, [4, 8, 16, 32], norm_layer=lambda channels: nn.GroupNorm(4, channels))
    assert not [module for module in decoder.modules() if isinstance(module, nn.BatchNorm2d)]


def test_wrong_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="four numbers, coarse to fine"):
        UNetFullDecoder([64] * 4, [4, 8, 16, 32], decoder_channels=(32, 16, 8))
    with pytest.raises(ValueError, match="3 channels and 4 strides"):
        UNetFullDecoder([64] * 3, [4, 8, 16, 32])


@pytest.mark.parametrize(("fine_channels", "scale"), [((), 4), ((8,), 2), ((8, 6), 1)])
def test_fine_blocks_lead_on_to_the_image_and_leave_less_to_the_resize(
    fine_channels: tuple[int, ...], scale: int
) -> None:
    decoder = UNetFullDecoder(
        [8] * 4, [4, 8, 16, 32], decoder_channels=(8, 8, 8, 8), fine_channels=fine_channels
    ).eval()
    image = torch.randn(1, 3, 71, 43, requires_grad=True)
    maps = [torch.randn(1, 8, -(-71 // s), -(-43 // s)) for s in (4, 8, 16, 32)]
    features = decoder(maps, image)
    assert decoder.logits_resize.scale == scale
    assert features.shape == (1, decoder.out_channels, -(-71 // scale), -(-43 // scale))
    assert decoder.logits_resize(features, 71, 43).shape[-2:] == (71, 43)
    (grad,) = torch.autograd.grad(features.sum() + 0 * image.sum(), image)
    assert bool(grad.any()) == bool(fine_channels)


def test_more_than_two_fine_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="at most two numbers"):
        UNetFullDecoder([8] * 4, [4, 8, 16, 32], fine_channels=(8, 8, 8))
