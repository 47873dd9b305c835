from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from dinomed.metrics.bootstrap import areas_of, bootstrap, mean_of, precisions_of, ratio_of, share_of
from dinomed.metrics.ranking import auroc

Array = np.ndarray[Any, Any]


def series(seed: int, patients: int, each: int = 1) -> tuple[Array, Array, Array]:
    """Scores, labels and patients; all series of a patient are the same."""
    random = np.random.default_rng(seed)
    labels = np.arange(patients) % 2
    scores = random.normal(size=patients) + labels
    return np.repeat(scores, each).round(1), np.repeat(labels, each), np.repeat(np.arange(patients), each)


def test_weights_count_as_repeated_cases() -> None:
    scores, labels, _ = series(0, 40)
    random = np.random.default_rng(1)
    weights = random.integers(4, size=(30, 40)).astype(float)
    for statistic, score in ((areas_of, sk.roc_auc_score), (precisions_of, sk.average_precision_score)):
        found = statistic(scores, labels)(weights)
        wanted = [score(labels, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    right = (scores > 0) == labels
    np.testing.assert_allclose(
        share_of(right)(weights), [np.average(right, weights=row) for row in weights], atol=1e-12
    )


def test_draws_without_one_class_have_no_value() -> None:
    weights = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert np.array_equal(np.isnan(areas_of([0.1, 0.9], [0, 1])(weights)), [True, True, False])
    assert np.array_equal(np.isnan(precisions_of([0.1, 0.9], [0, 1])(weights)), [True, False, False])
    mean = mean_of([areas_of([0.1, 0.9], [0, 1]), precisions_of([0.1, 0.9], [0, 1])])(weights)
    assert np.isnan(mean[0])
    assert list(mean[1:]) == [1.0, 1.0]


def test_the_interval_is_that_of_draws_one_by_one() -> None:
    scores, labels, patients = series(2, 30, 3)
    found = bootstrap(areas_of(scores, labels), patients, repeats=400, seed=7).limits
    random = np.random.default_rng(7)
    values = []
    for drawn in random.integers(30, size=(400, 30)):
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])
        values.append(auroc(scores[rows], labels[rows]))
    known = [value for value in values if value is not None]
    assert found == pytest.approx(tuple(np.quantile(known, [0.025, 0.975])), abs=1e-12)


def test_the_seed_decides_and_names_of_patients_do_not() -> None:
    scores, labels, patients = series(3, 30, 2)
    first, again, other = (bootstrap(areas_of(scores, labels), patients, 200, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    named = np.array([f"patient {997 - 13 * patient}" for patient in patients])
    assert bootstrap(areas_of(scores, labels), named, 200, 1) == first


def test_more_series_of_the_same_patients_make_no_narrower_interval() -> None:
    once, five = (bootstrap(areas_of(*each[:2]), each[2]).limits for each in (series(4, 40), series(4, 40, 5)))
    assert once == pytest.approx(five, abs=1e-12)
    scores, labels, _ = series(4, 40, 5)
    as_patients = bootstrap(areas_of(scores, labels), np.arange(200)).limits
    assert as_patients is not None
    assert once is not None
    assert as_patients[1] - as_patients[0] < 0.6 * (once[1] - once[0])


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    truth = 0.7602499389  # of two unit normal distributions one apart
    hits = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        labels = np.arange(120) % 2
        found = bootstrap(areas_of(random.normal(size=120) + labels, labels), np.arange(120), 300, seed).limits
        assert found is not None
        hits += found[0] <= truth <= found[1]
    assert 88 <= hits <= 99


def test_memory_is_bounded_by_drawing_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, patients = series(5, 20)
    whole = bootstrap(areas_of(scores, labels), patients, 100)
    monkeypatch.setattr("dinomed.metrics.bootstrap.WEIGHTS_AT_ONCE", 1)
    shapes = []

    def watched(weights: Array) -> Array:
        shapes.append(weights.shape)
        return areas_of(scores, labels)(weights)

    assert bootstrap(watched, patients, 100) == whole
    assert set(shapes) == {(1, 20)}


def test_too_few_patients_have_no_interval_and_a_reason() -> None:
    one = bootstrap(areas_of([0.1, 0.9], [0, 1]), ["a", "a"])
    assert (one.limits, one.reason) == (None, "1 patient only; two or more can be drawn")
    assert bootstrap(areas_of([], []), []).reason == "0 patients only; two or more can be drawn"
    scores, labels = np.arange(50.0), np.arange(50) == 49  # one positive patient of 50: 0.64 of the draws have it
    rare = bootstrap(areas_of(scores, labels), np.arange(50))
    assert rare.limits is None
    assert rare.reason is not None
    assert rare.reason.startswith("only 6")
    few = np.arange(50) >= 48
    two = bootstrap(areas_of(np.where(np.arange(50) == 48, 10.5, scores), few), np.arange(50))
    assert two.limits is not None
    assert 0.8 * two.repeats <= two.defined < two.repeats
    assert bootstrap(areas_of([0.1, 0.2, 0.3], [0, 0, 0]), [1, 2, 3]).limits is None


def test_a_score_that_is_perfect_in_every_draw_has_no_interval() -> None:
    perfect = bootstrap(areas_of(np.arange(50.0), np.arange(50) >= 20), np.arange(50))
    assert perfect.limits is None
    assert perfect.reason is not None
    assert perfect.reason.startswith("it is 1 in every draw of patients")
    assert bootstrap(share_of(np.zeros(9)), np.arange(9)).limits is None


def test_a_ratio_is_zero_without_a_denominator_and_undefined_without_a_case() -> None:
    called, there = np.array([1, 0, 0]), np.array([1, 1, 0])
    precision = ratio_of(called * there, called, there)
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [0.0, 0.0, 3.0]])
    np.testing.assert_array_equal(precision(weights), [1.0, 0.0, np.nan])


def test_arguments_that_make_no_sense_are_refused() -> None:
    for arguments in ({"repeats": 0}, {"level": 1.0}, {"groups": [[1, 2]]}):
        with pytest.raises(ValueError, match="must be"):
            bootstrap(**{"statistic": areas_of([0, 1], [0, 1]), "groups": [1, 2], **arguments})


def test_a_thousand_draws_of_six_labels_take_seconds() -> None:
    random = np.random.default_rng(0)
    labels = random.random((500, 6)) < 0.2
    scores = random.normal(size=(500, 6)) + labels
    patients = random.integers(400, size=500)
    start = time.process_time()
    each = [areas_of(scores[:, k], labels[:, k]) for k in range(6)]
    for statistic in (*each, mean_of(each), *(precisions_of(scores[:, k], labels[:, k]) for k in range(6))):
        assert bootstrap(statistic, patients).limits is not None
    assert time.process_time() - start < 5.0
