"""The linear probe's decoder: nothing but joined maps and a norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from dinomed.networks.decoders import LinearDecoder


def test_maps_of_one_stride_are_joined_and_normalised() -> None:
    decoder = LinearDecoder([4, 6], [16, 16])
    maps = [torch.randn(3, 4, 5, 7) * 3 + 1, torch.randn(3, 6, 5, 7) - 2]
    features = decoder.train()(maps, torch.randn(3, 3, 80, 112))
    joined = torch.cat(maps, dim=1)
    mean, variance = joined.mean((0, 2, 3), keepdim=True), joined.var((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(features, (joined - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)


def test_coarser_maps_are_enlarged_to_the_first_and_cropped() -> None:
    decoder = LinearDecoder([2, 3], [4, 16], norm_layer=nn.Identity)
    maps = [torch.randn(1, 2, 9, 6), torch.randn(1, 3, 3, 2)]
    features = decoder(maps, torch.randn(1, 3, 35, 22))
    enlarged = F.interpolate(maps[1], scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.equal(features, torch.cat((maps[0], enlarged[..., :9, :6]), dim=1))
    assert decoder.logits_resize.scale == 4


def test_only_the_norm_and_the_head_learn() -> None:
    decoder = LinearDecoder([384] * 4, [16] * 4)
    assert {name for name, _ in decoder.named_parameters()} == {"norm.weight", "norm.bias"}
    head = nn.Conv2d(decoder.out_channels, 2, decoder.head_kernel_size)
    assert sum(p.numel() for module in (decoder, head) for p in module.parameters()) == 2 * 1536 + 2 * 1536 + 2


@pytest.mark.parametrize("strides", [[32, 16], [8, 12], []])
def test_strides_that_are_no_multiples_of_the_first_are_refused_with_the_fix(strides: list[int]) -> None:
    with pytest.raises(ValueError, match=r"multiples of the first.*pass the maps fine to coarse"):
        LinearDecoder([4] * len(strides), strides)
