from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from head_maps import LABEL_SOURCES, head_numbers, write_map, write_maps
from monai.data import list_data_collate
from scipy import ndimage
from torch.utils.data import DataLoader

from dinomed.data.head_tissues import intensity_classes
from dinomed.data.scan_parameters import SynthesisSettings
from dinomed.data.synthetic_slices import SyntheticSlices, find_label_maps, read_classes
from dinomed.errors import InputError, VolumeError

PLAIN = SynthesisSettings(
    tissue_std=0,
    bias_std=0,
    noise_std=0,
    gamma_std=0,
    low_resolution_probability=0,
    thick_slice_probability=0,
    brain_only_probability=0,
    crop_probability=0,
    dark_background_probability=1,
)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_maps(tmp_path_factory.mktemp("maps"), 2, size=40)


def make(maps: list[Path], **settings: Any) -> SyntheticSlices:
    given = {"length": 3, "slices_per_item": 4, "sizes": (32, 40), "seed": 5, **settings}
    return SyntheticSlices(maps, LABEL_SOURCES, dict, **given)


def images(item: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([part["image"] for part in item])


def test_item_is_a_list_of_slices_with_neighbours_and_labels(maps: list[Path]) -> None:
    for item in make(maps):
        assert len(item) == 4
        size = item[0]["image"].shape[-1]
        assert size in (32, 40)
        for part in item:
            assert part["image"].shape == (3, size, size)
            assert part["image"].dtype == torch.float32
            assert part["label"].shape == (1, size, size)
            assert part["label"].dtype == torch.uint8
            assert int(part["label"].max()) <= 7
            assert 0 <= float(part["image"].min()) <= float(part["image"].max()) <= 1


def test_same_seed_epoch_and_index_give_the_same_item(maps: list[Path]) -> None:
    first, second = make(maps), make(maps)
    for dataset in (first, second):
        dataset.set_epoch(4)
    second[0]  # what was drawn before does not matter
    for one, other in zip(first[2], second[2], strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_other_epoch_index_or_seed_gives_other_slices(maps: list[Path]) -> None:
    dataset = make(maps, sizes=(32,))
    base, other_index = images(dataset[0]), images(dataset[1])
    dataset.set_epoch(1)
    other_epoch = images(dataset[0])
    other_seed = images(make(maps, sizes=(32,), seed=6)[0])
    for other in (other_index, other_epoch, other_seed):
        assert not torch.equal(base, other)


def test_workers_change_nothing_and_see_the_epoch(maps: list[Path]) -> None:
    dataset = make(maps)
    options = {"batch_size": 1, "collate_fn": list_data_collate}
    alone, together = DataLoader(dataset, **options), DataLoader(dataset, num_workers=2, **options)
    by_epoch = []
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        expected = [batch["image"] for batch in alone]
        found = [batch["image"] for batch in together]
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
        by_epoch.append(expected[0])
    assert not torch.equal(by_epoch[0], by_epoch[1])


def explained(image: np.ndarray, label: np.ndarray) -> float:
    """Part of an image's variance that the mean intensity of each label explains."""
    used = np.unique(label)
    means = np.zeros(8)
    means[used] = ndimage.mean(image, label, used)
    return 1 - float(np.var(image - means[label]) / np.var(image))


def test_label_lies_where_its_tissue_is_seen(maps: list[Path]) -> None:
    rows = []
    for item in make(maps, settings=PLAIN, length=5, sizes=(48,)):
        for part in item:
            image, label = part["image"][1].numpy(), part["label"][0].numpy()
            if np.var(image) > 1e-3 and len(np.unique(label)) > 2:
                moved = [np.roll(label, step, axis) for axis in (0, 1) for step in (-2, 2)]
                rows.append([explained(image, each) for each in (label, *moved)])
    fits, *others = np.mean(rows, axis=0)
    assert len(rows) > 10
    assert fits > 0.8
    assert max(others) < fits - 0.1


def test_channels_are_consecutive_slices(maps: list[Path]) -> None:
    wide = make(maps, settings=PLAIN, neighbours=2)[0]
    assert wide[0]["image"].shape[0] == 5
    for part in wide:
        steps = part["image"].diff(dim=0).abs().mean(dim=(1, 2))
        jump = (part["image"][4] - part["image"][0]).abs().mean()
        assert float(steps.max()) <= float(jump) + 1e-3


def test_intensity_transform_is_applied_to_the_slices(maps: list[Path]) -> None:
    plain = make(maps)[0]
    doubled = SyntheticSlices(
        maps,
        LABEL_SOURCES,
        lambda data: {"image": data["image"] * 2 - 1},
        length=3,
        slices_per_item=4,
        sizes=(32, 40),
        seed=5,
    )[0]
    torch.testing.assert_close(images(doubled), images(plain) * 2 - 1)


def test_slices_of_several_heads_make_one_item(maps: list[Path]) -> None:
    dataset = make(maps, slices_per_item=4, slices_per_scan=1)
    assert dataset.scans_per_item == 4
    assert len(dataset[0]) == 4


def test_index_past_the_end_stops_iteration(maps: list[Path]) -> None:
    dataset = make(maps)
    assert len(list(dataset)) == len(dataset) == 3
    for index in (3, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_numbers_that_do_not_fit_are_refused(maps: list[Path]) -> None:
    with pytest.raises(ValueError, match="slices_per_item 5 is no multiple of slices_per_scan 2"):
        make(maps, slices_per_item=5)
    with pytest.raises(ValueError, match="planes \\['oblique'\\] are unknown"):
        make(maps, planes=("oblique",))
    with pytest.raises(ValueError, match="sizes must be one or more in-plane sizes"):
        make(maps, sizes=[])
    with pytest.raises(InputError, match="no label maps to draw from"):
        make([])


def test_stored_voxel_order_does_not_matter(tmp_path: Path) -> None:
    numbers = head_numbers(24)
    numbers[:6] = 0
    expected = intensity_classes(torch.from_numpy(numbers))
    where = [torch.nonzero(expected.amax(dim=[k for k in range(3) if k != axis])).flatten() for axis in range(3)]
    for axis, used in enumerate(where):
        expected = expected.narrow(axis, int(used[0]), int(used[-1] - used[0]) + 1)
    for codes in ("RAS", "LIA", "PSR"):
        classes, spacing_mm = read_classes(write_map(tmp_path / f"{codes}.nii.gz", numbers, codes, voxel_mm=1.5))
        assert torch.equal(classes, expected)
        assert spacing_mm == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4, 4), 999, np.int16), "labels 999 are no FreeSurfer"),
        (np.full((4, 4, 4), 2.5, np.float32), "whole numbers"),
        (np.full((4, 4, 4, 2), 2, np.int16), "three-dimensional"),
        (np.zeros((4, 4, 4), np.int16), "nothing but background"),
    ],
)
def test_unusable_label_map_is_named(tmp_path: Path, values: np.ndarray, message: str) -> None:
    path = tmp_path / "strange.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    with pytest.raises(VolumeError, match=f"strange.nii.gz.*{message}"):
        read_classes(path)


def test_damaged_or_missing_file_is_named(tmp_path: Path, maps: list[Path]) -> None:
    damaged = tmp_path / "half.nii.gz"
    damaged.write_bytes(maps[0].read_bytes()[:500])
    with pytest.raises(VolumeError, match=r"half\.nii\.gz"):
        read_classes(damaged)
    with pytest.raises(VolumeError, match=r"absent\.nii\.gz"):
        read_classes(tmp_path / "absent.nii.gz")


def test_label_maps_are_found_sorted_without_the_excluded(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii", "c.nii.gz", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_label_maps(tmp_path)] == ["a.nii", "b.nii.gz", "c.nii.gz"]
    assert [path.name for path in find_label_maps(tmp_path, ["b.nii.gz"])] == ["a.nii", "c.nii.gz"]


def test_folder_without_what_is_needed_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; set dataset_dir"):
        find_label_maps(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no label maps .* set dataset_dir"):
        find_label_maps(tmp_path)
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(
        InputError, match=r"x\.nii\.gz are named in the configuration but not there; correct validation_m"
    ):
        find_label_maps(tmp_path, ["x.nii.gz"])
