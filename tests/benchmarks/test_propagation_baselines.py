from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("propagation_baselines", "propagation_cases", "propagation")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """Import the scripts by their path, as they import each other, and take them out again."""
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not part of an installed package")
    loaded = {}
    for name in NAMES:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    yield loaded
    for name in NAMES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def baselines(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["propagation_baselines"]


def ball(radius_mm: float = 12.0, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """A ball in the middle of a field of 40 mm."""
    axes = [(np.arange(round(40 / step)) + 0.5) * step - 20 for step in spacing_mm]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < radius_mm**2


def keep(labels: np.ndarray, axis: int, indices: list[int]) -> np.ndarray:
    drawn = np.zeros(labels.shape, np.uint8)
    place = tuple(indices if k == axis else slice(None) for k in range(3))
    drawn[place] = labels[place]
    return drawn


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_copying_takes_the_nearest_slice_of_the_label_itself(baselines: ModuleType) -> None:
    drawn = np.zeros((4, 4, 9), np.uint8)
    drawn[0, 0, 1], drawn[0, 1, 6], drawn[0, 2, 8] = 1, 1, 2
    labels = baselines.copy_nearest(np.zeros(drawn.shape, np.float32), drawn, 2, (1.0, 1.0, 1.0))
    assert labels[0, 0].tolist() == [1] * 4 + [0] * 5
    assert labels[0, 1].tolist() == [0] * 4 + [1] * 5
    assert labels[0, 2].tolist() == [2] * 9


def test_nearer_drawn_slice_wins_where_copies_meet(baselines: ModuleType) -> None:
    drawn = np.zeros((2, 2, 9), np.uint8)
    drawn[0, 0, 0], drawn[0, 0, 8] = 3, 2
    labels = baselines.copy_nearest(np.zeros(drawn.shape, np.float32), drawn, 2, (1.0, 1.0, 5.0))
    assert labels[0, 0, [0, 1, 2, 3, 5, 6, 7, 8]].tolist() == [3] * 4 + [2] * 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shape_interpolation_gives_the_disc_of_mean_radius_midway(baselines: ModuleType, axis: int) -> None:
    rows, columns = np.mgrid[:40, :40] - 19.5
    drawn = np.zeros((9, 40, 40), np.uint8)
    drawn[0], drawn[8] = (np.hypot(rows, columns) < radius for radius in (6, 14))
    expected = np.hypot(rows, columns) < 10
    drawn = np.moveaxis(drawn, 0, axis)
    labels = baselines.interpolate_shapes(np.zeros(drawn.shape, np.float32), drawn, axis, (1.0, 1.0, 1.0))
    assert dice(np.moveaxis(labels, axis, 0)[4] > 0, expected) > 0.98


def test_signed_distance_is_in_millimetres_from_the_outline(baselines: ModuleType) -> None:
    mask = np.zeros((9, 30), bool)
    mask[:, :10] = True
    distance = baselines._signed_distance(mask, (2.0, 2.0))
    assert distance[4, 8:12].tolist() == [3.0, 1.0, -1.0, -3.0]


def test_outline_shrinks_beyond_the_last_slice_by_millimetres_along_the_axis(baselines: ModuleType) -> None:
    spacing_mm = (1.0, 1.0, 4.0)
    drawn = keep(ball(12, spacing_mm).astype(np.uint8), 2, [4])
    radius = {}
    for taper in ("cone", "sphere"):
        labels = baselines.interpolate_shapes(np.zeros(drawn.shape, np.float32), drawn, 2, spacing_mm, taper)
        radius[taper] = np.sqrt(labels.sum(axis=(0, 1)) / np.pi)
        assert radius[taper][4] == pytest.approx(np.sqrt(12**2 - 2**2), abs=0.2)
    for slices in (1, 2):
        assert radius["cone"][4 + slices] == pytest.approx(radius["cone"][4] - 4 * slices, abs=0.5)
        assert radius["sphere"][4 + slices] == pytest.approx(
            np.sqrt(radius["sphere"][4] ** 2 - 16 * slices**2), abs=0.8
        )
    assert radius["cone"][8] == radius["sphere"][8] == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.5), (2.0, 1.0, 1.0)])
def test_voting_follows_a_bright_ball_from_one_slice_to_its_ends(
    baselines: ModuleType, axis: int, spacing_mm: tuple[float, float, float]
) -> None:
    truth = ball(12, spacing_mm)
    noise = np.random.default_rng(0).normal(scale=0.03, size=truth.shape)
    volume = (truth + noise).astype(np.float32)
    drawn = keep(truth.astype(np.uint8), axis, [truth.shape[axis] // 2])
    labels = baselines.vote_by_intensity(volume, drawn, axis, spacing_mm)
    assert dice(labels > 0, truth) > 0.9
    blind = baselines.vote_by_intensity(np.zeros_like(volume), drawn, axis, spacing_mm)
    assert dice(blind > 0, truth) < dice(labels > 0, truth) - 0.05


def test_voting_joins_two_drawn_slices_by_their_distance(baselines: ModuleType) -> None:
    rows, columns = np.mgrid[:24, :72]
    left, right = (np.hypot(rows - 12, columns - centre) < 9 for centre in (14, 58))
    volume = np.repeat((left | right).astype(np.float32)[..., None], 8, axis=2)
    drawn = np.zeros(volume.shape, np.uint8)
    drawn[..., 0], drawn[..., 7] = left, right
    labels = baselines.vote_by_intensity(volume, drawn, 2, (1.0, 1.0, 1.0))
    for index in range(1, 7):
        assert labels[12, 14 if index < 4 else 58, index] == 1
        assert labels[12, 58 if index < 4 else 14, index] == 0


@pytest.mark.parametrize("name", ["copy", "shape", "intensity"])
def test_drawn_slices_stay_as_they_were_drawn(baselines: ModuleType, name: str) -> None:
    truth = ball().astype(np.uint8)
    truth[20:][truth[20:] > 0] = 2
    drawn = keep(truth, 2, [12, 20])
    drawn[..., 12][drawn[..., 12] == 2] = 0  # this slice is drawn for label 1, that one for both
    labels = baselines.BASELINES[name](truth.astype(np.float32), drawn, 2, (1.0, 1.0, 1.0))
    assert labels.dtype == np.uint8
    assert labels.shape == truth.shape
    assert (labels[drawn > 0] == drawn[drawn > 0]).all()
    assert not (labels[..., 12][drawn[..., 12] == 0] == 1).any()
    assert not labels[..., 20][drawn[..., 20] == 0].any()
    assert {1, 2} <= set(np.unique(labels[..., 17]).tolist())


def test_one_drawn_slice_is_the_largest_and_more_are_spread_over_the_extent(modules: dict[str, ModuleType]) -> None:
    chosen = modules["propagation_cases"].slices_to_draw
    mask = np.zeros((3, 3, 30), bool)
    mask[0, 0, 5:25] = True
    mask[1, 1, 9] = True
    assert chosen(mask, 2, 1) == [9]
    assert chosen(mask, 2, 5) == [7, 11, 15, 19, 23]
    mask[:, :, 15] = False
    assert chosen(mask, 2, 3) == [8, 14, 21]
    assert chosen(mask, 0, 5) == [0, 1]


def test_dice_is_taken_without_the_drawn_slices_and_with_them(modules: dict[str, ModuleType]) -> None:
    truth, result = np.zeros((2, 1, 1, 10), bool)
    truth[..., 2:6] = True
    result[..., 3:8] = True
    scores = modules["propagation"].dice(result, truth, 2, [3])
    assert scores == {"rest": pytest.approx(4 / 7), "all": pytest.approx(6 / 9), "extent": pytest.approx(4 / 5)}
    assert modules["propagation"].dice(result, truth, 2, [2, 3, 4, 5])["rest"] is None
