"""Surface metrics against Google DeepMind's surface-distance, SimpleITK and brute force."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances
from torch import Tensor

from dinomed.metrics import hausdorff_distances, surface_dice

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*namespace is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("error::FutureWarning:dinomed"),
]
grids = st.sampled_from([((11, 9, 8), (0.7, 1.3, 2.5)), ((6, 7, 9), (1.0, 1.0, 1.0)), ((14, 17), (0.6, 1.9))])


def smooth_maps(seed: int, shape: tuple[int, ...], classes: int = 3) -> tuple[Tensor, Tensor]:
    """Two label maps of blobs that overlap in good part."""
    generator = np.random.default_rng(seed)
    scores = gaussian_filter(generator.normal(size=(classes, *shape)), (0, *[1.5] * len(shape)))
    noise = gaussian_filter(generator.normal(size=(classes, *shape)), (0, *[1.0] * len(shape)))
    noise *= 0.7 * scores.std() / noise.std()
    return torch.from_numpy((scores + noise).argmax(0)), torch.from_numpy(scores.argmax(0))


def surface_points(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    return np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing_mm)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 999), grid=grids, tolerance_mm=st.sampled_from([0.33, 1.17, 2.9]))
def test_surface_dice_agrees_with_surface_distance(
    seed: int, grid: tuple[tuple[int, ...], tuple[float, ...]], tolerance_mm: float
) -> None:
    shape, spacing_mm = grid
    predicted, reference = smooth_maps(seed, shape)
    tolerances = [tolerance_mm, 2 * tolerance_mm, 0.5 * tolerance_mm]
    scores = surface_dice(predicted, reference, 3, spacing_mm, tolerances, include_background=True)
    for index in range(3):
        masks = (reference == index).numpy(), (predicted == index).numpy()
        if masks[0].any() or masks[1].any():
            distances = compute_surface_distances(*masks, spacing_mm)
            expected = compute_surface_dice_at_tolerance(distances, tolerances[index])
            assert float(scores[index]) == pytest.approx(expected, abs=1e-6)
        else:
            assert math.isnan(scores[index])


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 999), grid=grids, percentile=st.sampled_from([50.0, 95.0, 100.0]))
def test_hausdorff_distance_agrees_with_all_pairs_of_surface_points(
    seed: int, grid: tuple[tuple[int, ...], tuple[float, ...]], percentile: float
) -> None:
    shape, spacing_mm = grid
    predicted, reference = smooth_maps(seed, shape)
    found = hausdorff_distances(predicted, reference, 3, spacing_mm, percentile, include_background=True)
    for index in range(3):
        points = [surface_points((labels == index).numpy(), spacing_mm) for labels in (predicted, reference)]
        if len(points[0]) and len(points[1]):
            pairs = cdist(*points)
            expected = max(np.percentile(pairs.min(1), percentile), np.percentile(pairs.min(0), percentile))
            assert float(found[index]) == pytest.approx(expected, rel=1e-6)
        elif len(points[0]) or len(points[1]):
            assert float(found[index]) == math.inf
        else:
            assert math.isnan(found[index])


@pytest.mark.parametrize(("shape", "spacing_mm"), [((11, 9, 8), (0.7, 1.3, 2.5)), ((14, 17), (0.6, 1.9))])
def test_whole_hausdorff_distance_agrees_with_simpleitk(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
    predicted, reference = smooth_maps(0, shape)
    found = hausdorff_distances(predicted, reference, 3, spacing_mm, 100.0, include_background=True)
    for index in range(3):
        images = []
        for labels in (predicted, reference):
            mask = (labels == index).numpy()
            images.append(SimpleITK.GetImageFromArray((mask & ~binary_erosion(mask)).astype(np.uint8)))
            images[-1].SetSpacing(spacing_mm[::-1])
        measure = SimpleITK.HausdorffDistanceImageFilter()
        measure.Execute(*images)
        assert float(found[index]) == pytest.approx(measure.GetHausdorffDistance(), rel=1e-5)


def test_shifted_box_is_off_by_its_shift_in_millimetres() -> None:
    reference = torch.zeros(20, 20, 20, dtype=torch.uint8)
    reference[4:12, 5:13, 6:14] = 1
    predicted = reference.roll(3, 0)
    spacing_mm = (0.5, 1.0, 2.0)
    assert hausdorff_distances(predicted, reference, 2, spacing_mm).tolist()[1] == pytest.approx(1.5)
    for tolerance_mm, whole in ((1.49, False), (1.5, True)):  # exactly the tolerance lies within it
        score = float(surface_dice(predicted, reference, 2, spacing_mm, tolerance_mm)[1])
        assert (score == 1.0) is whole
    assert float(surface_dice(reference, reference, 2, spacing_mm, 0.0)[1]) == 1.0


def test_distance_that_rounds_up_still_lies_within_the_tolerance() -> None:
    reference = torch.zeros(9, 9, dtype=torch.uint8)
    reference[2:5, 2:5] = 1
    assert float(surface_dice(reference.roll(3, 0), reference, 2, (0.1, 0.1), 0.3)[1]) == 1.0


@pytest.mark.parametrize("missing", ["predicted", "reference"])
def test_class_in_one_map_alone_is_infinitely_far_and_scores_zero(missing: str) -> None:
    full, empty = torch.zeros(6, 6, 6, dtype=torch.int64), torch.zeros(6, 6, 6, dtype=torch.int64)
    full[2:4, 2:4, 2:4] = 1
    pair = (empty, full) if missing == "predicted" else (full, empty)
    assert hausdorff_distances(*pair, 3, (1, 1, 1)).tolist()[1] == math.inf
    assert surface_dice(*pair, 3, (1, 1, 1), 5.0).tolist()[1] == 0.0
    assert math.isnan(hausdorff_distances(*pair, 3, (1, 1, 1))[2])
    assert math.isnan(surface_dice(*pair, 3, (1, 1, 1), 5.0)[2])


def test_background_is_scored_on_demand() -> None:
    predicted, reference = smooth_maps(0, (8, 8, 8))
    for score in (
        lambda **options: hausdorff_distances(predicted, reference, 3, (1, 1, 1), **options),
        lambda **options: surface_dice(predicted, reference, 3, (1, 1, 1), 1.0, **options),
    ):
        assert math.isnan(score()[0])
        assert not score(include_background=True).isnan().any()
        assert torch.equal(score()[1:], score(include_background=True)[1:])


def test_ignored_voxels_may_hold_any_prediction() -> None:
    predicted, reference = smooth_maps(1, (12, 11, 10))
    reference[:, :, 7:] = 255
    reference[3, 4, 2] = 255
    spoiled = torch.where(reference == 255, 1, predicted)
    spoiled[:, 2, 8] = 99
    for score in (
        lambda given: hausdorff_distances(given, reference, 3, (1.0, 2.0, 0.5), ignore_index=255),
        lambda given: surface_dice(given, reference, 3, (1.0, 2.0, 0.5), 0.7, ignore_index=255),
    ):
        assert torch.equal(score(spoiled)[1:], score(predicted)[1:])
        assert not torch.equal(score(predicted)[1:], score(predicted.roll(1, 0))[1:])


def test_surface_that_only_the_ignored_region_cuts_does_not_count() -> None:
    reference, predicted = torch.zeros(12, 12, dtype=torch.int64), torch.zeros(12, 12, dtype=torch.int64)
    reference[2:10, 2:12], predicted[3:9, 3:12] = 1, 1  # one voxel smaller on each side that shows
    reference[:, 6:] = 255
    cut = [torch.where(reference == 255, 0, labels) for labels in (predicted, reference)]
    assert float(surface_dice(*cut, 2, (1, 1), 0.5)[1]) > 0  # where the region cuts, both maps agree by construction
    assert float(surface_dice(predicted, reference, 2, (1, 1), 0.5, ignore_index=255)[1]) == 0.0
    assert float(hausdorff_distances(*cut, 2, (1, 1), percentile=0)[1]) == 0.0
    assert float(hausdorff_distances(predicted, reference, 2, (1, 1), 0, ignore_index=255)[1]) == 1.0


def test_class_that_lies_in_ignored_voxels_alone_is_absent() -> None:
    reference, predicted = torch.zeros(8, 8, dtype=torch.int64), torch.zeros(8, 8, dtype=torch.int64)
    reference[:3], predicted[:3] = 255, 1
    assert math.isnan(hausdorff_distances(predicted, reference, 2, (1, 1), ignore_index=255)[1])
    assert math.isnan(surface_dice(predicted, reference, 2, (1, 1), 1.0, ignore_index=255)[1])


@settings(deadline=None, max_examples=15, derandomize=True)
@given(seed=st.integers(0, 999), axis=st.integers(0, 2))
def test_flipping_and_exchanging_both_maps_changes_nothing(seed: int, axis: int) -> None:
    predicted, reference = smooth_maps(seed, (7, 8, 6))
    reference[0, :3] = 255
    predicted[0, :3] = 0
    options = {"num_classes": 3, "spacing_mm": (1.0, 0.8, 2.0), "ignore_index": 255}
    flipped = [labels.flip(axis) for labels in (predicted, reference)]
    for score in (
        lambda *pair: hausdorff_distances(*pair, **options),
        lambda *pair: surface_dice(*pair, tolerance_mm=0.9, **options),
    ):
        torch.testing.assert_close(score(*flipped), score(predicted, reference), equal_nan=True)
    exchanged = torch.where(reference == 255, 255, predicted), torch.where(reference == 255, 0, reference)
    torch.testing.assert_close(
        hausdorff_distances(exchanged[1], exchanged[0], **options),
        hausdorff_distances(predicted, reference, **options),
        equal_nan=True,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_labels_may_come_as_any_whole_numbers(dtype: torch.dtype) -> None:
    predicted, reference = smooth_maps(2, (8, 9, 7))
    expected = surface_dice(predicted, reference, 3, (1, 1, 1), 0.5)
    assert torch.equal(surface_dice(predicted.to(dtype), reference.to(dtype), 3, (1, 1, 1), 0.5)[1:], expected[1:])


def test_what_does_not_fit_is_refused() -> None:
    labels = torch.zeros(4, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one shape \(X, Y\) or \(X, Y, Z\)"):
        hausdorff_distances(labels, labels[:2], 2, (1, 1, 1))
    with pytest.raises(ValueError, match=r"one shape \(X, Y\) or \(X, Y, Z\)"):
        surface_dice(labels[None], labels[None], 2, (1, 1, 1), 1.0)
    for spacing in ((1, 1), (1, 1, 0), (1, 1, float("nan"))):
        with pytest.raises(ValueError, match="spacing_mm must be 3 positive numbers"):
            hausdorff_distances(labels, labels, 2, spacing)
    with pytest.raises(ValueError, match=r"predicted labels run from 2 to 2; they must lie in 0\.\.1"):
        hausdorff_distances(labels + 2, labels, 2, (1, 1, 1))
    with pytest.raises(ValueError, match="reference labels run from 255 to 255"):
        surface_dice(labels, (labels + 255).to(torch.uint8), 2, (1, 1, 1), 1.0)
    for tolerance in (-1.0, float("inf"), [1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="one for each of 2 classes, finite and not negative"):
            surface_dice(labels, labels, 2, (1, 1, 1), tolerance)
    with pytest.raises(ValueError, match="percentile must lie in 0 to 100"):
        hausdorff_distances(labels, labels, 2, (1, 1, 1), percentile=101)


def test_surfaces_are_scored_where_tiny_numbers_are_taken_as_zero() -> None:
    """As training has it; in a process of its own, since SciPy's tree would crash it."""
    script = """
import torch
from dinomed.metrics.surface import hausdorff_distances, surface_dice
maps = [torch.zeros(40, 40, 40, dtype=torch.int32) for _ in range(2)]
maps[0][5:35, 5:35, 5:35] = 1
maps[1][8:38, 5:35, 5:35] = 1
results = []
for flush in (False, True):
    torch.set_flush_denormal(flush)
    scores = surface_dice(*maps, 2, (1, 1, 1), 1.0), hausdorff_distances(*maps, 2, (1, 1, 1))
    results += [float(score[1]) for score in scores]
assert results[:2] == results[2:], results
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2], timeout=240)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
