from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandAffined

from dinomed.data.sampling import SeededDataset
from dinomed.data.volume_slices import DrawSlices
from dinomed.errors import InputError
from dinomed.inferers.planes import slice_inputs


def scan(seed: int = 0, shape: tuple[int, int, int] = (20, 16, 12)) -> dict[str, Any]:
    """Label 2 lies in one axial slice alone; intensities tell the label and the slice."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(1, *shape, dtype=torch.uint8)
    labels[:, 4:14, 3:12, :6] = 1
    labels[:, 6:8, 5:7, 3] = 2
    image = 0.3 * labels + 0.01 * torch.rand(1, *shape, generator=generator)
    return {"image": MetaTensor(image, meta={"filename_or_obj": f"scan{seed}.nii.gz"}), "label": MetaTensor(labels)}


def draw(slices: DrawSlices, seed: int = 0) -> list[dict[str, Any]]:
    slices.set_random_state(seed)
    return slices(None)


def test_slices_are_those_of_the_inferer() -> None:
    scans = [scan()]
    item = draw(DrawSlices(scans, 16, size=20, by_label=0.0))
    volume = scans[0]["image"].as_tensor()[0]
    every = slice_inputs(volume, 2, range(12), 1)
    labels = slice_inputs(scans[0]["label"].as_tensor()[0], 2, range(12), 0)
    places = []
    for each in item:
        assert each["image"].shape == (3, 20, 20)
        assert each["label"].shape == (1, 20, 20)
        rows = (20 - 16 + 1) * [0]
        found = [
            (position, top)
            for position in range(12)
            for top in range(len(rows))
            if torch.equal(each["image"][:, top : top + 16], every[position])
        ]
        assert len(found) == 1
        position, top = found[0]
        assert torch.equal(each["label"][:, top : top + 16], labels[position])
        assert float(each["image"].abs().sum()) == pytest.approx(float(every[position].sum()), rel=1e-5)
        places.append((position, top))
    assert len({position for position, _ in places}) > 4
    assert len({top for _, top in places}) > 1


def test_rare_labels_are_drawn_as_often_as_common_ones() -> None:
    item = draw(DrawSlices([scan()], 200, size=20, by_label=1.0))
    rare = sum(bool((each["label"] == 2).any()) for each in item)
    assert 90 < rare < 145  # every second by its own label, and one sixth of the others by chance
    anywhere = draw(DrawSlices([scan()], 200, size=20, by_label=0.0))
    assert sum(bool((each["label"] == 2).any()) for each in anywhere) < 40


def test_scans_without_labels_are_drawn_too() -> None:
    empty = scan()
    empty["label"] = MetaTensor(torch.zeros_like(empty["label"]))
    item = draw(DrawSlices([empty], 4, size=20, by_label=1.0))
    assert all(not bool(each["label"].any()) for each in item)


def test_larger_slices_are_cut_to_windows() -> None:
    item = draw(DrawSlices([scan()], 12, size=8, planes=["axial", "coronal", "sagittal"]))
    assert {tuple(each["image"].shape) for each in item} == {(3, 8, 8)}


def test_items_depend_on_seed_epoch_and_index_alone() -> None:
    change = Compose([RandAffined(["image", "label"], mode=["bilinear", "nearest"], prob=1.0, rotate_range=0.3)])
    data = [SeededDataset(range(3), DrawSlices([scan(), scan(1)], 2, size=24, change=change), seed=5) for _ in range(2)]
    first = [each["image"] for each in data[0][1]]
    for _ in range(3):
        data[1][0]  # other items drawn before must not matter
    again = [each["image"] for each in data[1][1]]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    data[1].set_epoch(2)
    assert not torch.equal(data[1][1][0]["image"], first[0])


def test_label_moves_with_its_image_and_stays_whole() -> None:
    change = Compose([RandAffined(["image", "label"], mode=["bilinear", "nearest"], prob=1.0, rotate_range=0.5)])
    item = draw(DrawSlices([scan()], 8, size=32, by_label=1.0, change=change))
    for each in item:
        assert each["label"].dtype == torch.uint8
        assert set(each["label"].unique().tolist()) <= {0, 1, 2}
        inside = (each["label"][0] == 1) & (each["image"][1] > 0.05)
        assert inside.sum() >= 0.9 * (each["label"][0] == 1).sum()


def test_intensities_are_normalised_last() -> None:
    item = draw(DrawSlices([scan()], 2, size=20, intensity=lambda data: {**data, "image": data["image"] - 5.0}))
    assert all(float(each["image"].max()) < 0 for each in item)


def test_items_name_their_scan() -> None:
    assert {each["source"] for each in draw(DrawSlices([scan(0), scan(1)], 16, size=8))} == {
        "scan0.nii.gz",
        "scan1.nii.gz",
    }


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown"):
        DrawSlices([scan()], planes=["oblique"])
    with pytest.raises(ValueError, match="by_label"):
        DrawSlices([scan()], by_label=2.0)
    with pytest.raises(InputError, match="no scans"):
        DrawSlices([])
