"""Holding out a part of a data set that has no validation part, so that every class is in both parts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from dinomed.data.stratification import stratify


def hold_out(
    presence: NDArray[np.bool_], share: float, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> NDArray[np.bool_]:
    """Choose items for validation, stratified by label; a label of a single group stays in training.

    Args:
        presence: (items, labels), which labels each item has.
        share: Part of the items to hold out, between 0 and 1.
        seed: Of the draw; the same seed gives the same parts.
        groups: What each item belongs to, such as a patient; a group is never divided. None: each item by itself.

    Returns:
        (items,), true for what is held out; nothing where too few groups are left.

    Raises:
        ValueError: If the share is none.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share that is held out must lie between 0 and 1, not {share!r}")
    keys = list(range(len(presence))) if groups is None else list(groups)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group_of = np.array([numbers[key] for key in keys], dtype=np.int64)
    has = np.zeros((len(numbers), presence.shape[1]), dtype=bool)
    np.logical_or.at(has, group_of, presence)
    free = ~has[:, has.sum(0) == 1].any(1)
    out = np.zeros(len(numbers), dtype=bool)
    if free.sum() > 1:
        out[free] = stratify(has[free].astype(np.int64), [1 - share, share], seed) == 1
    chosen: NDArray[np.bool_] = out[group_of]
    return chosen
