"""The plain DINOv3-UNet decoder against published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dinomed.networks.decoders import UNetDecoder

RENAMED = {
    "upconv1.": "up_deep.",
    "upconv2.": "up_middle.",
    "upconv3.": "up_shallow.",
    "upconv4.": "up_fused_deep.",
    "upconv5.": "up_fused_shallow.",
    "upconv6.": "up_half.",
    "upconv7.": "up_full.",
    "conv.conv.": "conv.0.",
    "conv.bn.": "conv.1.",
    "input_skip_conv.": "image_skip.",
    "image_skip.conv.": "image_skip.0.",
    "image_skip.bn.": "image_skip.1.",
}


def test_logits_match_the_published_numbers(golden_dir: Path) -> None:
    arrays = load_file(golden_dir / "dinov3_unet.safetensors")
    decoder = UNetDecoder([64] * 4, [16] * 4).eval()
    head = nn.Conv2d(decoder.out_channels, 3, decoder.head_kernel_size, padding=1)
    state = {key.removeprefix("param."): array for key, array in arrays.items() if key.startswith("param.")}
    head.load_state_dict({name: state.pop(f"final_conv.{name}") for name in ("weight", "bias")})
    for theirs, ours in RENAMED.items():
        state = {key.replace(theirs, ours): array for key, array in state.items()}
    decoder.load_state_dict(state)
    maps = [arrays[f"input.tokens.{i}"].transpose(1, 2).reshape(2, 64, 6, 8) for i in range(4)]
    with torch.no_grad():
        logits = decoder.logits_resize(head(decoder(maps, arrays["input.image"])), 96, 128)
    expected = arrays["output.logits"]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_vit_small_decoder_and_head_have_the_published_number_of_parameters() -> None:
    decoder = UNetDecoder([384] * 4, [16] * 4)
    head = nn.Conv2d(decoder.out_channels, 2, decoder.head_kernel_size)
    assert sum(p.numel() for module in (decoder, head) for p in module.parameters()) == 2_377_514


def test_wrong_strides_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"strides \(16, 16, 16, 16\).*UNetFullDecoder"):
        UNetDecoder([64] * 4, [4, 8, 16, 32])


@pytest.mark.parametrize("channels", [[64, 64, 64, 32], [40] * 4])
def test_unequal_or_indivisible_channels_are_refused(channels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"equal channels that are a multiple of 16.*use a ViT backbone"):
        UNetDecoder(channels, [16] * 4)


def test_norm_layer_is_the_callers_choice() -> None:
    decoder = UNetDecoder([64] * 4, [16] * 4, norm_layer=lambda channels: nn.GroupNorm(2, channels))
    assert not [module for module in decoder.modules() if isinstance(module, nn.BatchNorm2d)]
