"""Batch norm folded into the convolution before it, in inference.

Folded weights are formed anew at each call, which costs next to nothing and never goes stale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class ChannelAffine(NamedTuple):
    """What a norm layer does in inference: x * scale + shift, a number of each for every channel."""

    scale: Tensor
    shift: Tensor


def norm_affine(norm: nn.Module) -> ChannelAffine | None:
    """Say what a norm layer does to each channel, or `None` where that depends on its input.

    Args:
        norm: A norm layer; only batch norm in eval mode with running statistics acts alike on every input.

    Returns:
        Scale and shift, (C,) each.
    """
    is_batch_norm = type(norm) is nn.BatchNorm2d or type(norm) is nn.SyncBatchNorm
    if norm.training or not is_batch_norm or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return None
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        return None
    if _is_watched(norm):
        return None
    # In float32 at least, whatever the network's type: in half precision a small variance would vanish.
    dtype = torch.promote_types(norm.running_var.dtype, torch.float32)
    scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    return ChannelAffine(scale, norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale)


def can_fold(conv: nn.Module) -> bool:
    """Whether a convolution's weights may be used in its place: nothing hooks into its call or makes it another one."""
    if type(conv) is nn.Conv2d:
        return conv.padding_mode == "zeros" and not _is_watched(conv)
    return type(conv) is nn.ConvTranspose2d and not _is_watched(conv)


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks run around a module's call, as pruning, weight norm and feature extractors set them."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def apply_scaled(conv: nn.Conv2d | nn.ConvTranspose2d, affine: ChannelAffine, x: Tensor) -> Tensor:
    """Apply a convolution and then a scale and a shift of its channels, as one convolution.

    Args:
        conv: A convolution, or a transposed one without groups and padding.
        affine: Scale and shift of its output channels, (D,) each.
        x: (B, C, H, W).

    Returns:
        (B, D, H', W').
    """
    scale, shift = affine
    dtype = conv.weight.dtype
    bias = (shift if conv.bias is None else conv.bias * scale + shift).to(dtype)
    if isinstance(conv, nn.ConvTranspose2d):
        return F.conv_transpose2d(x, (conv.weight * scale.view(-1, 1, 1)).to(dtype), bias, conv.stride)
    weight = (conv.weight * scale.view(-1, 1, 1, 1)).to(dtype)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def apply_folded(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution and a norm layer, as one convolution where that is the same but for rounding.

    Args:
        conv: The convolution.
        norm: The norm layer after it.
        x: (B, C, H, W).

    Returns:
        (B, D, H', W').
    """
    affine = norm_affine(norm) if can_fold(conv) else None
    return norm(conv(x)) if affine is None else apply_scaled(conv, affine, x)
