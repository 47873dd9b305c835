from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from picture_sets import noise, save

from dinomed.errors import InputError
from dinomed.metrics import labels_at_size
from dinomed.transforms.image_labels import LabelsAtImageSized, decide_image_labels
from dinomed.transforms.natural_images import FitShorterSided, LoadImageRGBd, LoadLabelMapd, fitted_size


def probabilities(classes: int, height: int, width: int, sharpness: float = 1.0) -> torch.Tensor:
    logits = torch.rand(classes, height, width, generator=torch.Generator().manual_seed(0))
    return (sharpness * logits).softmax(0)


@pytest.mark.parametrize("size", [(31, 45), (20, 30), (7, 90), (64, 30)])
@pytest.mark.parametrize("strip_numbers", [1, 400, 1 << 20])
def test_labels_are_those_of_the_metrics_at_any_size_and_strip(size: tuple[int, int], strip_numbers: int) -> None:
    probs = probabilities(5, 20, 30)
    decided = decide_image_labels(probs, *size, strip_numbers=strip_numbers)
    assert decided.labels.dtype == np.uint8
    np.testing.assert_array_equal(decided.labels, labels_at_size(probs, size)[0].numpy())


def test_classes_that_cannot_win_are_left_out_without_a_trace() -> None:
    # A picture of 40 classes, of which most are certain to be absent from most of its strips.
    probs = probabilities(40, 24, 30, sharpness=60)
    for row in range(24):
        probs[torch.arange(40) % 8 != row // 3, row] *= 0.01
    probs /= probs.sum(0)
    decided = decide_image_labels(probs, 71, 95, strip_numbers=40 * 95 * 5)
    np.testing.assert_array_equal(decided.labels, labels_at_size(probs, (71, 95))[0].numpy())
    assert len(np.unique(decided.labels)) > 20


def test_confidence_is_the_mean_of_what_won() -> None:
    probs = probabilities(4, 12, 9)
    probs[2] = 0
    decided = decide_image_labels(probs, 12, 9)
    best, labels = probs.max(0)
    for value in (0, 1, 3):
        assert decided.mean_confidence[value] == pytest.approx(float(best[labels == value].mean()), abs=1e-6)
        assert decided.pixel_counts[value] == int((labels == value).sum())
    assert np.isnan(decided.mean_confidence[2])
    assert decided.pixel_counts[2] == 0


@pytest.mark.parametrize(("classes", "dtype"), [(255, np.uint8), (256, np.int32), (300, np.int32)])
def test_many_classes_need_wider_labels(classes: int, dtype: type) -> None:
    probs = torch.zeros(classes, 2, 2)
    probs[classes - 1] = 1
    decided = decide_image_labels(probs, 3, 3)
    assert decided.labels.dtype == dtype
    assert (decided.labels == classes - 1).all()


def test_label_map_has_the_size_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(0, 37, 61))
    item = FitShorterSided(shorter=16)(LoadImageRGBd()({"image": str(path)}))
    assert tuple(item["image"].shape) == (3, 16, 26)
    item["pred"] = probabilities(3, 16, 26)
    labels = LabelsAtImageSized()(item)["pred"]
    assert isinstance(labels, MetaTensor)
    assert tuple(labels.shape) == (1, 37, 61)
    assert int(labels.meta["pixel_counts"].sum()) == 37 * 61


def test_picture_of_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="load it with LoadImageRGBd"):
        LabelsAtImageSized()({"image": torch.zeros(3, 4, 4), "pred": probabilities(2, 4, 4)})


def test_label_maps_are_no_probabilities() -> None:
    with pytest.raises(ValueError, match="must be floating point"):
        decide_image_labels(torch.zeros(3, 4, 4, dtype=torch.int64), 4, 4)


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "wanted"),
    [
        ((480, 640), 512, 2048, (512, 683)),
        ((3000, 4000), 512, 2048, (512, 683)),
        ((100, 1000), 512, 2048, (205, 2048)),
        ((1, 10000), 512, 2048, (1, 2048)),
        ((75, 50), None, None, (75, 50)),
        ((75, 50), None, 30, (30, 20)),
    ],
)
def test_shorter_side_is_fitted_within_the_limit_of_the_longer(
    size: tuple[int, int], shorter: int | None, longest: int | None, wanted: tuple[int, int]
) -> None:
    assert fitted_size(*size, shorter, longest) == wanted


def test_shrinking_averages_what_it_merges() -> None:
    fine = torch.zeros(3, 64, 64)
    fine[:, ::2] = 1
    small = FitShorterSided(shorter=16)({"image": fine})["image"]
    torch.testing.assert_close(small, torch.full_like(small, 0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize("length", [0, 0.5, "512"])
def test_side_that_is_no_number_of_pixels_is_refused(length: object) -> None:
    with pytest.raises(ValueError, match="shorter must be a number of pixels"):
        FitShorterSided(shorter=length)  # type: ignore[arg-type]


def test_scan_in_the_place_of_a_picture_is_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "t1.nii.gz"
    path.write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match="is a scan, and this bundle reads pictures"):
        LoadImageRGBd()({"image": str(path)})


@pytest.mark.parametrize(("value", "reduced"), [(3, False), (254, False), (0, False), (4, True)])
def test_label_beyond_the_classes_names_its_file(tmp_path: Path, value: int, reduced: bool) -> None:
    labels = np.full((4, 5), 255, dtype=np.uint8)
    labels[1, 1] = value
    path = save(tmp_path / "a.png", labels)
    load = LoadLabelMapd(num_classes=3, reduce_zero_label=reduced)
    if value == 0:
        assert int(load({"label": str(path)})["label"][0, 1, 1]) == 0
        return
    with pytest.raises(InputError, match=r"a\.png holds the label \d+, but the classes are 0 to 2"):
        load({"label": str(path)})
