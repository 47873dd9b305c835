"""Small parts that adapter, decoders and segmenter share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dinomed.networks.folding import apply_folded

NormLayer = Callable[[int], nn.Module]


@dataclass(frozen=True)
class LogitsResize:
    """How a segmenter brings a decoder's logits to the image's size.

    The logits are enlarged by `scale`, the pixels of the image that one logit stands for along an axis, then cropped to
    the image. So an image that had to be padded is not squeezed.

    Attributes:
        scale: Factor along both axes; 1 leaves the logits as they are.
        mode: Interpolation mode of `torch.nn.functional.interpolate`.
        align_corners: Whether the outermost pixels' centres, not their edges, are made to meet.
    """

    scale: int
    mode: str = "bilinear"
    align_corners: bool = False

    def __call__(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Resize (B, C, h, w) logits to (B, C, height, width)."""
        if self.scale != 1:
            size = (logits.shape[-2] * self.scale, logits.shape[-1] * self.scale)
            logits = F.interpolate(logits, size=size, mode=self.mode, align_corners=self.align_corners)
        return logits[..., :height, :width]


class ConvNormAct(nn.Sequential):
    """A convolution without bias that keeps the size at stride 1, a norm layer and a ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
            norm_layer(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, H', W'); in inference batch norm costs nothing."""
        conv, norm, activation = self
        return activation(apply_folded(conv, norm, x) if isinstance(conv, nn.Conv2d) else norm(conv(x)))


def check_strides(decoder: str, strides: Sequence[int], needed: Sequence[int], fix: str) -> None:
    """Refuse maps that a decoder cannot use.

    Args:
        decoder: Class name, for the message.
        strides: Strides of the maps given.
        needed: Strides of the maps needed.
        fix: What the caller should do instead.

    Raises:
        ValueError: If the two differ.
    """
    if tuple(strides) != tuple(needed):
        raise ValueError(f"{decoder} needs maps at strides {tuple(needed)} but got {tuple(strides)}; {fix}")


def check_lengths(channels: Sequence[int], strides: Sequence[int]) -> None:
    """Refuse channels and strides that do not describe the same maps.

    Raises:
        ValueError: If their lengths differ.
    """
    if len(channels) != len(strides):
        raise ValueError(
            f"{len(channels)} channels and {len(strides)} strides were given; "
            "pass a backbone's own channels and strides"
        )
