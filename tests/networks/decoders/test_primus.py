"""The multi-scale Primus decoder against published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dinomed.networks.decoders import PrimusDecoder


def test_logits_match_the_published_numbers(golden_dir: Path) -> None:
    arrays = load_file(golden_dir / "primus_multiscale.safetensors")
    decoder = PrimusDecoder([64] * 4, [16] * 4).eval()
    head = nn.Conv2d(decoder.out_channels, 3, decoder.head_kernel_size)
    prefix = "param.up_projection.decode."
    state = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    head.load_state_dict({name: state.pop(f"4.{name}") for name in ("weight", "bias")})
    decoder.load_state_dict({f"stages.{key}": array for key, array in state.items()})
    maps = [arrays[f"input.tokens.{i}"].transpose(1, 2).reshape(2, 64, 6, 8) for i in range(4)]
    with torch.no_grad():
        logits = decoder.logits_resize(head(decoder(maps, arrays["input.image"])), 96, 128)
    expected = arrays["output.logits"]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_channels_halve_down_to_a_quarter_of_the_width() -> None:
    decoder = PrimusDecoder([384] * 4, [16] * 4)
    widths = [(stage[0].in_channels, stage[0].out_channels) for stage in decoder.stages]
    assert widths == [(1536, 768), (768, 384), (384, 192), (192, 96)]
    assert decoder.out_channels == 96


@pytest.mark.parametrize("maps", [1, 2])
def test_any_number_of_maps_is_joined(maps: int) -> None:
    decoder = PrimusDecoder([32] * maps, [8] * maps)
    assert decoder([torch.randn(1, 32, 3, 2)] * maps, torch.randn(1, 3, 24, 16)).shape == (1, 4 * maps, 24, 16)


@pytest.mark.parametrize("strides", [[4, 8, 16, 32], [14] * 4, [1] * 4, []])
def test_strides_that_doubling_does_not_undo_are_refused_with_the_fix(strides: list[int]) -> None:
    with pytest.raises(ValueError, match=r"one stride that is a power of two.*use a ViT backbone"):
        PrimusDecoder([64] * len(strides), strides)


def test_channels_that_cannot_be_halved_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"36 channels.*multiple of 16; tap another number of layers"):
        PrimusDecoder([12] * 3, [16] * 3)


def test_norm_layer_is_the_callers_choice() -> None:
    decoder = PrimusDecoder([64] * 4, [16] * 4, norm_layer=lambda channels: nn.GroupNorm(2, channels))
    assert not [module for module in decoder.modules() if isinstance(module, nn.LayerNorm)]
