from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.calibration import _SigmoidCalibration, calibration_curve

from dinomed.metrics.calibration import (
    SMALLEST_SLOPE,
    apply_platt,
    brier,
    expected_calibration_error,
    fit_platt,
    reliability,
)


def overconfident(seed: int, count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Logits three times too large and shifted: the truth follows sigmoid((logit - 1) / 3)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0.0, 4.0, size=count)
    return logits, (random.random(count) < expit((logits - 1) / 3)).astype(int)


def gradient(logits: np.ndarray, labels: np.ndarray, slope: float, offset: float) -> np.ndarray:
    positives, negatives = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    residual = apply_platt(logits, slope, offset) - targets
    return np.array([residual @ logits, residual.sum()]) / len(logits)


@pytest.mark.parametrize("seed", range(3))
def test_platt_is_that_of_scikit_learn(seed: int) -> None:
    logits, labels = overconfident(seed, 400)
    found = fit_platt(logits, labels)
    assert found is not None
    theirs = _SigmoidCalibration().fit(logits, labels)
    assert found == pytest.approx((-theirs.a_, -theirs.b_), abs=1e-4)  # theirs stops early
    assert np.abs(gradient(logits, labels, *found)).max() < 1e-12


def test_platt_finds_what_the_truth_follows() -> None:
    found = fit_platt(*overconfident(5, 40000))
    assert found == pytest.approx((1 / 3, -1 / 3), abs=0.02)


def test_calibration_lowers_the_error_on_other_cases() -> None:
    logits, labels = overconfident(1)
    found = fit_platt(logits[:1500], labels[:1500])
    assert found is not None
    before = expected_calibration_error(expit(logits[1500:]), labels[1500:])
    after = expected_calibration_error(apply_platt(logits[1500:], *found), labels[1500:])
    assert before is not None
    assert after is not None
    assert after < 0.3 * before


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_separable_logits_of_any_scale_stay_finite_and_smoothed(scale: float) -> None:
    logits, labels = scale * np.array([-2.0, -1.0, 1.0, 2.0]) + 5 * scale, np.array([0, 0, 1, 1])
    found = fit_platt(logits, labels)
    assert found is not None
    assert all(map(math.isfinite, found))
    probs = apply_platt(logits, *found)
    assert np.all(np.diff(probs) > 0)
    assert 0.05 < probs[0] < probs[-1] < 0.95  # four cases do not make certainty


def test_the_slope_stays_positive_so_that_the_order_stays() -> None:
    logits, labels = np.array([3.0, 2.0, 1.0, -1.0, -2.0]), np.array([0, 0, 0, 1, 1])
    found = fit_platt(logits, labels)
    assert found is not None
    assert found[0] == pytest.approx(SMALLEST_SLOPE / logits.std())
    assert np.all(np.diff(apply_platt(logits, *found)) < 0)
    assert abs(gradient(logits, labels, *found)[1]) < 1e-9  # the offset is the best one for that slope


def test_equal_logits_get_the_smoothed_prevalence() -> None:
    found = fit_platt([7.0] * 10, [1] * 3 + [0] * 7)
    assert found is not None
    assert found[0] == 1.0
    assert apply_platt(7.0, *found) == pytest.approx((3 * 4 / 5 + 7 * 1 / 9) / 10, abs=1e-9)


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 1, 1]])
def test_platt_needs_both_classes(labels: list[int]) -> None:
    assert fit_platt([0.1, 0.2, 0.3][: len(labels)], labels) is None


def test_extreme_logits_do_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert list(apply_platt([-1e4, 0.0, 1e4], 2.0, 0.0)) == [0.0, 0.5, 1.0]
        found = fit_platt([-1e8, -1e8, 1e8, 1e8], [0, 1, 0, 1])
    assert found is not None
    assert found[0] > 0


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_reliability_is_that_of_scikit_learn(bins: int) -> None:
    random = np.random.default_rng(0)
    probs = random.random(500).round(1)  # most lie on an edge of ten bins
    labels = (random.random(500) < probs).astype(int)
    found = [each for each in reliability(probs, labels, bins) if each.count]
    shares, means = calibration_curve(labels, probs, n_bins=bins)
    np.testing.assert_allclose([each.share_positive for each in found], shares, atol=1e-12)
    np.testing.assert_allclose([each.mean_probability for each in found], means, atol=1e-12)
    assert sum(each.count for each in found) == 500
    weights = np.array([each.count for each in found]) / 500
    wanted = float(weights @ np.abs(np.array(shares) - np.array(means)))
    assert expected_calibration_error(probs, labels, bins) == pytest.approx(wanted, abs=1e-12)


def test_bins_cover_all_probabilities_and_may_be_empty() -> None:
    found = reliability([0.0, 0.1, 1.0], [0, 1, 1])
    assert [each.count for each in found] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert (found[0].low, found[0].high, found[-1].high) == (0.0, 0.1, 1.0)
    assert (found[0].mean_probability, found[0].share_positive) == (0.05, 0.5)
    assert (found[5].mean_probability, found[5].share_positive) == (None, None)


def test_brier_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    probs, labels = random.random(99), random.integers(2, size=99)
    assert brier(probs, labels) == pytest.approx(sk.brier_score_loss(labels, probs), rel=1e-12)
    assert brier([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0.25 * 0.75)


def test_no_case_has_no_calibration() -> None:
    assert brier([], []) is None
    assert expected_calibration_error([], []) is None
    assert {each.count for each in reliability([], [])} == {0}


def test_what_is_no_probability_is_refused_by_number() -> None:
    for function in (brier, expected_calibration_error, reliability):
        with pytest.raises(ValueError, match=r"row 1 is 1\.2"):
            function([0.5, 1.2], [0, 1])
        with pytest.raises(ValueError, match="row 0 is nan"):
            function([math.nan, 0.2], [0, 1])
    with pytest.raises(ValueError, match="row 0 is nan"):
        fit_platt([math.nan, 0.2], [0, 1])
    with pytest.raises(ValueError, match="bins"):
        reliability([0.5], [1], 0)
