"""Rotary position embedding of the DINOv3 vision transformers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class RopeTable(nn.Module):
    """Sine and cosine of every patch position: the same in training and in evaluation mode.

    It stands in timm's place for three reasons. The periods are a persistent buffer, because the official files carry
    them (rounded to bfloat16) and the features depend on them; the table can be made in bfloat16, as MedDINOv3 was
    trained; and it is made on the device of the periods, which a captured graph needs.

    Source: DINOv3, https://arxiv.org/abs/2508.10104, "axial RoPE" with coordinates in [-1, 1] per axis.
    """

    periods: Tensor

    def __init__(self, head_dim: int, temperature: float = 100.0, bfloat16: bool = False) -> None:
        """Lay out the periods, from 1 to just below `temperature`.

        Args:
            head_dim: Width of one attention head, a multiple of 4.
            temperature: Base of the geometric row of periods.
            bfloat16: Whether periods, coordinates, angles and table are rounded to bfloat16.
        """
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"a head is {head_dim} wide, RoPE needs a multiple of 4; change embed_dim or num_heads")
        self.in_bfloat16 = bfloat16
        self.temperature = temperature
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        exponents = 2 * torch.arange(head_dim // 4, dtype=dtype) / (head_dim // 2)
        self.register_buffer("periods", (temperature**exponents).float())

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Make the table for a grid of `shape` = (rows, columns) patches.

        Returns:
            (rows * columns, 2 * head_dim), sines then cosines.
        """
        dtype = torch.bfloat16 if self.in_bfloat16 else torch.float32
        axes = [torch.arange(0.5, n, device=self.periods.device, dtype=dtype) / n for n in shape]
        coords = 2.0 * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1) - 1.0
        angles = 2 * math.pi * coords[:, :, None] / self.periods.to(dtype)
        angles = angles.flatten(1).tile(2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RopeTable:
        """Keep the periods in float32 when the network is cast to a lower precision."""
        periods = self.periods
        super()._apply(fn, recurse)
        if self.periods.dtype != torch.float32:
            self.periods = periods.to(self.periods.device)
        return self


class CastToBFloat16(nn.Module):
    """Rounds queries and keys before a bfloat16 rotation, which the reference does in the table's own precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Round `x` to bfloat16."""
        return x.bfloat16()
