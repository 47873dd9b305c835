"""How far a scan's embedding lies from known ones."""

from __future__ import annotations

import numpy as np
import pytest

from dinomed.data.familiarity import distance_to_known, measure_familiarity


def test_known_scans_lie_within_the_limit_and_one_of_them_on_it():
    generator = np.random.default_rng(0)
    bags = [generator.normal(k, 1, (5 + k, 8)).astype(np.float32) for k in range(6)]
    known = measure_familiarity(bags)
    distances = [distance_to_known(known, bag) for bag in bags]
    assert max(distances) == known["limit"]
    assert known["scans"] == 6
    assert distance_to_known(known, bags[0] + 50) > known["limit"]


def test_the_distance_is_the_root_mean_square_of_z_scores():
    known = {"mean": [1.0, 2.0], "std": [2.0, 0.5]}
    bag = np.array([[5.0, 2.0], [1.0, 3.0]], np.float32)  # mean (3, 2.5): z-scores 1 and 1
    assert distance_to_known(known, bag) == pytest.approx(1.0)


def test_a_channel_without_spread_does_not_divide_by_zero():
    known = measure_familiarity([np.ones((3, 2), np.float32)] * 2)
    assert known["limit"] == 0
    assert np.isfinite(distance_to_known(known, np.zeros((1, 2), np.float32)))
