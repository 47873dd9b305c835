"""Dividing groups into parts so that every label is as frequent in each part as it can be.

Iterative stratification: the rarest label is dealt out first, each of its groups to the part that lacks it most. What
it leaves undone is put right afterwards, because for few groups it gives rare labels to the largest part only.

Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-label Data", ECML PKDD 2011, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Answers = npt.NDArray[np.int64]
ATTEMPTS = 20
"""Draws that are compared where a label would be absent from a part though it has enough groups."""


def stratify(answers: Answers, fractions: Sequence[float], seed: int = 0) -> Answers:
    """Deal groups out to parts.

    A label's positives, and its negatives, are in every part as long as there are as many groups of them as parts and
    the labels do not exclude each other; so no part is empty either.

    Args:
        answers: Whether each group has each label, (G, K) of 0 and 1, in an order that depends on nothing but the
            groups' names.
        fractions: Size of each part; those of 0 stay empty. They sum to 1.
        seed: Of ties and order.

    Returns:
        Part of each group, (G,).
    """
    columns = np.concatenate([answers, 1 - answers, np.ones((len(answers), 1), np.int64)], axis=1)
    shares = np.asarray(fractions, np.float64)
    best: tuple[tuple[float, float], Answers] | None = None
    for attempt in range(ATTEMPTS):
        generator = np.random.default_rng([seed, attempt])
        parts = _deal(columns, shares, generator)
        _cover(columns, shares, parts)
        _level(columns, shares, parts)
        cost = (float(missing(columns, shares, parts).sum()), _distance(columns, shares, parts))
        if best is None or cost < best[0]:
            best = cost, parts
        if cost[0] == 0:
            break
    assert best is not None
    return best[1]


def missing(columns: Answers, shares: npt.NDArray[np.float64], parts: Answers) -> npt.NDArray[np.bool_]:
    """Which columns are absent from which part though they have enough groups, (parts, columns) bool."""
    enough = columns.sum(axis=0) >= (shares > 0).sum()
    absent: npt.NDArray[np.bool_] = (_counts(columns, shares, parts) == 0) & enough & (shares > 0)[:, None]
    return absent


def _counts(columns: Answers, shares: npt.NDArray[np.float64], parts: Answers) -> Answers:
    return np.stack([columns[parts == part].sum(axis=0) for part in range(len(shares))])


def _distance(columns: Answers, shares: npt.NDArray[np.float64], parts: Answers) -> float:
    """How far the parts are from their shares of each column, each relative to the column's size."""
    totals = np.maximum(columns.sum(axis=0), 1)
    return float(((_counts(columns, shares, parts) / totals - shares[:, None]) ** 2).sum())


def _deal(columns: Answers, shares: npt.NDArray[np.float64], generator: np.random.Generator) -> Answers:
    """Deal out the rarest column first, each of its groups to the part that lacks it most."""
    parts = np.full(len(columns), -1, np.int64)
    wanted = shares[:, None] * columns.sum(axis=0)  # (parts, columns); the last column is the part's size
    wanted[shares == 0] = -np.inf
    order = generator.permutation(len(columns))
    while (parts < 0).any():
        left = columns[parts < 0].sum(axis=0)
        rarest = int(np.where(left > 0, left, len(columns) + 1).argmin())
        for group in order[(columns[order, rarest] == 1) & (parts[order] < 0)]:
            lacks = wanted[:, rarest]
            first = np.flatnonzero(lacks == lacks.max())
            size = wanted[first, -1]
            first = first[size == size.max()]
            chosen = int(generator.choice(first))
            parts[group] = chosen
            wanted[chosen] -= columns[group]
    return parts


def _cover(columns: Answers, shares: npt.NDArray[np.float64], parts: Answers) -> None:
    """Move groups, or exchange two, until no part lacks a column that it could have, or no move helps."""
    for _ in range(2 * columns.shape[1] * len(shares)):
        absent = missing(columns, shares, parts)
        if not absent.any():
            return
        before = int(absent.sum())
        targets = np.argwhere(absent)
        sizes = columns.sum(axis=0)
        part, column = min(targets.tolist(), key=lambda pair: (sizes[pair[1]], pair))
        change = _best_change(columns, shares, parts, part, column, before)
        if change is None:
            return
        for group, place in change:
            parts[group] = place


def _best_change(
    columns: Answers, shares: npt.NDArray[np.float64], parts: Answers, part: int, column: int, before: int
) -> list[tuple[int, int]] | None:
    """The move or exchange that brings a column into a part, leaves least undone and disturbs least."""
    givers = [int(group) for group in np.flatnonzero((columns[:, column] == 1) & (parts != part))]
    best: tuple[tuple[float, float], list[tuple[int, int]]] | None = None
    for exchange in (False, True):
        for group in _one_of_each(columns, parts, givers):
            back = [int(other) for other in np.flatnonzero((parts == part) & (columns[:, column] == 0))]
            others = _one_of_each(columns, parts, back) if exchange else [None]
            for other in others:
                change = [(group, part)] + ([] if other is None else [(other, int(parts[group]))])
                trial = parts.copy()
                for each, place in change:
                    trial[each] = place
                cost = (float(missing(columns, shares, trial).sum()), _distance(columns, shares, trial))
                if cost[0] < before and (best is None or cost < best[0]):
                    best = cost, change
    return None if best is None else best[1]


def _one_of_each(columns: Answers, parts: Answers, groups: Sequence[int]) -> list[int]:
    """One group of each kind: those of one part with the same answers can stand for each other."""
    kinds: dict[tuple[int, bytes], int] = {}
    for group in groups:
        kinds.setdefault((int(parts[group]), columns[group].tobytes()), group)
    return list(kinds.values())


def _level(columns: Answers, shares: npt.NDArray[np.float64], parts: Answers) -> None:
    """Move groups from parts that are too large to those that are too small, as long as no column is lost by it."""
    for _ in range(len(columns)):
        surplus = np.bincount(parts, minlength=len(shares)) - shares * len(columns)
        source, target = int(surplus.argmax()), int(np.where(shares > 0, surplus, np.inf).argmin())
        if surplus[source] - surplus[target] <= 1.0 + 1e-9:
            return
        before = int(missing(columns, shares, parts).sum())
        best: tuple[float, int] | None = None
        for group in _one_of_each(columns, parts, [int(each) for each in np.flatnonzero(parts == source)]):
            trial = parts.copy()
            trial[group] = target
            if missing(columns, shares, trial).sum() > before:
                continue
            cost = _distance(columns, shares, trial)
            if best is None or cost < best[0]:
                best = cost, group
        if best is None:
            return
        parts[best[1]] = target
