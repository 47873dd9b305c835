from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

from dinomed.metrics import SegmentationScores, confusion_matrix, overlap
from dinomed.metrics.case_scores import score_image, score_volume

NAMES = ["background", "shell", "core", "rare", "stray"]
SPACING = (1.0, 2.0, 0.5)


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Nested boxes; `rare` is in the reference alone, `stray` nowhere."""
    reference = torch.zeros(12, 14, 16, dtype=torch.uint8)
    reference[2:10, 2:12, 2:14] = 1
    reference[4:8, 4:9, 5:11] = 2
    predicted = reference.roll(1, 1)
    reference[0, 0, 0] = 3
    return predicted, reference


def one_hot(labels: torch.Tensor, label: int) -> torch.Tensor:
    return torch.stack([labels != label, labels == label])[None].float()


def test_scores_of_a_volume_are_those_of_monai_label_by_label() -> None:
    predicted, reference = maps()
    scores = score_volume("a", predicted, reference, NAMES, SPACING, tolerance_mm=1.0)
    for row in scores.labels[:2]:
        both = [one_hot(labels, row["label"]) for labels in (predicted, reference)]
        options = {"include_background": False, "spacing": SPACING}
        assert row["dice"] == pytest.approx(float(compute_dice(*both, include_background=False)))
        assert row["hd95_mm"] == pytest.approx(float(compute_hausdorff_distance(*both, percentile=95, **options)))
        nsd = compute_surface_dice(*both, class_thresholds=[1.0], use_subvoxels=True, **options)
        assert row["nsd"] == pytest.approx(float(nsd), abs=1e-6)
        assert row["reference_voxels"] == int((reference == row["label"]).sum())
        assert row["predicted_voxels"] == int((predicted == row["label"]).sum())


def test_a_missed_label_scores_0_without_a_distance_and_an_absent_one_nothing() -> None:
    predicted, reference = maps()
    scores = score_volume("a", predicted, reference, NAMES, SPACING)
    assert [row["name"] for row in scores.labels] == ["shell", "core", "rare"]  # stray is left out
    missed = scores.labels[2]
    assert (missed["dice"], missed["nsd"], missed["hd95_mm"], missed["found"]) == (0.0, 0.0, None, "missed")
    known = [row["dice"] for row in scores.labels]
    assert scores.summary["mean_dice"] == pytest.approx(np.mean(known))
    assert (scores.summary["missed"], scores.summary["spurious"], scores.summary["labels_in_reference"]) == (1, 0, 3)
    turned = score_volume("a", reference, predicted, NAMES, SPACING)
    assert turned.labels[2]["found"] == "spurious"


def test_a_region_is_scored_as_one_label() -> None:
    predicted, reference = maps()
    scores = score_volume("a", predicted, reference, NAMES, SPACING, 1.0, region_groups={"box": [1, 2]})
    inside = [((labels == 1) | (labels == 2)).to(torch.uint8) for labels in (predicted, reference)]
    alone = score_volume("a", *inside, ["rest", "box"], SPACING, 1.0)
    assert [row["label"] for row in scores.regions] == ["1+2"]
    for kind in ("dice", "hd95_mm", "nsd", "reference_voxels", "predicted_voxels"):
        assert scores.regions[0][kind] == alone.labels[0][kind]


def test_a_large_region_names_its_labels_in_short() -> None:
    labels = torch.zeros(4, 4, 4, dtype=torch.uint8)
    names = [str(label) for label in range(12)]
    scores = score_volume("a", labels, labels, names, SPACING, 1.0, region_groups={"x": [9, 4, 2, 3, 7, 8, 11]})
    assert scores.regions[0]["label"] == "2-4+7-9+11"


def test_ignored_voxels_count_nowhere_in_labels_and_regions() -> None:
    predicted, reference = maps()
    reference[:, 11:] = 255
    first = score_volume("a", predicted, reference, NAMES, SPACING, 1.0, {"box": [1, 2]}, ignore_index=255)
    predicted[:, 11:] = 4
    second = score_volume("a", predicted, reference, NAMES, SPACING, 1.0, {"box": [1, 2]}, ignore_index=255)
    assert first.labels == second.labels
    assert first.regions == second.regions


def test_scores_of_a_picture_are_those_of_the_confusion_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(3, (40, 30), generator=generator)
    predicted = torch.where(torch.rand(40, 30, generator=generator) < 0.6, reference, 2)
    reference[:4] = 255
    scores = score_image("a", predicted, reference, NAMES, ignore_index=255)
    counted = reference != 255
    for row in scores.labels:
        one, other = ((labels == row["label"])[counted] for labels in (predicted, reference))
        assert row["iou"] == pytest.approx(float((one & other).sum() / (one | other).sum()))
        assert row["accuracy"] == pytest.approx(float((one & other).sum() / other.sum()))
    assert len(scores.labels) == 3  # what occurs nowhere is left out
    metric = SegmentationScores(5, ignore_index=255)
    metric.update((predicted[None], reference[None]))
    assert scores.summary["mean_iou"] == pytest.approx(metric.compute()["mean_iou"])
    assert scores.summary["pixel_accuracy"] == pytest.approx(float((predicted == reference)[counted].float().mean()))


def test_large_maps_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, reference = maps()
    whole = confusion_matrix(predicted, reference, 5)
    monkeypatch.setattr(overlap, "CHUNK_VOXELS", 100)
    assert torch.equal(confusion_matrix(predicted, reference, 5), whole)
    assert torch.equal(confusion_matrix(predicted, reference, 5, ignore_index=1)[1], torch.zeros(5, dtype=torch.int64))


def test_maps_that_do_not_fit_are_refused() -> None:
    predicted, reference = maps()
    with pytest.raises(ValueError, match="shape"):
        score_volume("a", predicted[1:], reference, NAMES, SPACING)
    with pytest.raises(ValueError, match="labels run from"):
        score_volume("a", predicted, reference, NAMES[:2], SPACING)
