"""Scores of classified cases: decisions at a threshold, thresholds, and several classes of which one is right.

Cases have no weights, arrays come in as NumPy arrays or what becomes one, and what is undefined is None, never NaN.
The scores that need no decision are in `dinomed.metrics.ranking` and can be imported from here too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from dinomed.metrics.ranking import (
    PrecisionRecallCurve,
    RankedScores,
    RocCurve,
    auroc,
    average_precision,
    checked_scores,
    macro_mean,
    precision_recall_curve,
    refuse_not_finite,
    roc_curve,
    why_undefined,
)

__all__ = [
    "Confusion",
    "PrecisionRecallCurve",
    "RocCurve",
    "auroc",
    "average_precision",
    "confusion_at",
    "macro_mean",
    "multiclass_confusion",
    "multiclass_scores",
    "precision_recall_curve",
    "roc_curve",
    "why_undefined",
    "wilson_interval",
    "youden_threshold",
]

YOUDEN = "Youden's index; midway between two neighbouring probabilities, of equally good cuts the highest"
"""How `youden_threshold` chooses, for those who read what was chosen."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Confusion:
    """Counts of the cases of one label by decision and truth.

    Attributes:
        tp: Called positive, and are.
        fp: Called positive, and are not.
        fn: Called negative, but are positive.
        tn: Called negative, and are.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def sensitivity(self) -> float | None:
        """Share of the positive cases that were found (recall); None without one."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float | None:
        """Share of the negative cases that were called so; None without one."""
        return _share(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> float | None:
        """Share of the cases called positive that are (positive predictive value); None where none was."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def negative_predictive_value(self) -> float | None:
        """Share of the cases called negative that are; None where none was."""
        return _share(self.tn, self.tn + self.fn)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and sensitivity; None where no case is or was called positive."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def confusion_at(probs: npt.ArrayLike, labels: npt.ArrayLike, threshold: float) -> Confusion:
    """Count decisions: a case is called positive where its probability is at or above the threshold.

    Args:
        probs: (N,) finite numbers.
        labels: (N,) 0 or 1.
        threshold: On the scale of `probs`.

    Raises:
        ValueError: If the arrays do not fit each other, a row is no finite number, or the threshold is none.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, not {threshold}")
    given, positive = checked_scores(probs, labels)
    called = given >= threshold
    pairs = ((called, positive), (called, ~positive), (~called, positive), (~called, ~positive))
    return Confusion(*(int((one & other).sum()) for one, other in pairs))


def wilson_interval(successes: int, total: int, level: float = 0.95) -> tuple[float, float] | None:
    """Return the Wilson score interval of a share, which holds for few cases and for shares of 0 and 1 too.

    Args:
        successes: 0 to `total`.
        total: Number of cases, which must be independent of each other.
        level: Of confidence, between 0 and 1.

    Returns:
        Lower and upper limit; None without a case.

    Raises:
        ValueError: If the numbers do not fit each other.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    """
    if not 0 <= successes <= total or not 0 < level < 1:
        raise ValueError(f"{successes} of {total} cases at level {level} make no interval")
    if not total:
        return None
    z = float(ndtri(0.5 + level / 2))
    share = successes / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At both ends of the scale one limit is exactly the share, which rounding would miss.
    low = 0.0 if successes == 0 else (middle - half) / scale
    return low, 1.0 if successes == total else (middle + half) / scale


def youden_threshold(probs: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Return the cut that maximises sensitivity + specificity, midway between two neighbouring probabilities.

    Between two neighbouring probabilities all cuts are the same to these cases, and the middle is the furthest from
    both. Of several equally good cuts it is the highest, the one with the fewest false alarms.

    Args:
        probs: (N,) finite numbers.
        labels: (N,) 0 or 1.

    Returns:
        The threshold; None without both classes, and where no cut is better than calling all cases the same.

    Raises:
        ValueError: If the arrays do not fit each other or a row is no finite number.

    Source: W. J. Youden, Index for rating diagnostic tests, Cancer 3, 1950.
    """
    ranked = RankedScores(probs, labels)
    positives, negatives = (counts[0] for counts in ranked.counts())
    if not positives.sum() or not negatives.sum():
        return None
    # In whole cases, so that equal cuts are equal: (sensitivity + specificity - 1) x positives x negatives.
    missed, spared = np.cumsum(positives)[:-1], np.cumsum(negatives)[:-1]
    gain = spared * positives.sum() - missed * negatives.sum()
    if not len(gain) or gain.max() <= 0:
        return None
    return float(_cuts(ranked.distinct)[int(np.flatnonzero(gain == gain.max())[-1])])


def _cuts(distinct: Floats) -> Floats:
    """Middles between ascending scores; the upper one where two are so close that no number lies between."""
    low, high = distinct[:-1], distinct[1:]
    middle = low + (high - low) / 2
    return np.where(middle > low, middle, high)


def multiclass_scores(probs: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """Score cases that have exactly one of several classes.

    Of equal probabilities that of the first class counts as the highest.

    Args:
        probs: (N, K) finite numbers, more is more of the class.
        labels: (N,) number of the right class.

    Returns:
        "accuracy", "top1" (the same), "top5" (of the min(5, K) most probable classes one is right),
        "balanced_accuracy" (mean recall), means over classes "precision", "recall", "f1", "auroc" (one class against
        the rest), "confusion" (K rows of the truth, K columns of the decision), and "per_class": for each class its
        number "class", cases "support", decisions "predicted", the four scores, and "reason" why one is missing.
        A class that no case has is None and in no mean. One that no decision names has no precision of its own, and
        counts as 0 in the mean. None, too, what no case speaks of.

    Raises:
        ValueError: If the arrays do not fit each other, a row is no finite number or its label is out of range.
    """
    scores, classes = checked_classes(probs, labels)
    confusion = multiclass_confusion(scores, classes)
    rows = [_class_row(scores, classes, confusion, index) for index in range(scores.shape[1])]
    shown = [row for row in rows if row["support"]]
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = order == classes[:, None]
    recall = macro_mean(row["recall"] for row in shown)
    return {
        "accuracy": _share(int(hits[:, :1].sum()), len(classes)),
        "top1": _share(int(hits[:, :1].sum()), len(classes)),
        "top5": _share(int(hits[:, :5].sum()), len(classes)),
        "balanced_accuracy": recall,
        "precision": macro_mean(row["precision"] or 0.0 for row in shown),
        "recall": recall,
        "f1": macro_mean(row["f1"] for row in shown),
        "auroc": macro_mean(row["auroc"] for row in shown),
        "confusion": confusion.tolist(),
        "per_class": rows,
    }


def checked_classes(probs: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Integers]:
    """Return probabilities (N, K) and class numbers (N,) as arrays that fit each other.

    Raises:
        ValueError: If they do not, a row is no finite number or its label is out of range.
    """
    scores, wanted = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or not scores.shape[1] or wanted.shape != scores.shape[:1]:
        raise ValueError(f"probs must be (N, K) and labels (N,), not {scores.shape} and {wanted.shape}")
    refuse_not_finite(scores)
    wrong = np.flatnonzero((wanted != np.floor(wanted)) | (wanted < 0) | (wanted >= scores.shape[1]))
    if len(wrong):
        raise ValueError(f"the label of row {wrong[0]} is {wanted[wrong[0]]}; give a class 0 to {scores.shape[1] - 1}")
    return scores, wanted.astype(np.int64)


def multiclass_confusion(probs: npt.ArrayLike, labels: npt.ArrayLike) -> Integers:
    """Count cases (K, K) by right class (rows) and most probable one (columns).

    Args:
        probs: (N, K) finite numbers.
        labels: (N,) number of the right class.

    Raises:
        ValueError: As `checked_classes`.
    """
    scores, classes = checked_classes(probs, labels)
    count = scores.shape[1]
    pairs = classes * count + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=count * count).reshape(count, count).astype(np.int64)


def _class_row(scores: Floats, classes: Integers, confusion: Integers, index: int) -> dict[str, Any]:
    found, support, predicted = (
        int(part.sum()) for part in (confusion[index, index], confusion[index], confusion[:, index])
    )
    counts = Confusion(found, predicted - found, support - found, len(classes) - support - predicted + found)
    reason = why_undefined(classes == index)
    if reason is None and not predicted:
        reason = "never predicted"
    return {
        "class": index,
        "support": support,
        "predicted": predicted,
        "precision": counts.precision if support else None,
        "recall": counts.sensitivity,
        "f1": counts.f1 if support else None,
        "auroc": auroc(scores[:, index], classes == index),
        "reason": reason,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
