"""How far a scan's embedding lies from those a head was trained on: a head answers for any scan, also for a knee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALLEST_STD = 1e-6

Array = npt.NDArray[np.float32]


def measure_familiarity(bags: Sequence[Array]) -> dict[str, Any]:
    """Describe where known scans lie.

    Args:
        bags: Embeddings of each scan's slices, (N, C) float32; the scan is their mean.

    Returns:
        Plain values: "mean" and "std" (C,) over the scans, and "limit", the largest distance of one of them.
    """
    means = np.stack([bag.mean(axis=0, dtype=np.float64) for bag in bags])
    known = {
        "mean": means.mean(axis=0).tolist(),
        "std": np.maximum(means.std(axis=0), _SMALLEST_STD).tolist(),
    }
    return {**known, "limit": max(distance_to_known(known, bag) for bag in bags), "scans": len(bags)}


def distance_to_known(known: Mapping[str, Any], bag: Array) -> float:
    """Give a scan's distance from the centre of the known ones: the root mean square of its z-scores.

    Args:
        known: What `measure_familiarity` gave.
        bag: Embeddings of the scan's slices, (N, C) float32.
    """
    mean, std = np.asarray(known["mean"]), np.asarray(known["std"])
    return float(np.sqrt((((bag.mean(axis=0, dtype=np.float64) - mean) / std) ** 2).mean()))
