"""SegDINO's decoder: each map through a 1x1 and a 3x3 convolution, all joined at one stride.

Source: Yang et al., "SegDINO: An Efficient Design for Medical and Natural Image Segmentation with DINO-V3", 2025,
https://arxiv.org/abs/2509.00833, and its published settings (128 features; 96, 192, 384 and 768 channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinomed.networks.blocks import LogitsResize, check_lengths


class DPTDecoder(nn.Module):
    """Decoder of maps at stride 16, or at strides 4 to 32, for a 1x1 head at stride 4.

    Map i goes through a 1x1 convolution to `project_channels[i]` and a 3x3 convolution without bias to `features`. The
    first is enlarged to `out_stride` by a transposed convolution, unless it is there already, the others bilinearly
    with aligned corners. The paper's 2.21 M parameters for ViT-S are those of its first version, without the transposed
    convolution (`out_stride=16`); the published code has it since, and so has the default here (2.48 M).

    Args:
        channels: Channels of the maps.
        strides: Strides of the maps; each a multiple of `out_stride`.
        features: Channels of each map where they are joined.
        project_channels: Channels of each map between its two convolutions.
        out_stride: Stride at which the maps are joined.

    Attributes:
        out_channels: Channels of the result, `features` for each map.
        head_kernel_size: Kernel size of the head that follows, 1.
        logits_resize: By `out_stride`, bilinear, with aligned corners.

    Raises:
        ValueError: If the maps are not as many as `project_channels` or do not lie on the grid of `out_stride`.
    """

    head_kernel_size = 1

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        features: int = 128,
        project_channels: Sequence[int] = (96, 192, 384, 768),
        out_stride: int = 4,
    ) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.channels, self.strides = tuple(channels), tuple(strides)
        if len(project_channels) != len(channels):
            raise ValueError(
                f"DPTDecoder got {len(channels)} maps but {len(project_channels)} project_channels; give one for each "
                "map, or tap four layers of the backbone (layers=...)"
            )
        if out_stride < 1 or any(stride % out_stride != 0 for stride in strides):
            raise ValueError(
                f"DPTDecoder joins maps at stride {out_stride}, of which {tuple(strides)} are not all multiples; "
                "set out_stride to a common divisor"
            )
        self.projects = nn.ModuleList(
            nn.Conv2d(given, made, kernel_size=1) for given, made in zip(channels, project_channels, strict=True)
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(given, features, kernel_size=3, padding=1, bias=False) for given in project_channels
        )
        scale = strides[0] // out_stride
        self.up: nn.Module = (
            nn.Identity() if scale == 1 else nn.ConvTranspose2d(features, features, scale, stride=scale, bias=False)
        )
        self.enlarge = [LogitsResize(scale=stride // out_stride, align_corners=True) for stride in strides[1:]]
        self.out_channels = features * len(channels)
        self.logits_resize = LogitsResize(scale=out_stride, align_corners=True)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Join the maps.

        Args:
            maps: Maps, fine to coarse or shallow to deep, (B, C_i, ceil(H / s_i), ceil(W / s_i)).
            image: The image that the maps came from, (B, C, H, W); not used.

        Returns:
            Features (B, out_channels, h, w) at `out_stride` s of the image padded at bottom and right to a multiple of
            the first map's stride, h >= ceil(H / s) and w >= ceil(W / s).
        """
        layers = zip(self.convs, self.projects, maps, strict=True)
        first, *others = [conv(project(x)) for conv, project, x in layers]
        first = self.up(first)
        height, width = first.shape[-2:]
        enlarged = [enlarge(x, height, width) for enlarge, x in zip(self.enlarge, others, strict=True)]
        return torch.cat((first, *enlarged), dim=1)
