"""The linear probe: every map enlarged to the finest one, normalised, and nothing between it and a 1x1 head.

Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023, section 7.4 ("lin." reads the
last layer, "+ms" the last four layers joined); DINOv3 (2025) keeps the batch norm before the linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinomed.networks.blocks import LogitsResize, NormLayer, check_lengths


class LinearDecoder(nn.Module):
    """Decoder of any maps, for a 1x1 head at the finest stride.

    The other maps are enlarged bilinearly to the first and joined to it. It says how much a backbone's features know by
    themselves: only the norm layer and the head learn.

    Args:
        channels: Channels of the maps, one or more.
        strides: Strides of the maps; each a multiple of the first.
        norm_layer: Makes the norm layer of a number of channels.

    Attributes:
        out_channels: Channels of the result, the sum of `channels`.
        head_kernel_size: Kernel size of the head that follows, 1.
        logits_resize: By the finest stride, bilinear.

    Raises:
        ValueError: If a map is finer than the first, or lies on another grid.
    """

    head_kernel_size = 1

    def __init__(self, channels: Sequence[int], strides: Sequence[int], norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.channels, self.strides = tuple(channels), tuple(strides)
        if not strides or any(stride % strides[0] != 0 for stride in strides):
            raise ValueError(
                f"LinearDecoder needs maps whose strides are multiples of the first, not {tuple(strides)}; "
                "pass the maps fine to coarse"
            )
        self.enlarge = [LogitsResize(scale=stride // strides[0]) for stride in strides]
        self.norm = norm_layer(sum(channels))
        self.out_channels = sum(channels)
        self.logits_resize = LogitsResize(scale=strides[0])

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Join the maps.

        Args:
            maps: Maps, fine to coarse, (B, C_i, ceil(H / s_i), ceil(W / s_i)).
            image: The image that the maps came from, (B, C, H, W); not used.

        Returns:
            Features (B, out_channels, ceil(H / s_0), ceil(W / s_0)).
        """
        height, width = maps[0].shape[-2:]
        return self.norm(
            torch.cat([enlarge(x, height, width) for enlarge, x in zip(self.enlarge, maps, strict=True)], dim=1)
        )
