from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

from dinomed.metrics.classification import (
    Confusion,
    auroc,
    average_precision,
    confusion_at,
    macro_mean,
    multiclass_scores,
    precision_recall_curve,
    roc_curve,
    why_undefined,
    wilson_interval,
    youden_threshold,
)

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
CLOSE = {"rel": 1e-12, "abs": 1e-12}


def cases(seed: int, count: int = 200, decimals: int = 1) -> Arrays:
    """Scores in [0, 1], many of them equal, that know a little of their labels."""
    random = np.random.default_rng(seed)
    labels = random.random(count) < 0.3
    scores = np.clip(random.random(count) + 0.2 * labels, 0, 1).round(decimals)
    return scores, labels.astype(int)


def classes(seed: int, count: int = 120, number: int = 7) -> Arrays:
    """Probabilities without equal ones in a row, and labels of which the last class has none."""
    random = np.random.default_rng(seed)
    labels = random.integers(number - 1, size=count)
    probs = random.dirichlet(np.ones(number), size=count)
    probs[np.arange(count), labels] += 0.2
    return probs / probs.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("decimals", [1, 2, 12])
@pytest.mark.parametrize("seed", range(4))
def test_areas_and_curves_are_those_of_scikit_learn(seed: int, decimals: int) -> None:
    scores, labels = cases(seed, decimals=decimals)
    assert auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), **CLOSE)
    assert average_precision(scores, labels) == pytest.approx(sk.average_precision_score(labels, scores), **CLOSE)
    roc, curve = roc_curve(scores, labels), precision_recall_curve(scores, labels)
    assert roc is not None
    assert curve is not None
    false, true, thresholds = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc.false_positive_rate, false, rtol=0, atol=1e-12)
    np.testing.assert_allclose(roc.true_positive_rate, true, rtol=0, atol=1e-12)
    assert np.array_equal(roc.thresholds, thresholds)
    precision, recall, thresholds = sk.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(curve.precision[::-1], precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.recall[::-1], recall, rtol=0, atol=1e-12)
    assert np.array_equal(curve.thresholds[:0:-1], thresholds)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([-3.5, 0.0, 0.25, 7.0, 1e300]), st.booleans()), min_size=1, max_size=12))
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[float, bool]]) -> None:
    positives = [score for score, label in rows if label]
    negatives = [score for score, label in rows if not label]
    found = auroc(*zip(*rows, strict=True))
    if not positives or not negatives:
        assert found is None
        return
    wins = sum((one > other) + 0.5 * (one == other) for one in positives for other in negatives)
    assert found == pytest.approx(wins / (len(positives) * len(negatives)), **CLOSE)


def test_constant_scores_tell_nothing() -> None:
    labels = [1, 0, 0, 1, 0]
    assert auroc([0.4] * 5, labels) == 0.5
    assert average_precision([0.4] * 5, labels) == pytest.approx(0.4)  # the prevalence
    assert youden_threshold([0.4] * 5, labels) is None


@pytest.mark.parametrize(
    ("labels", "reason"), [([], "no case"), ([0, 0], "no positive case"), ([1, 1], "no negative case")]
)
def test_one_class_alone_is_undefined_and_says_why(labels: list[int], reason: str) -> None:
    scores = [0.2, 0.7][: len(labels)]
    assert auroc(scores, labels) is None
    assert roc_curve(scores, labels) is None
    assert youden_threshold(scores, labels) is None
    assert why_undefined(labels) == reason
    positives = reason == "no negative case"
    assert average_precision(scores, labels) == (1.0 if positives else None)
    assert (precision_recall_curve(scores, labels) is None) == (not positives)
    assert why_undefined([0, 1]) is None


@pytest.mark.parametrize("function", [auroc, average_precision, roc_curve, precision_recall_curve, youden_threshold])
def test_bad_rows_are_refused_by_number(function: Any) -> None:
    with pytest.raises(ValueError, match=r"row 2 is nan"):
        function([0.1, 0.2, math.nan, math.nan], [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"row 1 is inf"):
        function([0.1, math.inf], [0, 1])
    with pytest.raises(ValueError, match=r"label of row 1 is 2"):
        function([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match=r"label of row 0 is nan"):
        function([0.1, 0.2], [math.nan, 1])
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        function([0.1, 0.2, 0.3], [0, 1])


def test_macro_mean_skips_what_is_undefined() -> None:
    assert macro_mean([0.5, None, 1.0]) == 0.75
    assert macro_mean([None]) is None
    assert macro_mean([]) is None


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.55, 1.0])
def test_decisions_are_counted_as_scikit_learn_does(threshold: float) -> None:
    scores, labels = cases(3)
    counts = confusion_at(scores, labels, threshold)
    called = scores >= threshold
    assert (counts.tn, counts.fp, counts.fn, counts.tp) == tuple(sk.confusion_matrix(labels, called).ravel())
    assert counts.sensitivity == pytest.approx(sk.recall_score(labels, called), **CLOSE)
    assert counts.specificity == pytest.approx(sk.recall_score(labels, called, pos_label=0), **CLOSE)
    assert counts.precision == pytest.approx(sk.precision_score(labels, called), **CLOSE)
    assert counts.f1 == pytest.approx(sk.f1_score(labels, called), **CLOSE)
    if threshold:
        wanted = sk.precision_score(labels, called, pos_label=0)
        assert counts.negative_predictive_value == pytest.approx(wanted, **CLOSE)


def test_shares_of_nothing_are_none() -> None:
    counts = Confusion(0, 0, 0, 0)
    assert {counts.sensitivity, counts.specificity, counts.precision, counts.negative_predictive_value, counts.f1} == {
        None
    }
    assert Confusion(0, 3, 0, 5).sensitivity is None
    assert Confusion(0, 0, 2, 5).precision is None
    assert Confusion(0, 0, 2, 5).f1 == 0.0
    with pytest.raises(ValueError, match="threshold must be a finite"):
        confusion_at([0.1], [1], math.nan)


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 9), (250, 1000)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_interval_is_that_of_scipy(successes: int, total: int, level: float) -> None:
    wanted = binomtest(successes, total).proportion_ci(level, method="wilson")
    found = wilson_interval(successes, total, level)
    assert found == pytest.approx((wanted.low, wanted.high), **CLOSE)
    assert found is not None
    assert 0 <= found[0] <= successes / total <= found[1] <= 1


def test_wilson_interval_needs_cases() -> None:
    assert wilson_interval(0, 0) is None
    with pytest.raises(ValueError, match="3 of 2 cases"):
        wilson_interval(3, 2)


@pytest.mark.parametrize("seed", range(5))
def test_youden_threshold_is_the_best_of_all_cuts(seed: int) -> None:
    scores, labels = cases(seed, count=60)
    threshold = youden_threshold(scores, labels)
    assert threshold is not None

    def gain(cut: float) -> float:
        counts = confusion_at(scores, labels, cut)
        return (counts.sensitivity or 0) + (counts.specificity or 0)

    cuts = [0.0, *(np.unique(scores) + 0.05)]
    assert gain(threshold) == pytest.approx(max(gain(cut) for cut in cuts), **CLOSE)
    below, above = scores[scores < threshold].max(), scores[scores >= threshold].min()
    assert threshold == pytest.approx((below + above) / 2, **CLOSE)
    assert not [cut for cut in cuts if cut > above and gain(cut) > gain(threshold) - 1e-9]  # the highest of the best


@pytest.mark.parametrize("seed", range(20))
def test_of_equally_good_cuts_the_highest_is_chosen(seed: int) -> None:
    """Few cases with few different scores, so that there are ties, against all cuts one by one."""
    random = np.random.default_rng(seed)
    labels = np.array([0, 1, *random.integers(0, 2, 6)])
    scores = random.integers(0, 5, 8) / 8
    distinct = np.unique(scores)
    cuts = (distinct[:-1] + distinct[1:]) / 2

    def gain(cut: float) -> int:
        counts = confusion_at(scores, labels, cut)
        return (counts.tp * (counts.tn + counts.fp) + counts.tn * (counts.tp + counts.fn)) - labels.sum() * (
            8 - labels.sum()
        )

    best = max(map(gain, cuts), default=0)
    wanted = max((cut for cut in cuts if gain(cut) == best), default=None) if best > 0 else None
    assert youden_threshold(scores, labels) == wanted


def test_a_threshold_between_separated_cases_is_as_far_from_both() -> None:
    assert youden_threshold([0.01, 0.02, 0.3, 0.9], [0, 0, 1, 1]) == pytest.approx(0.16)
    assert youden_threshold([0.1, 0.4, 0.6, 0.9], [0, 1, 0, 1]) == pytest.approx(0.75)  # 0.25 would be as good


def test_youden_threshold_of_scores_that_are_upside_down_is_none() -> None:
    assert youden_threshold([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]) is None


def test_a_cut_between_neighbouring_numbers_parts_them() -> None:
    low = 0.3
    for high in (np.nextafter(low, 1), np.nextafter(np.nextafter(low, 1), 1)):
        threshold = youden_threshold([low, high], [0, 1])
        assert threshold is not None
        assert confusion_at([low, high], [0, 1], threshold) == Confusion(1, 0, 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_scores_are_those_of_scikit_learn(seed: int) -> None:
    probs, labels = classes(seed)
    found, called, shown = multiclass_scores(probs, labels), probs.argmax(axis=1), range(6)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, called), **CLOSE)
    for k, name in ((1, "top1"), (5, "top5")):
        wanted = sk.top_k_accuracy_score(labels, probs, k=k, labels=range(7))
        assert found[name] == pytest.approx(wanted, **CLOSE)
    recalls = sk.recall_score(labels, called, labels=range(6), average=None)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean(), **CLOSE)
    for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        wanted = score(labels, called, labels=shown, average=None, zero_division=0)
        assert [row[name] for row in found["per_class"][:6]] == pytest.approx(list(wanted), **CLOSE)
        assert found[name] == pytest.approx(wanted.mean(), **CLOSE)
    areas = [sk.roc_auc_score(labels == k, probs[:, k]) for k in shown]
    assert found["auroc"] == pytest.approx(np.mean(areas), **CLOSE)
    assert np.array_equal(found["confusion"], sk.confusion_matrix(labels, called, labels=range(7)))


def test_a_class_without_cases_is_null_with_its_reason_and_in_no_mean() -> None:
    row = multiclass_scores(*classes(0))["per_class"][6]
    assert row.pop("predicted") > 0  # it is decided for, and still has no score
    assert row == {
        "class": 6,
        "support": 0,
        "precision": None,
        "recall": None,
        "f1": None,
        "auroc": None,
        "reason": "no positive case",
    }


def test_a_class_that_is_never_predicted_counts_as_no_precision() -> None:
    found = multiclass_scores([[0.9, 0.1], [0.8, 0.2]], [0, 1])
    assert found["per_class"][1]["precision"] is None
    assert found["per_class"][1]["reason"] == "never predicted"
    assert found["precision"] == 0.25


def test_top5_of_fewer_classes_takes_them_all() -> None:
    found = multiclass_scores([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [2, 2])
    assert (found["top1"], found["top5"]) == (0.5, 1.0)
    assert found["auroc"] is None  # class 2 has no negative case
    assert [row["reason"] for row in found["per_class"]] == ["no positive case", "no positive case", "no negative case"]


def test_of_equal_probabilities_the_first_class_counts() -> None:
    labels = [0, 1, 2, 3, 4, 5, 6]
    found = multiclass_scores(np.full((7, 7), 1 / 7), labels)
    assert (found["accuracy"], found["top1"]) == (1 / 7, 1 / 7)
    assert found["top5"] == 5 / 7
    assert found["auroc"] == 0.5


def test_no_case_at_all_gives_no_score() -> None:
    found = multiclass_scores(np.zeros((0, 3)), [])
    assert {found[name] for name in ("accuracy", "top1", "top5", "balanced_accuracy", "f1", "auroc")} == {None}
    assert found["confusion"] == [[0, 0, 0]] * 3


def test_bad_rows_of_classes_are_refused_by_number() -> None:
    with pytest.raises(ValueError, match="row 1 is"):
        multiclass_scores([[0.5, 0.5], [math.nan, 1.0]], [0, 1])
    for label in (2, -1, 0.5):
        with pytest.raises(ValueError, match="label of row 1 is"):
            multiclass_scores([[0.5, 0.5], [0.1, 0.9]], [0, label])
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        multiclass_scores([0.5, 0.5], [0, 1])
