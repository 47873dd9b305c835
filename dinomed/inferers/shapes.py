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
    """Distance to the edge of a mask (A, B), positive within; float32. An empty mask is infinitely far away."""
    array = mask.cpu().numpy().astype(bool)
    if not array.any():
        return torch.full(mask.shape, -np.inf)
    padded = np.pad(array, 1)  # beyond the picture there is no label
    within = ndimage.distance_transform_edt(padded, sampling=spacing_mm)[1:-1, 1:-1]
    beyond = ndimage.distance_transform_edt(~array, sampling=spacing_mm)
    half = min(spacing_mm) / 2
    return torch.from_numpy(np.where(array, within - half, half - beyond).astype(np.float32)).to(mask.device)


def overlap(one: Tensor, other: Tensor) -> float:
    """Dice of two maps of shares in [0, 1]; 0 where both are empty."""
    total = float(one.sum() + other.sum())
    return 2 * float(torch.minimum(one, other).sum()) / total if total else 0.0
