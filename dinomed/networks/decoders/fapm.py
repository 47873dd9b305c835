"""Dino U-Net's decoder: low-rank projections of the adapter's maps (FAPM), learned enlargement, and a U-Net.

Source: Gao et al., "Dino U-Net: Exploiting High-Fidelity Dense Features from Foundation Models for Medical Image
Segmentation", 2025, https://arxiv.org/abs/2508.20909. FAPM is its fidelity-aware projection module; its FiLM is plain,
gamma * z + beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dinomed.networks.blocks import LogitsResize, NormLayer, check_lengths, check_strides

_ENLARGEMENT = 2  # doublings of each map: strides 4, 8, 16, 32 become 1, 2, 4, 8


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm with scale and shift that also takes maps of a single pixel, of which only the shift is left."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every channel of (B, C, H, W) by itself."""
        # The function in torch.nn.functional refuses a single pixel, which the coarsest map of a small image is.
        return torch.instance_norm(
            x, self.weight, self.bias, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled
        )


def _conv_norm_act(in_channels: int, out_channels: int, kernel_size: int, norm_layer: NormLayer) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        norm_layer(out_channels),
        nn.LeakyReLU(inplace=True),
    ]


class SqueezeExcitation(nn.Module):
    """Every channel weighed by what all channels are on average over the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Weigh (B, C, H, W)."""
        return x * self.weigh(x)


class LevelProjection(nn.Module):
    """One level of FAPM: a low-rank map, modulated by the basis that all levels share, then refined.

    Args:
        width: Channels of the backbone's map.
        rank: Channels of the low-rank maps.
        out_channels: Channels of the result.
        norm_layer: Makes the norm layer of a number of channels.
    """

    def __init__(self, width: int, rank: int, out_channels: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.basis = nn.Conv2d(width, rank, kernel_size=1)
        self.film = nn.Conv2d(rank, 2 * rank, kernel_size=1)
        self.refine = nn.Sequential(
            *_conv_norm_act(rank, out_channels, 1, norm_layer),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, groups=out_channels),
            *_conv_norm_act(out_channels, out_channels, 1, norm_layer),
            nn.Conv2d(out_channels, out_channels, kernel_size=1),
            SqueezeExcitation(out_channels),
        )
        self.shortcut = nn.Identity() if rank == out_channels else nn.Conv2d(rank, out_channels, kernel_size=1)

    def forward(self, x: Tensor, shared: Tensor) -> Tensor:
        """Project a map (B, D, H, W), given its shared projection (B, rank, H, W), to (B, out_channels, H, W)."""
        gamma, beta = self.film(shared).chunk(2, dim=1)
        z = gamma * self.basis(x) + beta
        return self.refine(z) + self.shortcut(z)


class UpStage(nn.Module):
    """A transposed convolution that doubles the size, a skip, and two 3x3 convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, skip_channels, kernel_size=2, stride=2)
        self.convs = nn.Sequential(
            *_conv_norm_act(2 * skip_channels, skip_channels, 3, norm_layer),
            *_conv_norm_act(skip_channels, skip_channels, 3, norm_layer),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, C, h, w) and a skip (B, C_skip, H, W), with H <= 2 h and W <= 2 w, to (B, C_skip, H, W)."""
        up = self.up(x)[..., : skip.shape[-2], : skip.shape[-1]]
        return self.convs(torch.cat((up, skip), dim=1))


class FAPMDecoder(nn.Module):
    """Decoder of four maps at strides 4, 8, 16 and 32 of equal channels, for a 1x1 head at the image's size.

    Each map is projected to `rank` channels twice, by a basis of its own and by one that all share; the shared one
    gives the scale and the shift of the other. Refined to its level's channels, each map is enlarged four times by a
    transposed convolution that is applied twice. A U-Net then leads from stride 8 to stride 1.

    Args:
        channels: Channels of the four maps, all equal.
        strides: Strides of the maps; (4, 8, 16, 32).
        rank: Channels of the low-rank maps.
        stage_channels: Channels at strides 1, 2, 4 and 8; by default the published ones, doubling from 32 (up to 384
            channels of the maps, ViT-S), 48 (768, ViT-B), 64 (1280, ViT-L) or 128 (7B).
        norm_layer: Makes the norm layer of a number of channels; instance norm by default, as published.

    Attributes:
        out_channels: Channels of the result, the first of `stage_channels`.
        head_kernel_size: Kernel size of the head that follows, 1.
        logits_resize: The logits need no resizing.

    Raises:
        ValueError: If the maps are not of that kind.
    """

    head_kernel_size = 1
    logits_resize = LogitsResize(scale=1)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        rank: int = 256,
        stage_channels: Sequence[int] | None = None,
        norm_layer: NormLayer = InstanceNorm,
    ) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.channels, self.strides = tuple(channels), tuple(strides)
        check_strides("FAPMDecoder", strides, (4, 8, 16, 32), "wrap a ViT backbone in DINOv3Adapter")
        if len(set(channels)) != 1:
            raise ValueError(
                f"FAPMDecoder shares one projection between maps of equal channels, not {tuple(channels)}; wrap a ViT "
                "backbone in DINOv3Adapter, or use UNetFullDecoder"
            )
        width = channels[0]
        made = default_stage_channels(width) if stage_channels is None else tuple(stage_channels)
        if len(made) != 4:
            raise ValueError(f"stage_channels must be four numbers, fine to coarse, not {made}")
        self.shared_basis = nn.Conv2d(width, rank, kernel_size=1)
        project = partial(LevelProjection, width, rank, norm_layer=norm_layer)
        self.projections = nn.ModuleList(project(out_channels=level) for level in made)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(level, level, kernel_size=2, stride=2) for level in made)
        self.stages = nn.ModuleList(UpStage(made[i + 1], made[i], norm_layer) for i in (2, 1, 0))
        self.out_channels = made[0]

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Fuse the maps.

        Args:
            maps: Four maps, fine to coarse, (B, D, ceil(H / s_i), ceil(W / s_i)).
            image: The image that the maps came from, (B, C, H, W); not used.

        Returns:
            Features of the image padded at bottom and right to a multiple of 4,
            (B, out_channels, 4 ceil(H / 4), 4 ceil(W / 4)).
        """
        *skips, x = self.project(maps)
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            x = stage(x, skip)
        return x

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Give the skips: maps (B, stage_channels[i], 4 h_i, 4 w_i) from maps (B, D, h_i, w_i)."""
        skips = []
        for project, up, x in zip(self.projections, self.ups, maps, strict=True):
            x = project(x, self.shared_basis(x))
            for _ in range(_ENLARGEMENT):
                x = up(x)
            skips.append(x)
        return skips


def default_stage_channels(width: int) -> tuple[int, int, int, int]:
    """Give the published channels at strides 1, 2, 4 and 8 for maps of `width` channels, or those of the next size."""
    first = next((first for most, first in ((384, 32), (768, 48), (1280, 64)) if width <= most), 128)
    return first, 2 * first, 4 * first, 8 * first
