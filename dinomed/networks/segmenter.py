"""A backbone, a decoder and a head: logits at the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from dinomed.networks.backbones import Backbone
from dinomed.networks.blocks import LogitsResize


class Decoder(Protocol):
    """What a segmenter needs of a decoder.

    Attributes:
        channels: Channels of the maps that it was made for; compared with the backbone's where it has them.
        strides: Their strides, likewise.
        out_channels: Channels of its result.
        head_kernel_size: Kernel size of the convolution to logits, odd.
        logits_resize: How the logits reach the image's size.
    """

    channels: Sequence[int]
    strides: Sequence[int]
    out_channels: int
    head_kernel_size: int
    logits_resize: LogitsResize

    def __call__(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Fuse maps, fine to coarse, and the image into one dense feature map."""
        ...


class Segmenter(nn.Module):
    """Semantic segmentation of images of any size.

    Args:
        backbone: Gives maps, fine to coarse.
        decoder: Fuses them; made for the backbone's channels and strides.
        num_classes: Number of classes, the background included.

    Raises:
        ValueError: If there is no class, or the decoder was made for other maps than the backbone gives.
    """

    def __init__(self, backbone: Backbone, decoder: Decoder, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} leaves nothing to decide; give 1 or more")
        for name in ("channels", "strides"):
            made_for, given = getattr(decoder, name, None), getattr(backbone, name)
            if made_for is not None and tuple(made_for) != tuple(given):
                raise ValueError(
                    f"the decoder was made for {name} {tuple(made_for)}, the backbone gives {tuple(given)}; build it "
                    f"with {name}=backbone.{name}"
                )
        self.backbone = backbone
        self.decoder = decoder
        kernel_size = decoder.head_kernel_size
        self.head = nn.Conv2d(decoder.out_channels, num_classes, kernel_size, padding=kernel_size // 2)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, num_classes, H, W)."""
        features = self.decoder(self.backbone(image), image)
        height, width = image.shape[-2:]
        return self.decoder.logits_resize(self.head(features), height, width)
