from __future__ import annotations

from pathlib import Path

import pytest
import torch
from head_maps import LABEL_SOURCES, head_numbers, write_map, write_maps
from monai.data import Dataset, MetaTensor

from dinomed.data.synthetic_scans import MARGIN_MM, SyntheticScans
from dinomed.data.synthetic_slices import read_classes
from dinomed.errors import InputError
from dinomed.transforms.geometry import ToNetworkGridd


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_maps(tmp_path_factory.mktemp("maps"), 2, size=32)


def test_scans_of_every_map_are_named_after_it(maps: list[Path]) -> None:
    scans = SyntheticScans(maps, LABEL_SOURCES, scans_per_map=2)
    assert len(scans) == 4
    names = [item["image"].meta["filename_or_obj"] for item in scans]
    assert names == [f"training_seg_0{i}_scan{k}" for i in (1, 2) for k in (0, 1)]


def test_scan_covers_the_head_with_a_margin_about_its_centre(maps: list[Path]) -> None:
    item = SyntheticScans(maps, LABEL_SOURCES)[0]
    image, label = item["image"], item["label"]
    classes, _ = read_classes(maps[0])
    assert image.shape == label.shape == (1, *(n + 2 * MARGIN_MM for n in classes.shape))
    assert image.dtype == torch.float32
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) <= set(range(8))
    middle = torch.tensor([*((n - 1) / 2 for n in image.shape[1:]), 1.0], dtype=torch.float64)
    assert (image.affine @ middle).tolist() == [0, 0, 0, 1]
    assert torch.equal(image.affine, label.affine)


def test_coarse_map_gives_a_scan_of_one_millimetre(tmp_path: Path, maps: list[Path]) -> None:
    path = write_map(tmp_path / "coarse.nii.gz", head_numbers(16), voxel_mm=2.0)
    image = SyntheticScans([path], LABEL_SOURCES)[0]["image"]
    assert 2 * 12 + 2 * MARGIN_MM <= image.shape[1] <= 2 * 16 + 2 * MARGIN_MM
    assert torch.equal(image.affine[:3, :3], torch.eye(3, dtype=torch.float64))


def test_same_seed_gives_the_same_scans_and_another_seed_others(maps: list[Path]) -> None:
    one, same, other = (SyntheticScans(maps, LABEL_SOURCES, seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(one["image"], same["image"])
    assert torch.equal(one["label"], same["label"])
    assert not torch.equal(one["image"], other["image"])


def test_scans_go_through_a_monai_dataset_and_stay_on_their_grid(maps: list[Path]) -> None:
    scans = SyntheticScans(maps, LABEL_SOURCES)
    prepared = Dataset(scans, ToNetworkGridd("image"))[0]
    assert isinstance(prepared["image"], MetaTensor)
    assert torch.equal(prepared["image"].as_tensor(), scans[0]["image"].as_tensor())
    assert prepared["image"].meta["native_shape"].tolist() == list(scans[0]["label"].shape[1:])


def test_slices_and_ends_work_as_in_any_sequence(maps: list[Path]) -> None:
    scans = SyntheticScans(maps, LABEL_SOURCES)
    assert [item["image"].meta["filename_or_obj"] for item in scans[1:]] == ["training_seg_02_scan0"]
    with pytest.raises(IndexError):
        scans[2]


def test_no_label_maps_is_an_input_error() -> None:
    with pytest.raises(InputError, match="set dataset_dir"):
        SyntheticScans([], LABEL_SOURCES)
