"""Probabilities that mean what they say: Platt scaling, and how far probabilities are from the shares they promise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from dinomed.metrics.ranking import Floats, checked_scores

SMALLEST_SLOPE = 0.01
"""Of a calibration, for one standard deviation of the logits, so that the order of scores is kept."""
NEWTON_STEPS = 100


def fit_platt(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[float, float] | None:
    """Fit sigmoid(slope * logit + offset) to the labels of cases that the network was not trained on.

    The negative log-likelihood of smoothed targets, (positives + 1) / (positives + 2) and 1 / (negatives + 2), is
    minimised by Newton's method in float64; the targets keep the slope finite where the logits part the classes without
    error. The slope stays positive, at least `SMALLEST_SLOPE` over the logits' standard deviation. Where all logits are
    equal it is 1.

    Args:
        logits: (N,) finite numbers.
        labels: (N,) 0 or 1.

    Returns:
        Slope and offset; None without both classes.

    Raises:
        ValueError: If the arrays do not fit each other or a row is no finite number.

    Source: J. Platt, Probabilistic outputs for support vector machines, 1999.
    """
    given, positive = checked_scores(logits, labels)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    targets = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, spread = float(given.mean()), float(given.std())
    if spread <= 1e-12 * max(1.0, abs(centre)):
        return 1.0, _minimise(np.zeros((len(given), 0)), targets, given)[-1]
    # Whatever the scale of the logits, Newton's method sees numbers around 1.
    scaled = (given - centre) / spread
    slope, offset = _minimise(scaled[:, None], targets, np.zeros(len(given)))
    if slope < SMALLEST_SLOPE:  # the problem is convex: its solution under the limit lies on the limit
        slope = SMALLEST_SLOPE
        offset = _minimise(np.zeros((len(given), 0)), targets, slope * scaled)[-1]
    return slope / spread, offset - slope * centre / spread


def _minimise(features: Floats, targets: Floats, fixed: Floats) -> list[float]:
    """Fit a logistic regression of soft targets by Newton's method with halved steps.

    Args:
        features: (N, F).
        targets: (N,) between 0 and 1.
        fixed: (N,) part of the logit that is given.

    Returns:
        F weights and the offset.
    """
    design = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    found = np.zeros(design.shape[1])
    found[-1] = np.log(targets.mean() / (1 - targets.mean())) - fixed.mean()

    def loss(weights: Floats) -> float:
        logits = fixed + design @ weights
        return float(np.sum(np.logaddexp(0.0, logits) - targets * logits))

    def slopes(weights: Floats) -> tuple[Floats, Floats]:
        probs = expit(fixed + design @ weights)
        curvature = (design * (probs * (1 - probs))[:, None]).T @ design
        gradient = design.T @ (probs - targets)
        return gradient, np.linalg.solve(curvature + 1e-12 * np.eye(len(weights)), gradient)

    gradient, step = slopes(found)
    for _ in range(NEWTON_STEPS):
        size, best = 1.0, loss(found)
        while size > 1e-3 and loss(found - size * step) > best - 1e-4 * size * float(gradient @ step):
            size /= 2
        # Close to the minimum the loss is too flat to tell a better point, and the gradient tells it still.
        before = float(np.linalg.norm(gradient))
        size = size if size > 1e-3 else 1.0
        closer = found - size * step
        gradient, step = slopes(closer)
        if float(np.linalg.norm(gradient)) >= before and loss(closer) >= best:
            break
        found = closer
    return [float(weight) for weight in found]


def apply_platt(logits: npt.ArrayLike, slope: float, offset: float) -> Floats:
    """Return calibrated probabilities, sigmoid(slope * logit + offset), in the shape of the logits."""
    calibrated: Floats = expit(slope * np.asarray(logits, dtype=np.float64) + offset)
    return calibrated


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases whose probability lies in one of several equally wide ranges.

    Attributes:
        low: Lower limit, which belongs to the bin below, but for 0.
        high: Upper limit, which belongs to this bin.
        count: Number of cases.
        mean_probability: Of them; None without one.
        share_positive: Of them; None without one.
    """

    low: float
    high: float
    count: int
    mean_probability: float | None
    share_positive: float | None


def reliability(probs: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Compare probabilities with the shares of positive cases, in equally wide bins.

    Args:
        probs: (N,) between 0 and 1.
        labels: (N,) 0 or 1.
        bins: Their number.

    Raises:
        ValueError: If the arrays do not fit each other, a row is no probability, or there is no bin.
    """
    given, positive = _checked_probs(probs, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.searchsorted(edges[1:-1], given)
    counts = np.bincount(index, minlength=bins)
    sums = np.bincount(index, weights=given, minlength=bins)
    hits = np.bincount(index, weights=positive.astype(np.float64), minlength=bins)
    return [
        ReliabilityBin(
            float(edges[k]),
            float(edges[k + 1]),
            int(counts[k]),
            float(sums[k] / counts[k]) if counts[k] else None,
            float(hits[k] / counts[k]) if counts[k] else None,
        )
        for k in range(bins)
    ]


def expected_calibration_error(probs: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 10) -> float | None:
    """Return the mean distance between probability and share of positive cases, over bins weighted by their cases.

    Args:
        probs: (N,) between 0 and 1.
        labels: (N,) 0 or 1.
        bins: Their number; they are equally wide.

    Returns:
        0 (as promised) to 1; None without a case.

    Raises:
        ValueError: As `reliability`.

    Source: M. P. Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
    """
    found = [each for each in reliability(probs, labels, bins) if each.count]
    total = sum(each.count for each in found)
    if not total:
        return None
    gaps = (each.count * abs((each.mean_probability or 0.0) - (each.share_positive or 0.0)) for each in found)
    return float(sum(gaps) / total)


def brier(probs: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Return the mean squared distance between probability and truth; None without a case.

    Args:
        probs: (N,) between 0 and 1.
        labels: (N,) 0 or 1.

    Returns:
        0 (sure and right) to 1 (sure and wrong); always saying the prevalence p gives p (1 - p).

    Raises:
        ValueError: If the arrays do not fit each other or a row is no probability.
    """
    given, positive = _checked_probs(probs, labels)
    return float(np.mean((given - positive) ** 2)) if len(given) else None


def _checked_probs(probs: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    given, positive = checked_scores(probs, labels)
    wrong = np.flatnonzero((given < 0) | (given > 1))
    if len(wrong):
        raise ValueError(f"the probability of row {wrong[0]} is {given[wrong[0]]}; give one between 0 and 1")
    return given, positive
