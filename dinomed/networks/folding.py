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
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return ChannelAffine(scale, norm.bias - norm.running_mean * scale)


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
    bias = shift if conv.bias is None else conv.bias * scale + shift
    if isinstance(conv, nn.ConvTranspose2d):
        return F.conv_transpose2d(x, conv.weight * scale.view(-1, 1, 1), bias, conv.stride)
    weight = conv.weight * scale.view(-1, 1, 1, 1)
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
    affine = norm_affine(norm)
    return norm(conv(x)) if affine is None else apply_scaled(conv, affine, x)
