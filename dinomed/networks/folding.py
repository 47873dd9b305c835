"""Batch norm folded into the convolution before it, in inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def apply_folded(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution without bias and a norm layer as one convolution where that is the same but for rounding.

    The folded weights are formed anew at each call, which costs next to nothing and never goes stale.

    Args:
        conv: A convolution without bias.
        norm: The norm layer after it; only batch norm in eval mode with running statistics is folded.
        x: (B, C, H, W).

    Returns:
        (B, D, H', W').
    """
    is_batch_norm = type(norm) is nn.BatchNorm2d or type(norm) is nn.SyncBatchNorm
    if norm.training or not is_batch_norm or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return norm(conv(x))
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        return norm(conv(x))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
