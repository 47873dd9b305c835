"""The DINOv3 adapter: maps at strides 4, 8, 16 and 32 from a plain vision transformer.

A small convolutional network looks at the image at strides 4 to 32. Its maps at strides 8, 16 and 32 are queries which
read the transformer's tapped token maps, one tap after the other, by multi-scale deformable attention.

Source: Chen et al., "Vision Transformer Adapter for Dense Predictions", ICLR 2023, without the injectors, as DINOv3
uses it (Simeoni et al., "DINOv3", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import DropPath
from torch import Tensor, nn

from dinomed.networks.backbones import Backbone, pad_to_multiple
from dinomed.networks.blocks import ConvNormAct, NormLayer
from dinomed.networks.folding import ChannelAffine, apply_scaled, can_fold, norm_affine
from dinomed.ops import ms_deform_attn_fused

Size = tuple[int, int]

_HEAD_WIDTH = 64
_LAYER_NORM_EPS = 1e-6


def default_num_heads(width: int, value_width: int) -> int:
    """Give one head per 64 channels (6, 12, 16 for widths 384, 768, 1024), or the next fewer that divide the values."""
    most = max(1, width // _HEAD_WIDTH)
    return next(heads for heads in range(most, 0, -1) if value_width % heads == 0)


def _to_tokens(x: Tensor) -> Tensor:
    """Turn a map (B, C, H, W) into tokens (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def _to_maps(tokens: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Turn the tokens (B, N, C) of several maps into views (B, C, H, W), channels last in memory."""
    parts = tokens.split([height * width for height, width in sizes], dim=1)
    return [part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]


def _pixel_centres(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """Give the pixel centres of several maps as x, y in [0, 1], (N, 2)."""
    centres = []
    for height, width in sizes:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        centres.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1))
    return torch.cat(centres)


class DeformableAttention(nn.Module):
    """Every query reads a few learned points around its own place in one map.

    Args:
        width: Channels of queries and map.
        num_heads: Heads; they divide `value_width`.
        num_points: Points per head.
        value_width: Channels of the projected map.
    """

    def __init__(self, width: int, num_heads: int, num_points: int, value_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(width, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(width, num_heads * num_points)
        self.value_proj = nn.Linear(width, value_width)
        self.output_proj = nn.Linear(value_width, width)

    def reset_parameters(self) -> None:
        """Start with points on a ray per head, one to `num_points` pixels away, of equal weight."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2.0 * math.pi / self.num_heads)
        rays = torch.stack((angles.cos(), angles.sin()), dim=-1)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        distances_pixels = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = rays[:, None] * distances_pixels[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, centres: Tensor, tokens: Tensor, size: Size) -> Tensor:
        """Read the map at every query's points.

        Args:
            queries: (B, N, C).
            centres: The queries' places as x, y in [0, 1], float32, (N, 2).
            tokens: The map's pixels, rows first, (B, H * W, C).
            size: H and W.

        Returns:
            What every query read, (B, N, C).
        """
        heads, points = self.num_heads, self.num_points
        value = self.value_proj(tokens).unflatten(-1, (heads, -1))
        # The operator keeps locations in float32 under autocast: rounded to bfloat16 they would move by whole pixels.
        offsets = self.sampling_offsets(queries).unflatten(-1, (heads, 1, points, 2))
        logits = self.attention_weights(queries).unflatten(-1, (heads, 1, points))
        return self.output_proj(ms_deform_attn_fused(value, [size], centres, offsets, logits))


class ConvFeedForward(nn.Module):
    """A feed-forward with a 3x3 depthwise convolution, on the tokens of several maps at once."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.dwconv = nn.Conv2d(hidden_width, hidden_width, kernel_size=3, padding=1, groups=hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, tokens: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Map tokens (B, N, C) of maps of the given sizes to (B, N, C)."""
        maps = _to_maps(self.fc1(tokens), sizes)
        return self.fc2(F.gelu(torch.cat([_to_tokens(self.dwconv(x)) for x in maps], dim=1)))


class Extractor(nn.Module):
    """Deformable attention from the query maps to one token map, and a convolutional feed-forward."""

    def __init__(
        self, width: int, num_heads: int, num_points: int, value_width: int, hidden_width: int, drop_path: float
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)
        self.feature_norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)
        self.attention = DeformableAttention(width, num_heads, num_points, value_width)
        self.ffn_norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)
        self.ffn = ConvFeedForward(width, hidden_width)
        self.drop_path = DropPath(drop_path)

    def forward(self, queries: Tensor, centres: Tensor, sizes: Sequence[Size], tokens: Tensor, size: Size) -> Tensor:
        """Update the queries.

        Args:
            queries: Tokens of the query maps, (B, N, C).
            centres: Their places as x, y in [0, 1], (N, 2).
            sizes: Heights and widths of the query maps.
            tokens: Tokens of the map that is read, (B, H * W, C).
            size: H and W.

        Returns:
            The queries, (B, N, C).
        """
        queries = queries + self.attention(self.query_norm(queries), centres, self.feature_norm(tokens), size)
        return queries + self.drop_path(self.ffn(self.ffn_norm(queries), sizes))


class SpatialPriorModule(nn.Module):
    """A small convolutional network: the image's own detail at strides 4, 8, 16 and 32."""

    def __init__(self, image_channels: int, stem_width: int, width: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNormAct(image_channels, stem_width, stride=2, norm_layer=norm_layer),
            ConvNormAct(stem_width, stem_width, norm_layer=norm_layer),
            ConvNormAct(stem_width, stem_width, norm_layer=norm_layer),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        widths = (stem_width, 2 * stem_width, 4 * stem_width, 4 * stem_width)
        self.stages = nn.ModuleList(
            ConvNormAct(given, made, stride=2, norm_layer=norm_layer) for given, made in pairwise(widths)
        )
        self.projections = nn.ModuleList(nn.Conv2d(given, width, kernel_size=1) for given in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map images (B, C, H, W) to maps (B, C_i, H / s, W / s), s = 4, 8, 16, 32, before their projections."""
        # Channels last makes faster convolutions; the maps' values are the same.
        maps = [self.stem(image.contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class DINOv3Adapter(Backbone):
    """A vision transformer with four taps at stride 16 as a backbone with maps at strides 4, 8, 16 and 32.

    Class tokens play no part. The image is padded at bottom and right to a multiple of 32; the maps are cropped back.

    Args:
        backbone: The vision transformer; its freezing is its own affair.
        stem_width: Channels of the spatial prior module's stem.
        num_heads: Heads of the deformable attention; by default one for every 64 channels of the backbone.
        num_points: Points per head.
        value_ratio: Channels of the attention's values, relative to the backbone's.
        ffn_ratio: Channels inside the convolutional feed-forward, relative to the backbone's.
        drop_path: Probability that a feed-forward is skipped for an image in training.
        num_extra_extractors: Extractors after the last tap's own, on the same tap.
        add_token_maps: Whether the token maps, resized, are added to the result.
        norm_layer: Makes the norm layer of a number of channels.
        image_channels: Channels of the image.

    Raises:
        ValueError: If the backbone has other maps, or the heads do not divide the values' channels.
    """

    def __init__(
        self,
        backbone: Backbone,
        stem_width: int = 64,
        num_heads: int | None = None,
        num_points: int = 4,
        value_ratio: float = 0.5,
        ffn_ratio: float = 0.25,
        drop_path: float = 0.3,
        num_extra_extractors: int = 2,
        add_token_maps: bool = True,
        norm_layer: NormLayer = nn.BatchNorm2d,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        if list(backbone.strides) != [16] * 4 or len(set(backbone.channels)) != 1:
            raise ValueError(
                f"DINOv3Adapter needs four maps at stride 16 of equal channels, not strides {list(backbone.strides)} "
                f"with channels {list(backbone.channels)}; use a ViT backbone with four tapped layers (layers=...)"
            )
        width = backbone.channels[0]
        value_width, hidden_width = int(width * value_ratio), int(width * ffn_ratio)
        heads = default_num_heads(width, value_width) if num_heads is None else num_heads
        if value_width % heads != 0:
            raise ValueError(
                f"num_heads={heads} does not divide the {value_width} channels of the values (width {width} times "
                f"value_ratio {value_ratio}); use {default_num_heads(width, value_width)}"
            )
        self.channels = [width] * 4
        self.strides = [4, 8, 16, 32]
        self.multiple = 32
        self.add_token_maps = add_token_maps
        self.spatial_prior = SpatialPriorModule(image_channels, stem_width, width, norm_layer)
        self.level_embedding = nn.Parameter(torch.zeros(3, width))
        self.taps = [0, 1, 2, 3] + [3] * num_extra_extractors
        self.extractors = nn.ModuleList(
            Extractor(width, heads, num_points, value_width, hidden_width, drop_path) for _ in self.taps
        )
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(norm_layer(width) for _ in range(4))
        self._reset_parameters()
        self.backbone = backbone  # after the reset, which must not touch it

    def _reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embedding)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) to four maps (B, D, ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32."""
        height, width = image.shape[-2:]
        padded = pad_to_multiple(image, self.multiple)
        maps = self.fuse(padded, self.backbone(padded))
        return [x[..., : -(-height // s), : -(-width // s)] for x, s in zip(maps, self.strides, strict=True)]

    def fuse(self, image: Tensor, token_maps: Sequence[Tensor]) -> list[Tensor]:
        """Join an image with the token maps that a vision transformer gave for it.

        Args:
            image: (B, C, H, W) with H and W multiples of 32.
            token_maps: Four maps, shallow to deep, (B, D, H / 16, W / 16).

        Returns:
            Four maps (B, D, H / s, W / s), s = 4, 8, 16, 32.
        """
        # Channels last: their tokens are views, and resizing is faster.
        token_maps = [x.contiguous(memory_format=torch.channels_last) for x in token_maps]
        finest, *coarser = self.spatial_prior(image)
        query_maps = [project(x) for project, x in zip(self.spatial_prior.projections[1:], coarser, strict=True)]
        sizes = [(x.shape[-2], x.shape[-1]) for x in query_maps]
        size = (token_maps[0].shape[-2], token_maps[0].shape[-1])
        centres = _pixel_centres(sizes, image.device)
        queries = torch.cat(
            [_to_tokens(x) + level for x, level in zip(query_maps, self.level_embedding, strict=True)], dim=1
        )
        tokens = [_to_tokens(token_map) for token_map in token_maps]
        for extractor, tap in zip(self.extractors, self.taps, strict=True):
            queries = extractor(queries, centres, sizes, tokens[tap], size)
        query_maps = _to_maps(queries, sizes)
        maps = []
        for norm, x, token_map in zip(self.norms[1:], query_maps, token_maps[1:], strict=True):
            maps.append(norm(x + _resize(token_map, x) if self.add_token_maps else x))
        return [self._finest_map(query_maps[0], finest, token_maps[0]), *maps]

    def _finest_map(self, queries: Tensor, prior: Tensor, token_map: Tensor) -> Tensor:
        """Join the map at stride 4 from the queries at stride 8, the spatial prior and the first token map."""
        norm, project = self.norms[0], self.spatial_prior.projections[0]
        assert isinstance(project, nn.Conv2d)
        queries = queries.contiguous(memory_format=torch.channels_last)
        affine = norm_affine(norm) if can_fold(self.up) and can_fold(project) else None
        if affine is None:
            x = self.up(queries) + project(prior)
            return norm(x + _resize(token_map, x) if self.add_token_maps else x)
        # The norm is the same for every pixel, and each part can take its share of it before it is as large as that.
        # Sums in place: these are by far the largest maps, and fresh memory costs more than adding.
        share = ChannelAffine(affine.scale, torch.zeros_like(affine.shift))
        x = apply_scaled(self.up, share, queries)
        x += apply_scaled(project, affine, prior)
        if self.add_token_maps:
            x += _resize(token_map * affine.scale.to(token_map.dtype).view(-1, 1, 1), x)
        return x


def _resize(token_map: Tensor, like: Tensor) -> Tensor:
    token_map = token_map.to(like.dtype)  # of the lower precision before it is enlarged, not after
    if token_map.shape[-2:] == like.shape[-2:]:
        return token_map
    return F.interpolate(token_map, size=like.shape[-2:], mode="bilinear", align_corners=False)
