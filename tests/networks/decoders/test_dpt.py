"""SegDINO's decoder against published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import nn

from dinomed.networks.decoders import DPTDecoder

RENAMED = {"head.proj.": "up."} | {f"head.scratch.layer{i + 1}_rn.": f"convs.{i}." for i in range(4)}
PROJECT_CHANNELS = (8, 12, 16, 20)


def test_logits_match_the_published_numbers(golden_dir: Path) -> None:
    arrays = load_file(golden_dir / "segdino_dpt.safetensors")
    decoder = DPTDecoder([64] * 4, [16] * 4, features=24, project_channels=(16, 24, 32, 40)).eval()
    head = nn.Conv2d(decoder.out_channels, 5, decoder.head_kernel_size)
    state = {key.removeprefix("param."): array for key, array in arrays.items() if key.startswith("param.")}
    head.load_state_dict({name: state.pop(f"head.scratch.output_conv.{name}") for name in ("weight", "bias")})
    for theirs, ours in RENAMED.items():
        state = {key.replace(theirs, ours): array for key, array in state.items()}
    decoder.load_state_dict({key.removeprefix("head."): array for key, array in state.items()})
    maps = [arrays[f"input.tokens.{i}"].transpose(1, 2).reshape(2, 64, 6, 8) for i in range(4)]
    with torch.no_grad():
        logits = decoder.logits_resize(head(decoder(maps, arrays["input.image"])), 96, 128)
    expected = arrays["output.logits"]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("out_stride", "parameters"), [(16, 2_214_306), (4, 2_214_306 + 128 * 128 * 16)])
def test_vit_small_decoder_and_head_have_the_papers_2_21_million_parameters_without_the_transposed_convolution(
    out_stride: int, parameters: int
) -> None:
    decoder = DPTDecoder([384] * 4, [16] * 4, out_stride=out_stride)
    head = nn.Conv2d(decoder.out_channels, 2, decoder.head_kernel_size)
    assert sum(p.numel() for module in (decoder, head) for p in module.parameters()) == parameters


def test_at_the_maps_own_stride_the_maps_are_only_joined() -> None:
    decoder = DPTDecoder([8] * 4, [16] * 4, features=6, project_channels=PROJECT_CHANNELS, out_stride=16)
    maps = [torch.randn(1, 8, 3, 5) for _ in range(4)]
    features = decoder(maps, torch.randn(1, 3, 48, 80))
    third = F.conv2d(decoder.projects[2](maps[2]), decoder.convs[2].weight, padding=1)
    torch.testing.assert_close(features[:, 12:18], third)
    assert decoder.logits_resize.scale == 16


def test_maps_of_a_pyramid_are_enlarged_to_the_finest_and_cropped() -> None:
    decoder = DPTDecoder([8] * 4, [4, 8, 16, 32], features=6, project_channels=PROJECT_CHANNELS)
    assert not [module for module in decoder.modules() if isinstance(module, nn.ConvTranspose2d)]
    maps = [torch.randn(1, 8, -(-70 // s), -(-43 // s)) for s in (4, 8, 16, 32)]
    features = decoder(maps, torch.randn(1, 3, 70, 43))
    assert features.shape == (1, 24, 18, 11)
    coarsest = decoder.convs[3](decoder.projects[3](maps[3]))
    enlarged = F.interpolate(coarsest, scale_factor=8, mode="bilinear", align_corners=True)[..., :18, :11]
    torch.testing.assert_close(features[:, 18:], enlarged)


def test_a_number_of_maps_without_channels_is_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"3 maps but 4 project_channels.*tap four layers"):
        DPTDecoder([64] * 3, [16] * 3)


def test_a_stride_off_the_grid_is_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"stride 4, of which \(14, 14, 14, 14\).*out_stride to a common divisor"):
        DPTDecoder([64] * 4, [14] * 4)
