"""Dino U-Net's decoder against published numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dinomed.networks.decoders import FAPMDecoder
from dinomed.networks.decoders.fapm import InstanceNorm, default_stage_channels

STRIDES = [4, 8, 16, 32]
# Published names by regular expression; `refinement_blocks.i.j` counts the parts of one level's refinement.
RENAMED = [
    (r"^encoder\.fapm\.shared_basis\.", "shared_basis."),
    (r"^encoder\.fapm\.specific_bases\.(\d)\.", r"projections.\1.basis."),
    (r"^encoder\.fapm\.film_generators\.(\d)\.", r"projections.\1.film."),
    (r"^encoder\.fapm\.shortcut_projections\.(\d)\.", r"projections.\1.shortcut."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.", r"projections.\1.refine."),
    (r"\.refine\.5\.fc\.0\.", ".refine.8.weigh.1."),
    (r"\.refine\.5\.fc\.2\.", ".refine.8.weigh.3."),
    (r"\.refine\.4\.", ".refine.7."),
    (r"\.refine\.3\.bn\.", ".refine.5."),
    (r"\.refine\.3\.pointwise\.", ".refine.4."),
    (r"\.refine\.3\.depthwise\.", ".refine.3."),
    (r"^encoder\.ups\.(\d)\.up2\.", r"ups.\1."),
    (r"^transpconvs\.(\d)\.", r"stages.\1.up."),
    (r"^stages\.(\d)\.convs\.0\.conv\.", r"stages.\1.convs.0."),
    (r"^stages\.(\d)\.convs\.0\.norm\.", r"stages.\1.convs.1."),
    (r"^stages\.(\d)\.convs\.1\.conv\.", r"stages.\1.convs.3."),
    (r"^stages\.(\d)\.convs\.1\.norm\.", r"stages.\1.convs.4."),
]


def reference_state(arrays: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Name the decoder's and the head's parameters as ours; a convolution's twin under `all_modules` is left out."""
    state = {}
    for key, array in arrays.items():
        if key.startswith("param.") and "all_modules" not in key:
            name = key.removeprefix("param.")
            for theirs, ours in RENAMED:
                name = re.sub(theirs, ours, name)
            state[name] = array
    head = {name: state[f"seg_layers.2.{name}"] for name in ("weight", "bias")}
    return {name: array for name, array in state.items() if not name.startswith("seg_layers.")}, head


def test_skips_and_logits_match_the_published_numbers(golden_dir: Path) -> None:
    arrays = load_file(golden_dir / "dino_unet_fapm.safetensors")
    decoder = FAPMDecoder([64] * 4, STRIDES, rank=48, stage_channels=(8, 16, 24, 32)).eval()
    head = nn.Conv2d(decoder.out_channels, 3, decoder.head_kernel_size)
    decoder_state, head_state = reference_state(arrays)
    decoder.load_state_dict(decoder_state)
    head.load_state_dict(head_state)
    maps = [arrays[f"input.level.{i}"] for i in (1, 2, 3, 4)]
    with torch.no_grad():
        skips = decoder.project(maps)
        logits = decoder.logits_resize(head(decoder(maps, arrays["input.image"])), 96, 128)
    for ours, name in [*((skip, f"output.skip.{i}") for i, skip in enumerate(skips)), (logits, "output.logits")]:
        expected = arrays[name]
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize(
    ("width", "stage_channels"),
    [
        (192, (32, 64, 128, 256)),
        (384, (32, 64, 128, 256)),
        (768, (48, 96, 192, 384)),
        (1024, (64, 128, 256, 512)),
        (1280, (64, 128, 256, 512)),
        (4096, (128, 256, 512, 1024)),
    ],
)
def test_default_channels_are_the_published_ones(width: int, stage_channels: tuple[int, ...]) -> None:
    assert default_stage_channels(width) == stage_channels


def test_vit_small_decoder_has_the_published_rank_and_channels() -> None:
    decoder = FAPMDecoder([384] * 4, STRIDES)
    assert decoder.shared_basis.out_channels == 256
    assert [up.out_channels for up in decoder.ups] == [32, 64, 128, 256]
    assert decoder.out_channels == 32
    assert isinstance(decoder.projections[3].shortcut, nn.Identity)


def test_maps_of_an_odd_image_are_cropped_to_the_finer_skip() -> None:
    decoder = FAPMDecoder([8] * 4, STRIDES, rank=6, stage_channels=(4, 5, 6, 7)).eval()
    maps = [torch.randn(1, 8, -(-70 // s), -(-43 // s)) for s in STRIDES]
    assert decoder(maps, torch.randn(1, 3, 70, 43)).shape == (1, 4, 72, 44)


def test_instance_norm_is_that_of_pytorch_and_also_takes_a_single_pixel() -> None:
    torch.manual_seed(0)
    ours, reference = InstanceNorm(5), nn.InstanceNorm2d(5, affine=True)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 4, 3)
    torch.testing.assert_close(ours(x), reference(x))
    # Of a single pixel the rounding of its own mean is left, enlarged by 1 / sqrt(eps).
    torch.testing.assert_close(ours(x[..., :1, :1])[0, :, 0, 0], ours.bias, rtol=0, atol=1e-3)


def test_wrong_strides_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"strides \(4, 8, 16, 32\).*wrap a ViT backbone in DINOv3Adapter"):
        FAPMDecoder([64] * 4, [16] * 4)


def test_unequal_channels_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"equal channels, not \(8, 16, 24, 32\).*use UNetFullDecoder"):
        FAPMDecoder([8, 16, 24, 32], STRIDES)


def test_wrong_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="four numbers, fine to coarse"):
        FAPMDecoder([8] * 4, STRIDES, stage_channels=(4, 8, 16))


def test_norm_layer_is_the_callers_choice() -> None:
    decoder = FAPMDecoder([64] * 4, STRIDES, norm_layer=lambda channels: nn.GroupNorm(4, channels))
    assert not [module for module in decoder.modules() if isinstance(module, nn.InstanceNorm2d)]
