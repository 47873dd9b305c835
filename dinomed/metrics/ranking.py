"""How well scores rank cases of one label: areas under curves, and the curves themselves.

Everything is computed from the distinct scores, so that equal scores count as what they are: a tie. What is undefined,
as an AUROC without a negative case, is None, never NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]


def checked_scores(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Booleans]:
    """Return scores and labels as arrays that fit each other.

    Args:
        scores: (N,), any finite numbers, more is more of the label.
        labels: (N,), 1 (or True) where a case has the label, 0 where it has not.

    Raises:
        ValueError: If the shapes differ, or a row holds no finite score or a label that is neither 0 nor 1.
    """
    given = np.asarray(scores, dtype=np.float64)
    wanted = np.asarray(labels)
    if given.ndim != 1 or given.shape != wanted.shape:
        raise ValueError(f"scores and labels must both be (N,), not {given.shape} and {wanted.shape}")
    refuse_not_finite(given)
    positive = wanted == 1
    wrong = np.flatnonzero(~positive & (wanted != 0))
    if len(wrong):
        raise ValueError(f"the label of row {wrong[0]} is {wanted[wrong[0]]}; give 0 or 1")
    return given, positive


def refuse_not_finite(scores: Floats) -> None:
    """Refuse scores (N,) or (N, K) that hold NaN or an infinity.

    Raises:
        ValueError: If they do; names the first such row.
    """
    finite = np.isfinite(scores)
    rows = np.flatnonzero(~(finite.all(axis=1) if finite.ndim > 1 else finite))
    if len(rows):
        raise ValueError(
            f"the score of row {rows[0]} is {scores[rows[0]].tolist()} ({len(rows)} such rows); give finite numbers"
        )


def why_undefined(labels: npt.ArrayLike) -> str | None:
    """Say why labels (N,) leave an AUROC undefined: None where they do not."""
    positive = np.asarray(labels) == 1
    if not positive.size:
        return "no case"
    if not positive.any():
        return "no positive case"
    return "no negative case" if positive.all() else None


class RankedScores:
    """Scores of one label in order, ready to be weighted many times over, as a bootstrap does.

    Args:
        scores: (N,) finite numbers.
        labels: (N,) 0 or 1.

    Raises:
        ValueError: As `checked_scores`.
    """

    def __init__(self, scores: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        given, positive = checked_scores(scores, labels)
        self._order = np.argsort(given, kind="stable")
        ordered = given[self._order]
        self.distinct = ordered[np.flatnonzero(np.diff(ordered, prepend=-np.inf))]
        """The distinct scores, ascending."""
        self._starts = np.searchsorted(ordered, self.distinct)
        self._positive = positive[self._order].astype(np.float64)

    def counts(self, weights: Floats | None = None) -> tuple[Floats, Floats]:
        """Count the positive and the negative cases of each distinct score.

        Args:
            weights: (R, N), how often each case counts in each of R draws; None for once.

        Returns:
            Two arrays (R, distinct scores).
        """
        if not len(self._order):
            empty = np.zeros((1 if weights is None else len(weights), 0))
            return empty, empty
        ordered = np.ones((1, len(self._order))) if weights is None else np.asarray(weights, np.float64)[:, self._order]
        positives = np.add.reduceat(ordered * self._positive, self._starts, axis=1)
        return positives, np.add.reduceat(ordered, self._starts, axis=1) - positives

    def aurocs(self, weights: Floats | None = None) -> Floats:
        """Return the area under the ROC curve of each draw: (R,), NaN where a draw has one class only.

        It is the probability that a positive case has a higher score than a negative one, a tie counting one half.
        """
        positives, negatives = self.counts(weights)
        below = np.cumsum(negatives, axis=1) - negatives
        wins = (positives * (below + 0.5 * negatives)).sum(axis=1)
        return _divide(wins, positives.sum(axis=1) * negatives.sum(axis=1))

    def average_precisions(self, weights: Floats | None = None) -> Floats:
        """Return the average precision of each draw: (R,), NaN where a draw has no positive case.

        The precision at each distinct score, weighted by the recall that it adds; nothing is interpolated.
        """
        positives, negatives = (counts[:, ::-1] for counts in self.counts(weights))
        found = np.cumsum(positives, axis=1)
        called = found + np.cumsum(negatives, axis=1)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return _divide((positives * precision).sum(axis=1), positives.sum(axis=1))


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Return the area under the ROC curve, ties counting one half; None without both classes.

    Args:
        scores: (N,) finite numbers.
        labels: (N,) 0 or 1.

    Raises:
        ValueError: As `checked_scores`.
    """
    return _number(RankedScores(scores, labels).aurocs()[0])


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Return the average precision, whose value for scores without meaning is the prevalence; None without positives.

    Args:
        scores: (N,) finite numbers.
        labels: (N,) 0 or 1.

    Raises:
        ValueError: As `checked_scores`.
    """
    return _number(RankedScores(scores, labels).average_precisions()[0])


@dataclass(frozen=True)
class RocCurve:
    """Corners of a ROC curve, from the highest threshold to the lowest.

    Attributes:
        false_positive_rate: (T + 1,), from 0 to 1; 1 - specificity.
        true_positive_rate: (T + 1,), from 0 to 1; the sensitivity.
        thresholds: (T + 1,), descending; at or above it a case counts as positive. The first is infinite.
    """

    false_positive_rate: Floats
    true_positive_rate: Floats
    thresholds: Floats


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Points of a precision-recall curve, from the highest threshold to the lowest.

    Attributes:
        precision: (T + 1,); the first, where no case is called positive, is 1 by convention.
        recall: (T + 1,), from 0 to 1.
        thresholds: (T + 1,), descending; the first is infinite.
    """

    precision: Floats
    recall: Floats
    thresholds: Floats


def roc_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> RocCurve | None:
    """Return the ROC curve with a corner for each distinct score; None without both classes.

    Args:
        scores: (N,) finite numbers.
        labels: (N,) 0 or 1.

    Raises:
        ValueError: As `checked_scores`.
    """
    found, false, thresholds = _cumulated(RankedScores(scores, labels))
    if not found[-1] or not false[-1]:
        return None
    return RocCurve(false / false[-1], found / found[-1], thresholds)


def precision_recall_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> PrecisionRecallCurve | None:
    """Return the precision-recall curve with a point for each distinct score; None without positives.

    Args:
        scores: (N,) finite numbers.
        labels: (N,) 0 or 1.

    Raises:
        ValueError: As `checked_scores`.
    """
    found, false, thresholds = _cumulated(RankedScores(scores, labels))
    if not found[-1]:
        return None
    called = found + false
    precision = np.divide(found, called, out=np.ones_like(found), where=called > 0)
    return PrecisionRecallCurve(precision, found / found[-1], thresholds)


def macro_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean over labels of those values that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _cumulated(ranked: RankedScores) -> tuple[Floats, Floats, Floats]:
    """True and false positives at each threshold, descending, and the thresholds; the first calls nothing positive."""
    positives, negatives = (np.cumsum(counts[0, ::-1]) for counts in ranked.counts())
    nothing: Floats = np.zeros(1)
    return (
        np.concatenate([nothing, positives]),
        np.concatenate([nothing, negatives]),
        np.concatenate([[np.inf], ranked.distinct[::-1]]),
    )


def _divide(values: Floats, by: Floats) -> Floats:
    return np.divide(values, by, out=np.full_like(values, np.nan), where=by > 0)


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
