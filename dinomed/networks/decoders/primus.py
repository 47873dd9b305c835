"""MedDINOv3's multi-scale Primus decoder: maps of one stride joined, then enlarged by transposed convolutions.

Source: Li et al., "MedDINOv3: How to adapt vision foundation models for medical image segmentation?", 2025, which joins
four layers' maps in front of the patch decoder of Wald et al., "Primus", 2025, https://arxiv.org/abs/2503.01835.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from dinomed.networks.blocks import LogitsResize, NormLayer, check_lengths

_LEAKY_SLOPE = 1e-2  # of the gain that the published start of the weights assumes


class PrimusDecoder(nn.Module):
    """Decoder of maps at one stride, for a 1x1 head at the image's size.

    The maps are joined along their channels. Then transposed convolutions, each with a norm over the channels and a
    GELU, double the size and halve the channels until stride 1.

    Args:
        channels: Channels of the maps, together a multiple of the stride.
        strides: Strides of the maps, all the same power of two.
        norm_layer: Makes the norm layer of a number of channels.

    Attributes:
        out_channels: Channels of the result: all the maps' channels over their stride (D/4 for four maps at 16).
        head_kernel_size: Kernel size of the head that follows, 1.
        logits_resize: The logits need no resizing.

    Raises:
        ValueError: If the maps are not of that kind.
    """

    head_kernel_size = 1
    logits_resize = LogitsResize(scale=1)

    def __init__(self, channels: Sequence[int], strides: Sequence[int], norm_layer: NormLayer = LayerNorm2d) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.channels, self.strides = tuple(channels), tuple(strides)
        if len(set(strides)) != 1 or strides[0] < 2 or strides[0] & (strides[0] - 1):
            raise ValueError(
                f"PrimusDecoder needs maps at one stride that is a power of two but got {tuple(strides)}; "
                "use a ViT backbone, or UNetFullDecoder for strides (4, 8, 16, 32)"
            )
        stride, width = strides[0], sum(channels)
        if width % stride != 0:
            raise ValueError(
                f"PrimusDecoder halves {width} channels at each doubling, so they must be a multiple of {stride}; "
                "tap another number of layers (layers=...)"
            )
        widths = [width >> halvings for halvings in range(stride.bit_length())]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(given, made, kernel_size=2, stride=2), norm_layer(made), nn.GELU())
            for given, made in pairwise(widths)
        )
        for module in self.stages.modules():
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=_LEAKY_SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.out_channels = widths[-1]

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Join and enlarge the maps.

        Args:
            maps: Maps at stride s, (B, C_i, ceil(H / s), ceil(W / s)).
            image: The image that the maps came from, (B, C, H, W); not used.

        Returns:
            Features of the image padded at bottom and right to a multiple of s,
            (B, out_channels, s ceil(H / s), s ceil(W / s)).
        """
        x = torch.cat(list(maps), dim=1)
        for stage in self.stages:
            x = stage(x)
        return x
