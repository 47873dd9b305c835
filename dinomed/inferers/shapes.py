"""Shapes between drawn slices, by their signed distances.

Source: Raya and Udupa, "Shape-based interpolation of multidimensional objects", IEEE Transactions on Medical Imaging 9
(1990), doi:10.1109/42.52980.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def signed_distance_mm(mask: Tensor, spacing_mm: tuple[float, float]) -> Tensor:
    """Distance to the edge of a mask (A, B), positive within; float32.

    The picture's own border is no edge. An empty mask is infinitely far away, a full one has its edge one picture away.
    """
    array = mask.cpu().numpy().astype(bool)
    if not array.any():
        return torch.full(mask.shape, -np.inf, device=mask.device)
    if array.all():
        reach_mm = max(size * each for size, each in zip(array.shape, spacing_mm, strict=True))
        return torch.full(mask.shape, float(reach_mm), device=mask.device)
    within = ndimage.distance_transform_edt(array, sampling=spacing_mm)
    beyond = ndimage.distance_transform_edt(~array, sampling=spacing_mm)
    half = min(spacing_mm) / 2
    return torch.from_numpy(np.where(array, within - half, half - beyond).astype(np.float32)).to(mask.device)


def overlap(one: Tensor, other: Tensor) -> float:
    """Dice of two maps of shares in [0, 1]; 0 where both are empty."""
    total = float(one.sum() + other.sum())
    return 2 * float(torch.minimum(one, other).sum()) / total if total else 0.0
