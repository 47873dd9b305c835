from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from torch import Tensor

from dinomed.metrics import VolumeScores, volume_scores


def case(seed: int, size: int = 9) -> tuple[Tensor, Tensor]:
    """Label maps (1, X, Y, Z) of two boxes; class 3 is in neither."""
    generator = np.random.default_rng(seed)
    reference = torch.zeros(1, size, size, size, dtype=torch.uint8)
    for label in (1, 2):
        x, y, z = generator.integers(0, size - 4, 3)
        reference[0, x : x + 4, y : y + 3, z : z + 4] = label
    return reference.roll(1, 1 + seed % 3), reference


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels.long(), 4).movedim(-1, 1)


@pytest.mark.filterwarnings("ignore:.*is all 0, this may result:UserWarning")
def test_scores_agree_with_monai_where_both_maps_have_the_class() -> None:
    predicted, reference = case(0)
    scores = volume_scores(predicted[0], reference[0], 4, (1.0, 0.5, 2.0), 0.75)
    pair = one_hot(predicted), one_hot(reference)
    torch.testing.assert_close(scores["dice"][1:3].float(), compute_dice(*pair)[0, 1:3])
    far = compute_hausdorff_distance(*pair, percentile=95, spacing=(1.0, 0.5, 2.0))[0, :2]
    torch.testing.assert_close(scores["hd95_mm"][1:3].float(), far)
    near = compute_surface_dice(*pair, [0.75] * 3, spacing=(1.0, 0.5, 2.0), use_subvoxels=True)[0, :2]
    torch.testing.assert_close(scores["nsd"][1:3].float(), near)
    assert all(math.isnan(row[0]) and math.isnan(row[3]) for row in scores.values())


def test_class_in_one_map_alone_scores_zero_at_the_given_distance() -> None:
    predicted, reference = case(1)
    reference[reference == 2] = 0
    scores = volume_scores(predicted[0], reference[0], 4, (1, 1, 1), 1.0)
    assert [float(scores[kind][2]) for kind in ("dice", "hd95_mm", "nsd")] == [0.0, math.inf, 0.0]
    finite = volume_scores(predicted[0], reference[0], 4, (1, 1, 1), 1.0, missed_mm=99.0)
    assert float(finite["hd95_mm"][2]) == 99.0
    assert torch.equal(finite["hd95_mm"][1], scores["hd95_mm"][1])
    assert math.isnan(finite["hd95_mm"][3])


@pytest.mark.parametrize("label", [255, 2, 0])
def test_ignored_label_has_no_score_and_its_voxels_count_nowhere(label: int) -> None:
    predicted, reference = case(2)
    reference[0, :, :, :4] = label
    scores = volume_scores(predicted[0], reference[0], 4, (1, 1, 1), 0.5, label, include_background=True)
    spoiled = torch.where(reference == label, 3, predicted)
    again = volume_scores(spoiled[0], reference[0], 4, (1, 1, 1), 0.5, label, include_background=True)
    for kind, row in scores.items():
        assert torch.equal(row.nan_to_num(-1), again[kind].nan_to_num(-1))
        assert math.isnan(row[3])
        assert label == 255 or math.isnan(row[label])


def test_means_run_over_the_cases_that_have_the_class() -> None:
    pairs = [case(seed) for seed in range(3)]
    pairs[1][0][pairs[1][0] == 2], pairs[1][1][pairs[1][1] == 2] = 0, 0  # the second case has no class 2
    metric = VolumeScores(4, 0.5, (1.0, 0.5, 2.0), class_names=["rest", "liver", "spleen", "none"])
    for predicted, reference in pairs:
        metric.update((predicted, reference))
    rows = [volume_scores(p[0], r[0], 4, (1.0, 0.5, 2.0), 0.5) for p, r in pairs]
    found = metric.compute()
    for kind in ("dice", "hd95_mm", "nsd"):
        liver = np.mean([float(row[kind][1]) for row in rows])
        spleen = np.mean([float(rows[k][kind][2]) for k in (0, 2)])
        assert found[f"{kind}/liver"] == pytest.approx(liver)
        assert found[f"{kind}/spleen"] == pytest.approx(spleen)
        assert found[f"mean_{kind}"] == pytest.approx((liver + spleen) / 2)
    assert not [name for name in found if name.endswith(("/none", "/rest"))]


def test_spacing_comes_from_the_reference() -> None:
    predicted, reference = case(3)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 0.5, 2.0])
    own, given = VolumeScores(4, 0.5), VolumeScores(4, 0.5, (1.0, 0.5, 2.0))
    own.update(([predicted], [MetaTensor(reference, affine=torch.from_numpy(affine))]))
    given.update(([predicted], [reference]))
    assert own.compute() == pytest.approx(given.compute())
    with pytest.raises(ValueError, match="has no affine; give spacing_mm"):
        own.update(([predicted], [reference]))


def test_batches_lists_and_single_maps_count_alike() -> None:
    pairs = [case(seed) for seed in (4, 5)]
    results = []
    for output in (
        [tuple(torch.stack(side) for side in zip(*pairs, strict=True))],
        [tuple(list(side) for side in zip(*pairs, strict=True))],
        pairs,
    ):
        metric = VolumeScores(4, 0.5, (1, 1, 1))
        for each in output:
            metric.update(each)
        results.append(metric.compute())
    assert results[0] == results[1] == results[2]


def test_reset_forgets_and_no_case_gives_no_scores() -> None:
    metric = VolumeScores(4, 0.5, (1, 1, 1))
    metric.update(case(0))
    assert metric.compute()
    metric.reset()
    assert metric.compute() == {}


def test_missed_class_makes_the_mean_infinite_unless_a_distance_is_given() -> None:
    predicted, reference = case(6)
    for missed_mm in (math.inf, 30.0):
        metric = VolumeScores(4, 0.5, (1, 1, 1), missed_mm=missed_mm)
        metric.update((predicted, reference))
        metric.update((torch.zeros_like(predicted), reference))
        alone = volume_scores(predicted[0], reference[0], 4, (1, 1, 1), 0.5)["hd95_mm"][1]
        assert metric.compute()["hd95_mm/1"] == pytest.approx((float(alone) + missed_mm) / 2)


def test_engine_shows_every_score() -> None:
    config = {
        "metric": {
            "_target_": "dinomed.metrics.VolumeScores",
            "num_classes": 4,
            "tolerance_mm": [0.0, 1.0, 2.0, 2.0],
            "spacing_mm": [1, 1, 1],
        }
    }
    engine = Engine(lambda _, pair: pair)
    ConfigParser(config).get_parsed_content("metric").attach(engine, "volumes")
    engine.run([case(0), case(1)])
    assert engine.state.metrics["mean_nsd"] == 1.0


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="one for each of 4 classes"):
        VolumeScores(4, [1.0, 1.0])
    with pytest.raises(ValueError, match="4 different names"):
        VolumeScores(4, 1.0, class_names=["a"])
