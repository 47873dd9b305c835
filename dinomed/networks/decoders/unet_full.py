"""The adapter's UNet: maps at strides 4, 8, 16 and 32, enlarged by transposed convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinomed.networks.blocks import ConvNormAct, LogitsResize, NormLayer, check_lengths, check_strides


class UpBlock(nn.Module):
    """A transposed convolution that doubles the size, a skip, and two 3x3 convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.convs = nn.Sequential(
            ConvNormAct(out_channels + skip_channels, out_channels, norm_layer=norm_layer),
            ConvNormAct(out_channels, out_channels, norm_layer=norm_layer),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, C, h, w) and a skip (B, C_skip, H, W), with H <= 2 h and W <= 2 w, to (B, C', H, W)."""
        up = self.up(x)[..., : skip.shape[-2], : skip.shape[-1]]
        return self.convs(torch.cat((up, skip), dim=1))


class UNetFullDecoder(nn.Module):
    """Decoder of four maps at strides 4, 8, 16 and 32, for a 1x1 head at stride 4.

    The first three maps are projected by 1x1 convolutions to the first three of `decoder_channels`, the last one by
    a 3x3 convolution to the first; three transposed-convolution blocks with a skip each lead back to stride 4. Logits
    are enlarged four times with aligned corners. For structures thinner than four pixels, `fine_channels` adds blocks
    at strides 2 and 1 whose skips are convolutions of the image; logits are then enlarged by what is left.

    Args:
        channels: Channels of the four maps.
        strides: Strides of the maps; (4, 8, 16, 32).
        decoder_channels: Channels of the bottleneck and of the three blocks, coarse to fine.
        fine_channels: Channels of up to two more blocks, at strides 2 and 1; none by default.
        image_channels: Channels of the image.
        norm_layer: Makes the norm layer of a number of channels.

    Attributes:
        out_channels: Channels of the result, the last of `decoder_channels` and `fine_channels`.
        head_kernel_size: Kernel size of the head that follows, 1.
        logits_resize: By the stride that is left, 4, 2 or 1; bilinear, with aligned corners.

    Raises:
        ValueError: If the maps are not of that kind.
    """

    head_kernel_size = 1

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        decoder_channels: Sequence[int] = (256, 128, 64, 32),
        fine_channels: Sequence[int] = (),
        image_channels: int = 3,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.channels, self.strides = tuple(channels), tuple(strides)
        fix = "wrap a ViT backbone in DINOv3Adapter, or use a ConvNeXt backbone"
        check_strides("UNetFullDecoder", strides, (4, 8, 16, 32), fix)
        if len(decoder_channels) != 4:
            raise ValueError(f"decoder_channels must be four numbers, coarse to fine, not {tuple(decoder_channels)}")
        if len(fine_channels) > 2:
            raise ValueError(f"fine_channels must be at most two numbers (strides 2 and 1), not {tuple(fine_channels)}")
        wide, second, third, last = decoder_channels
        self.projections = nn.ModuleList(
            ConvNormAct(given, projected, kernel_size=1, norm_layer=norm_layer)
            for given, projected in zip(channels[:3], (wide, second, third), strict=True)
        )
        self.bottleneck = ConvNormAct(channels[3], wide, norm_layer=norm_layer)
        self.blocks = nn.ModuleList(
            [
                UpBlock(wide, third, second, norm_layer),
                UpBlock(second, second, third, norm_layer),
                UpBlock(third, wide, last, norm_layer),
            ]
        )
        self.image_skips = nn.ModuleList()
        for level, width in enumerate(fine_channels):
            self.image_skips.append(ConvNormAct(image_channels, width // 2, stride=2 - level, norm_layer=norm_layer))
            self.blocks.append(UpBlock(last, width // 2, width, norm_layer))
            last = width
        self.out_channels = last
        self.logits_resize = LogitsResize(scale=4 >> len(fine_channels), align_corners=True)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Fuse the maps.

        Args:
            maps: Four maps, fine to coarse, (B, C_i, ceil(H / s_i), ceil(W / s_i)).
            image: The image that the maps came from, (B, C, H, W); used by the blocks of `fine_channels` only.

        Returns:
            Features (B, out_channels, ceil(H / s), ceil(W / s)) at stride s: 4, or 2 or 1 with `fine_channels`.
        """
        x = self.bottleneck(maps[3])
        skips = [project(level) for project, level in zip(self.projections, maps, strict=False)]
        fine_skips = [convolve(image) for convolve in self.image_skips]
        for block, skip in zip(self.blocks, (*reversed(skips), *fine_skips), strict=True):
            x = block(x, skip)
        return x
