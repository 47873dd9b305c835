"""The plain DINOv3-UNet: four token maps summed step by step, and a skip from the image itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dinomed.networks.backbones import pad_to_multiple
from dinomed.networks.blocks import ConvNormAct, LogitsResize, NormLayer, check_lengths, check_strides


class UpConv(nn.Module):
    """Bilinear enlargement by two, then convolution, norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, out_channels, norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))


class UNetDecoder(nn.Module):
    """Decoder of four ViT maps at stride 16, for a 3x3 head at the image's size.

    With maps f1 (shallow) to f4 (deep) of D channels: up(f3 + f4), up(f2) and up(f1) have D/2 channels at stride 8; up
    of the first two's sum and up of the last have D/4 at stride 4; up of their sum D/8 at stride 2; up of that D/16 at
    stride 1, where a 3x3 convolution of the image joins with as many channels.

    Args:
        channels: Channels of the four maps, all equal and a multiple of 16.
        strides: Strides of the maps; (16, 16, 16, 16).
        image_channels: Channels of the image.
        norm_layer: Makes the norm layer of a number of channels.

    Attributes:
        out_channels: Channels of the result, D/8.
        head_kernel_size: Kernel size of the head that follows, 3.
        logits_resize: The logits need no resizing.

    Raises:
        ValueError: If the maps are not of that kind.
    """

    head_kernel_size = 3
    logits_resize = LogitsResize(scale=1)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_channels: int = 3,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.channels, self.strides = tuple(channels), tuple(strides)
        fix = "use a ViT backbone with four tapped layers (layers=...), or UNetFullDecoder for strides (4, 8, 16, 32)"
        check_strides("UNetDecoder", strides, (16, 16, 16, 16), fix)
        width = channels[0]
        if len(set(channels)) != 1 or width % 16 != 0:
            raise ValueError(
                f"UNetDecoder needs equal channels that are a multiple of 16, not {tuple(channels)}; use a ViT backbone"
            )
        self.up_deep = UpConv(width, width // 2, norm_layer)
        self.up_middle = UpConv(width, width // 2, norm_layer)
        self.up_shallow = UpConv(width, width // 2, norm_layer)
        self.up_fused_deep = UpConv(width // 2, width // 4, norm_layer)
        self.up_fused_shallow = UpConv(width // 2, width // 4, norm_layer)
        self.up_half = UpConv(width // 4, width // 8, norm_layer)
        self.up_full = UpConv(width // 8, width // 16, norm_layer)
        self.image_skip = ConvNormAct(image_channels, width // 16, norm_layer=norm_layer)
        self.out_channels = width // 8

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Fuse the maps with the image.

        Args:
            maps: Four maps, shallow to deep, (B, D, ceil(H / 16), ceil(W / 16)).
            image: The image that the maps came from, (B, C, H, W).

        Returns:
            Features of the image padded at bottom and right to a multiple of 16,
            (B, D/8, 16 ceil(H / 16), 16 ceil(W / 16)).
        """
        shallow, middle, deep, deepest = maps
        fused_deep = self.up_deep(deep + deepest) + self.up_middle(middle)
        fused = self.up_fused_deep(fused_deep) + self.up_fused_shallow(self.up_shallow(shallow))
        features = self.up_full(self.up_half(fused))
        return torch.cat((features, self.image_skip(pad_to_multiple(image, 16))), dim=1)
