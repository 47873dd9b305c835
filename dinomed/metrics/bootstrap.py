"""Confidence intervals by drawing patients anew: cases of one patient are alike, so patients are drawn, not cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dinomed.metrics.ranking import Floats, RankedScores

Statistic = Callable[[Floats], Floats]
"""From weights (R, N), how often each of N cases was drawn in each of R draws, to (R,) values; NaN where undefined."""

LEAST_DEFINED = 0.8
"""Share of the draws that must have a value: with one positive patient it is 0.63, with two 0.86."""
WEIGHTS_AT_ONCE = 2**21
"""Weights that are held at a time, 16 MB."""


@dataclass(frozen=True)
class Bootstrap:
    """Outcome of a bootstrap.

    Attributes:
        limits: Lower and upper limit; None where there is no interval.
        reason: Why there is none; None where there is one.
        defined: Draws that had a value.
        repeats: All draws.
    """

    limits: tuple[float, float] | None
    reason: str | None
    defined: int
    repeats: int


def bootstrap(
    statistic: Statistic, groups: npt.ArrayLike, repeats: int = 1000, seed: int = 0, level: float = 0.95
) -> Bootstrap:
    """Return the percentile interval of a statistic over draws of as many patients as there are, with replacement.

    A patient who is drawn twice counts with all cases twice. The same seed and the same order of cases give the same
    interval, and every statistic sees the same draws.

    Args:
        statistic: For one label `areas_of` and `precisions_of` make it, for the mean over labels `mean_of`.
        groups: (N,) the patient of each case, any names.
        repeats: Number of draws.
        seed: Of the draws.
        level: Of confidence, between 0 and 1.

    Raises:
        ValueError: If the groups are not (N,), there is no draw, or the level is out of range.
    """
    names = np.asarray(groups)
    if names.ndim != 1 or repeats < 1 or not 0 < level < 1:
        given = f"groups {names.shape}, {repeats} repeats and level {level}"
        raise ValueError(f"{given} must be (N,), at least 1, and between 0 and 1")
    _, first, group_of = np.unique(names, return_index=True, return_inverse=True)
    patients = len(first)
    if patients < 2:
        reason = f"{patients} patient{'' if patients == 1 else 's'} only; two or more can be drawn"
        return Bootstrap(None, reason, 0, repeats)
    group_of = np.argsort(np.argsort(first))[group_of]  # numbered as they come, whatever their names
    random = np.random.default_rng(seed)
    values = []
    at_once = max(1, WEIGHTS_AT_ONCE // len(names))
    for start in range(0, repeats, at_once):
        count = min(at_once, repeats - start)
        drawn = random.integers(patients, size=(count, patients)) + patients * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * patients).reshape(count, patients)
        values.append(statistic(times[:, group_of].astype(np.float64)))
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    if len(found) < LEAST_DEFINED * repeats:
        reason = f"only {len(found)} of {repeats} draws of patients have a value: too few patients of one kind"
        return Bootstrap(None, reason, len(found), repeats)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Bootstrap((float(low), float(high)), None, len(found), repeats)


def bootstrap_interval(
    statistic: Statistic, groups: npt.ArrayLike, repeats: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the limits of `bootstrap`, which also knows why there are none."""
    return bootstrap(statistic, groups, repeats, seed, level).limits


def areas_of(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Statistic:
    """Return the statistic AUROC of scores (N,) and labels (N,)."""
    return RankedScores(scores, labels).aurocs


def precisions_of(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Statistic:
    """Return the statistic average precision of scores (N,) and labels (N,)."""
    return RankedScores(scores, labels).average_precisions


def mean_of(statistics: list[Statistic]) -> Statistic:
    """Return the mean of statistics as one: of each draw, over those that are defined in it."""

    def mean(weights: Floats) -> Floats:
        values = np.stack([each(weights) for each in statistics])
        known = ~np.isnan(values)
        counts = known.sum(axis=0)
        sums = np.where(known, values, 0.0).sum(axis=0)
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    return mean


def share_of(right: npt.ArrayLike, among: npt.ArrayLike | None = None) -> Statistic:
    """Return the statistic share of cases (N,) that are right (1 or 0), among some of the cases (1 or 0) or all."""
    hits = np.asarray(right, dtype=np.float64)
    counted = np.ones(len(hits)) if among is None else np.asarray(among, dtype=np.float64)

    def share(weights: Floats) -> Floats:
        totals = weights @ counted
        return np.divide(weights @ (hits * counted), totals, out=np.full_like(totals, np.nan), where=totals > 0)

    return share
