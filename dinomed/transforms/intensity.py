"""Intensities: percentile normalisation, CT windows, fixed gamma, scalar mean and deviation.

Each is a pure function on tensors of any shape and a thin MONAI transform around it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

FOREGROUND_FRACTION = 0.05
"""A voxel is foreground when it lies above the robust minimum by more than this part of the robust range."""

SAMPLES_WANTED = 1_000_000
SHORTEST_SAMPLED_AXIS = 64


def _sample(volume: Tensor) -> Tensor:
    """Take at most about a million voxels on a regular lattice that is its own mirror image.

    An odd step always has a start that leaves equally many voxels free at both ends, and all long axes share the
    step, so that flips and permutations of the axes select the same voxels. Short axes are kept whole.
    """
    step = 1
    long_axes = [axis for axis, size in enumerate(volume.shape) if size >= SHORTEST_SAMPLED_AXIS]
    while long_axes and volume.numel() > SAMPLES_WANTED * step ** len(long_axes):
        step += 2
    for axis in long_axes:
        size = volume.shape[axis]
        start = next(s for s in range(step) if (size - 1 - 2 * s) % step == 0)
        index = [slice(None)] * volume.ndim
        index[axis] = slice(start, None, step)
        volume = volume[tuple(index)]
    return volume


def _percentile(ordered: Tensor, percent: float) -> float:
    """Return a linearly interpolated percentile of ascending values (N,)."""
    position = (ordered.numel() - 1) * percent / 100.0
    below = int(position)
    above = min(below + 1, ordered.numel() - 1)
    low, high = float(ordered[below]), float(ordered[above])
    return low + (high - low) * (position - below)


def foreground_percentiles(volume: Tensor, lower: float = 0.5, upper: float = 99.5) -> tuple[float, float]:
    """Percentiles of the foreground of a volume.

    The robust range runs from the 0.1st to the 99.9th percentile of all finite voxels (from minimum to maximum where
    these coincide). Foreground is what exceeds its lower end by 5 % of its width, which leaves out a constant
    background as well as the noise of air. Volumes above a million voxels are sampled on a mirror-symmetric lattice,
    so the answer depends neither on the order of the voxels nor on chance, and it follows every rescaling
    `a * volume + b` with `a > 0`.

    Args:
        volume: Intensities of any shape.
        lower: Lower percentile in percent.
        upper: Upper percentile in percent.

    Returns:
        The two intensities. They are equal when the volume is constant.

    Raises:
        ValueError: If the percentiles are not ordered within [0, 100] or no voxel is finite.
    """
    if not 0.0 <= lower < upper <= 100.0:
        raise ValueError(f"percentiles must satisfy 0 <= lower < upper <= 100, not lower={lower}, upper={upper}")
    sample = _sample(volume.detach()).reshape(-1).to(torch.float32)
    sample = sample[torch.isfinite(sample)]
    if sample.numel() == 0:
        raise ValueError("the volume holds no finite voxel; check the file")
    ordered = torch.sort(sample).values
    floor, ceiling = _percentile(ordered, 0.1), _percentile(ordered, 99.9)
    if ceiling <= floor:
        floor, ceiling = float(ordered[0]), float(ordered[-1])
    threshold = floor + FOREGROUND_FRACTION * (ceiling - floor)
    foreground = ordered[torch.searchsorted(ordered, threshold, right=True) :]
    if foreground.numel() == 0:  # a constant volume
        return floor, ceiling
    low, high = _percentile(foreground, lower), _percentile(foreground, upper)
    return (low, high) if high > low else (floor, high)


def normalise_percentiles(volume: Tensor, lower: float = 0.5, upper: float = 99.5) -> Tensor:
    """Map foreground percentiles to 0 and 1 and clip to [0, 1].

    Args:
        volume: Intensities of any shape; not finite voxels become 0 (NaN, -inf) or 1 (+inf).
        lower: Percentile of the foreground that becomes 0.
        upper: Percentile of the foreground that becomes 1.

    Returns:
        float32 tensor of the same shape; a constant volume becomes all zeros.

    Raises:
        ValueError: If the percentiles are not ordered within [0, 100] or no voxel is finite.
    """
    low, high = foreground_percentiles(volume, lower, upper)
    if high <= low:
        return torch.zeros(volume.shape, dtype=torch.float32, device=volume.device)
    return window_hu(volume, low, high)


def window_hu(volume: Tensor, low_hu: float, high_hu: float) -> Tensor:
    """Map a window of Hounsfield units (or any other intensities) to [0, 1] and clip what lies outside.

    Args:
        volume: Intensities of any shape; NaN becomes 0.
        low_hu: Intensity that becomes 0.
        high_hu: Intensity that becomes 1.

    Returns:
        float32 tensor of the same shape.

    Raises:
        ValueError: If `high_hu` does not exceed `low_hu`.
    """
    if not high_hu > low_hu:
        raise ValueError(f"the window must satisfy low_hu < high_hu, not low_hu={low_hu}, high_hu={high_hu}")
    scaled = volume.to(torch.float32) - low_hu
    return scaled.div_(high_hu - low_hu).clamp_(0.0, 1.0).nan_to_num_(0.0)


def fixed_gamma(volume: Tensor, gamma: float = 0.75) -> Tensor:
    """Raise intensities in [0, 1] to a power; values outside are clipped first.

    Args:
        volume: Intensities of any shape.
        gamma: Exponent; below 1 it brightens.

    Returns:
        float32 tensor of the same shape.

    Raises:
        ValueError: If `gamma` is not positive.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, not {gamma}")
    return volume.to(torch.float32).clamp(0.0, 1.0).pow_(gamma)


def normalise_intensity(volume: Tensor, mean: float, std: float) -> Tensor:
    """Subtract a mean and divide by a standard deviation.

    Args:
        volume: Intensities of any shape.
        mean: Scalar mean.
        std: Scalar standard deviation.

    Returns:
        float32 tensor of the same shape.

    Raises:
        ValueError: If `std` is not positive.
    """
    if not std > 0:
        raise ValueError(f"std must be positive, not {std}")
    return (volume.to(torch.float32) - mean).div_(std)


class _MapIntensities(MapTransform):
    """Apply one pure function to the listed keys, keeping each image's meta data."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(keys, allow_missing_keys)
        function(torch.linspace(0.0, 1.0, 3))  # wrong settings are refused here, not at the first scan
        self.function = function

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the listed images replaced."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            if isinstance(image, MetaTensor):
                values = self.function(image.as_tensor())
                out[key] = MetaTensor(values, meta=image.meta, applied_operations=image.applied_operations)
            else:
                out[key] = self.function(torch.as_tensor(image))
        return out


class NormalisePercentilesd(_MapIntensities):
    """Dictionary version of `normalise_percentiles`."""

    def __init__(
        self, keys: KeysCollection, lower: float = 0.5, upper: float = 99.5, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys, partial(normalise_percentiles, lower=lower, upper=upper))


class WindowHUd(_MapIntensities):
    """Dictionary version of `window_hu`."""

    def __init__(self, keys: KeysCollection, low_hu: float, high_hu: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys, partial(window_hu, low_hu=low_hu, high_hu=high_hu))


class FixedGammad(_MapIntensities):
    """Dictionary version of `fixed_gamma`."""

    def __init__(self, keys: KeysCollection, gamma: float = 0.75, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys, partial(fixed_gamma, gamma=gamma))


class NormaliseIntensityd(_MapIntensities):
    """Dictionary version of `normalise_intensity`."""

    def __init__(self, keys: KeysCollection, mean: float, std: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys, partial(normalise_intensity, mean=mean, std=std))
