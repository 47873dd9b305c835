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
    interval, and every statistic sees the same draws. Where every draw has the same value, as a perfect score has,
    there is no interval: draws know nothing of errors that were not met.

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
    if found.max() - found.min() < 1e-12:
        reason = f"it is {found[0]:.3g} in every draw of patients, which tells nothing of how sure it is"
        return Bootstrap(None, reason, len(found), repeats)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Bootstrap((float(low), float(high)), None, len(found), repeats)


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
    return ratio_of(hits * counted, counted, counted)


def ratio_of(upper: npt.ArrayLike, lower: npt.ArrayLike, among: npt.ArrayLike) -> Statistic:
    """Return the statistic sum of `upper` over sum of `lower` of cases (N,), 0 where the latter is 0.

    It is undefined in draws without a case of `among` (1 or 0).
    """
    above, below, counted = (np.asarray(each, dtype=np.float64) for each in (upper, lower, among))

    def ratio(weights: Floats) -> Floats:
        totals = weights @ below
        value = np.divide(weights @ above, totals, out=np.zeros_like(totals), where=totals > 0)
        return np.where(weights @ counted > 0, value, np.nan)

    return ratio
