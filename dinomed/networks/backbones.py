"""DINOv3 backbones, all under one contract, built through timm.

A backbone maps an image (B, 3, H, W) to a list of maps, fine to coarse, and says their `channels` and `strides`.
It pads the image to its own `multiple` and gives the maps of the unpadded image back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn import functional

from dinomed.networks.backbone_specs import BACKBONES, BackboneSpec
from dinomed.networks.rope import CastToBFloat16, RopeTable
from dinomed.networks.weights import load_weights


class LayerTokens(NamedTuple):
    """What one tapped layer says of the image.

    Attributes:
        patch_map: (B, C, ceil(H / stride), ceil(W / stride)).
        class_token: (B, C).
        storage_tokens: (B, S, C); S is 0 for a ConvNeXt.
    """

    patch_map: Tensor
    class_token: Tensor
    storage_tokens: Tensor


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) with zeros at the bottom and the right until both sizes are multiples of `multiple`.

    Zero is the mean of a normalised image and is defined for every size, however small; timm pads in the same way.
    """
    pad_rows, pad_columns = -image.shape[-2] % multiple, -image.shape[-1] % multiple
    return functional.pad(image, (0, pad_columns, 0, pad_rows)) if pad_rows or pad_columns else image


class Backbone(nn.Module, ABC):
    """The contract: an image (B, 3, H, W) in, a list of maps out, fine to coarse.

    Attributes:
        channels: Channels of each map.
        strides: Pixels between neighbours in each map; map i has the size (ceil(H / strides[i]), ceil(W / strides[i])).
        multiple: The backbone pads the image to a multiple of this by itself.
    """

    channels: list[int]
    strides: list[int]
    multiple: int

    @abstractmethod
    def forward(self, image: Tensor) -> list[Tensor]:
        """Map the image (B, 3, H, W) to one map (B, channels[i], ...) for each stride."""


class TimmBackbone(Backbone):
    """What the transformers and the ConvNeXts share: padding, freezing, and checks of the input.

    Attributes:
        model: The timm network; its parameter names are what `load_weights` fills.
        layers: Tapped layers (blocks of a transformer, stages of a ConvNeXt), counted from 0.
        name: The backbone's name, for messages.
        spec: How it was built.
        family: "vit" or "convnext".
        frozen: Whether the network stays in evaluation mode and runs without gradients.
    """

    family: str

    def __init__(self, name: str, spec: BackboneSpec, model: nn.Module, layers: Sequence[int]) -> None:
        """Hold `model`, tapped after `layers`."""
        super().__init__()
        self.model: Any = model
        self.name = name
        self.spec = spec
        self.layers = _absolute_layers(layers, self.depth)
        self.frozen = False

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map the image (B, 3, H, W) to one map for each tapped layer."""
        return [tokens.patch_map for tokens in self.forward_tokens(image)]

    def forward_tokens(self, image: Tensor) -> list[LayerTokens]:
        """Give map, class token and storage tokens of each tapped layer for the image (B, 3, H, W)."""
        return self._run(image, self.layers)

    def forward_last(self, image: Tensor) -> LayerTokens:
        """Give map, class token and storage tokens of the network's last layer, tapped or not, for (B, 3, H, W)."""
        return self._run(image, [self.depth - 1])[0]

    def set_frozen(self, frozen: bool) -> TimmBackbone:
        """Freeze (evaluation mode and no gradients, whatever `train` is told later) or release the network."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        for module in self._behind_last_tap():
            module.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode, except that a frozen backbone stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> TimmBackbone:
        """Trade time for memory in training: recompute each block's activations in the backward pass."""
        self.model.set_grad_checkpointing(enable)
        return self

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of layers that can be tapped."""

    @abstractmethod
    def _behind_last_tap(self) -> Iterable[nn.Module]:
        """Give what `forward` never runs: no gradient would arrive there."""

    @abstractmethod
    def _padded_tokens(self, image: Tensor, layers: list[int], size: tuple[int, int]) -> list[LayerTokens]:
        """Run the network on the padded image and crop what it gives to an image of `size`."""

    def _run(self, image: Tensor, layers: list[int]) -> list[LayerTokens]:
        in_channels = self.model.in_chans
        if image.ndim != 4 or image.shape[1] != in_channels:
            raise ValueError(
                f"the backbone needs an image of shape (B, {in_channels}, H, W), got {tuple(image.shape)}; "
                "repeat a grey image along dimension 1"
            )
        height, width = image.shape[-2:]
        # An exported graph would hold the switch as a nested graph, which later passes (decomposition, ONNX) refuse.
        silent = self.frozen and not torch.compiler.is_exporting()
        with torch.no_grad() if silent else nullcontext():
            return self._padded_tokens(pad_to_multiple(image, self.multiple), layers, (height, width))


class ViTBackbone(TimmBackbone):
    """A DINOv3 vision transformer: every map at one stride, the final norm applied to each tapped layer."""

    family = "vit"

    def __init__(self, name: str, spec: BackboneSpec, model: nn.Module, layers: Sequence[int]) -> None:
        """Hold timm's `Eva` model and give it a position table that does not change with the mode."""
        super().__init__(name, spec, model, layers)
        blocks = self.model.blocks
        patch_size: int = self.model.patch_embed.patch_size[0]
        attention = blocks[0].attn
        self.model.rope = RopeTable(attention.head_dim, self.model.rope.temperature, spec.rope_bfloat16)
        if spec.rope_bfloat16:
            for block in blocks:
                block.attn.q_norm, block.attn.k_norm = CastToBFloat16(), CastToBFloat16()
        self.channels = [self.model.embed_dim] * len(self.layers)
        self.strides = [patch_size] * len(self.layers)
        self.multiple = patch_size

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.model.blocks)

    def _behind_last_tap(self) -> Iterable[nn.Module]:
        return self.model.blocks[self.layers[-1] + 1 :]

    def _padded_tokens(self, image: Tensor, layers: list[int], size: tuple[int, int]) -> list[LayerTokens]:
        # Less than one patch is padded, so every patch holds some of the image and nothing is cropped.
        taps = self.model.forward_intermediates(
            image, indices=layers, return_prefix_tokens=True, norm=True, stop_early=True, intermediates_only=True
        )
        return [LayerTokens(patch_map, prefix[:, 0], prefix[:, 1:]) for patch_map, prefix in taps]


class ConvNeXtBackbone(TimmBackbone):
    """A DINOv3 ConvNeXt: one map for each stage, at strides 4, 8, 16, 32.

    As in the official network the final norm belongs to the last stage alone: its map and its class token (the mean of
    the map before the norm) are normed, those of the first three stages are not.
    """

    family = "convnext"

    def __init__(self, name: str, spec: BackboneSpec, model: nn.Module, layers: Sequence[int]) -> None:
        """Hold timm's `ConvNeXt` model."""
        super().__init__(name, spec, model, layers)
        info = self.model.feature_info
        self.channels = [info[i]["num_chs"] for i in self.layers]
        self.strides = [info[i]["reduction"] for i in self.layers]
        self.multiple = info[-1]["reduction"]

    @property
    def depth(self) -> int:
        """Number of stages."""
        return len(self.model.stages)

    def _behind_last_tap(self) -> Iterable[nn.Module]:
        behind = list(self.model.stages[self.layers[-1] + 1 :])
        return [*behind, self.model.head] if behind else []

    def _padded_tokens(self, image: Tensor, layers: list[int], size: tuple[int, int]) -> list[LayerTokens]:
        maps = self.model.forward_intermediates(image, indices=layers, stop_early=True, intermediates_only=True)
        tokens = []
        for layer, features in zip(layers, maps, strict=True):
            stride = self.model.feature_info[layer]["reduction"]
            patch_map = features[..., : -(-size[0] // stride), : -(-size[1] // stride)]
            class_token = patch_map.mean((-2, -1), keepdim=True)
            if layer == self.depth - 1:
                patch_map, class_token = self.model.head.norm(patch_map), self.model.head.norm(class_token)
            class_token = class_token.flatten(1)
            tokens.append(LayerTokens(patch_map.contiguous(), class_token, class_token[:, None][:, :0]))
        return tokens


_OWN_OPTIONS = ("pretrained", "num_classes", "features_only", "global_pool", "dynamic_img_size")


def create_backbone(
    name: str,
    weights: str | Path | None = None,
    frozen: bool = True,
    layers: Sequence[int] | None = None,
    *,
    gradient_checkpointing: bool = False,
    norm_eps: float | None = None,
    rope_bfloat16: bool | None = None,
    **timm_options: Any,
) -> TimmBackbone:
    """Build a backbone by name.

    Args:
        name: One of `BACKBONES`.
        weights: A file or folder for `load_weights`, "timm" for timm's hub, or None for a random start.
        frozen: Keep the network in evaluation mode and without gradients.
        layers: Tapped layers, rising, counted from 0 (negative from the end); None takes the published ones.
        gradient_checkpointing: Recompute the blocks' activations in the backward pass, which saves memory in training.
        norm_eps: Epsilon of every LayerNorm, where it must differ from the name's own.
        rope_bfloat16: Position table in bfloat16, where it must differ from the name's own.
        **timm_options: For timm's constructor, e.g. `embed_dim`, `depth`, `num_heads` (ConvNeXt: `depths`, `dims`) for
            small tests, `drop_path_rate` for training.

    Raises:
        ValueError: Unknown name, or layers or options that do not fit.
        WeightsError: The weights cannot be had or do not fit.
    """
    if name not in BACKBONES:
        raise ValueError(f"there is no backbone {name!r}; take one of {', '.join(BACKBONES)}")
    if owned := [key for key in timm_options if key in _OWN_OPTIONS or key.startswith("rope_")]:
        raise ValueError(f"{', '.join(owned)} cannot be set here, the backbone's contract decides; leave it out")
    spec = BACKBONES[name]
    if norm_eps is not None:
        spec = replace(spec, norm_eps=norm_eps)
    if rope_bfloat16 is not None:
        spec = replace(spec, rope_bfloat16=rope_bfloat16)
    backbone: TimmBackbone
    if spec.timm_model.startswith("convnext"):
        if spec.rope_bfloat16:
            raise ValueError(f"{name} has no RoPE; leave rope_bfloat16 out")
        model = timm.create_model(spec.timm_model, num_classes=0, norm_eps=spec.norm_eps, **timm_options)
        backbone = ConvNeXtBackbone(name, spec, model, range(len(model.stages)) if layers is None else layers)
    else:
        if spec.norm_eps is not None:
            timm_options["norm_layer"] = partial(LayerNorm, eps=spec.norm_eps)
        model = timm.create_model(spec.timm_model, num_classes=0, **timm_options)
        backbone = ViTBackbone(
            name, spec, model, _default_layers(spec, len(model.blocks)) if layers is None else layers
        )
    if weights is not None:
        load_weights(backbone, weights)
    return backbone.set_grad_checkpointing(gradient_checkpointing).set_frozen(frozen)


def _default_layers(spec: BackboneSpec, depth: int) -> Sequence[int]:
    """Give the published layers, or the ends of four equal parts for a depth that was chosen for a test."""
    if spec.layers is not None and spec.layers[-1] == depth - 1:
        return spec.layers
    return sorted({max(0, part * depth // 4 - 1) for part in (1, 2, 3, 4)})


def _absolute_layers(layers: Sequence[int], depth: int) -> list[int]:
    absolute = [layer + depth if layer < 0 else layer for layer in layers]
    if not absolute or absolute != sorted(set(absolute)) or not 0 <= absolute[0] <= absolute[-1] < depth:
        raise ValueError(f"layers={list(layers)} must rise without repeats and lie in 0..{depth - 1}; name others")
    return absolute
