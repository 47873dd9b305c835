from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from dinomed.errors import VolumeError
from dinomed.transforms.geometry import ToNetworkGridd
from dinomed.transforms.label_grids import LoadReferenceLabelsd, labels_on_grid
from dinomed.transforms.volumes import LoadVolumed

SHEARED = np.array(
    [[1.113, 0.207, 0.013, -2.71], [-0.151, 0.907, 0.303, 1.37], [0.053, -0.257, 1.301, 3.14], [0, 0, 0, 1]]
)


def random_labels(shape: tuple[int, ...] = (9, 8, 7), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 6, shape).astype(np.uint8)


def save(values: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def test_same_grid_gives_the_labels_themselves() -> None:
    labels = random_labels()
    assert np.array_equal(labels_on_grid(labels, SHEARED, labels.shape, SHEARED), labels)


def test_other_voxel_order_of_the_same_grid_loses_nothing() -> None:
    labels = random_labels()
    stored = nibabel.Nifti1Image(labels, SHEARED)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(SHEARED), nibabel.orientations.axcodes2ornt("PIR")
    )
    turned = stored.as_reoriented(turn)
    assert turned.shape != labels.shape
    found = labels_on_grid(labels, SHEARED, turned.shape, turned.affine)
    assert np.array_equal(found, np.asarray(turned.dataobj))


def test_nearest_label_agrees_with_scipy_and_is_zero_outside() -> None:
    labels, affine = random_labels((12, 11, 10)), np.diag([1.0, 1.5, 2.0, 1.0])
    shape = (14, 13, 15)
    found = labels_on_grid(labels, affine, shape, SHEARED)
    matrix = np.linalg.inv(affine) @ SHEARED
    border = np.pad(labels, 1)  # then scipy need not know of an outside
    expected = ndimage.affine_transform(border, matrix[:3, :3], matrix[:3, 3] + 1, shape, order=0)
    assert found.dtype == labels.dtype
    assert 0.2 < (expected > 0).mean() < 0.9
    assert np.array_equal(found, expected)


def test_reference_comes_onto_the_native_grid_of_the_scan(tmp_path: Path) -> None:
    labels = random_labels((10, 9, 8))
    scan = save(
        np.random.default_rng(1).random(labels.shape, np.float32), np.diag([-1.5, 1.0, 2.0, 1]), tmp_path / "s.nii"
    )
    coarse = np.repeat(np.repeat(np.repeat(labels, 2, 0), 2, 1), 2, 2)  # the same world, half the voxel size
    fine = np.diag([-0.75, 0.5, 1.0, 1])
    fine[:3, 3] = [0.375, -0.25, -0.5]
    reference = save(coarse, fine, tmp_path / "l.nii")
    data = ToNetworkGridd("image")(LoadVolumed("image")({"image": str(scan), "label": str(reference)}))
    out = LoadReferenceLabelsd("label", "image", {1: 2, "2": 1, 3: 3})(data)
    assert isinstance(out["label"], MetaTensor)
    assert out["label"].shape == (1, 10, 9, 8)
    assert out["label"].dtype == torch.uint8
    expected = np.select([labels == 1, labels == 2, labels == 3], [2, 1, 3], 0)
    assert np.array_equal(out["label"][0].numpy(), expected)
    torch.testing.assert_close(out["label"].affine, torch.diag(torch.tensor([-1.5, 1.0, 2.0, 1.0])).double())
    assert data["label"] == str(reference)


def test_reference_with_fractions_is_refused(tmp_path: Path) -> None:
    scan = save(random_labels((4, 4, 4)).astype(np.float32), np.eye(4), tmp_path / "s.nii")
    blurred = save(random_labels((4, 4, 4)) / 2, np.eye(4), tmp_path / "blurred.nii")
    data = ToNetworkGridd("image")(LoadVolumed("image")({"image": str(scan), "label": str(blurred)}))
    with pytest.raises(VolumeError, match=r"blurred\.nii: holds numbers that are not whole"):
        LoadReferenceLabelsd("label", "image", {1: 1})(data)


def test_absent_reference_is_skipped_only_where_allowed(tmp_path: Path) -> None:
    scan = save(random_labels((4, 4, 4)).astype(np.float32), np.eye(4), tmp_path / "s.nii")
    data = ToNetworkGridd("image")(LoadVolumed("image")({"image": str(scan)}))
    assert "label" not in LoadReferenceLabelsd("label", "image", {1: 1}, allow_missing_keys=True)(data)
    with pytest.raises(KeyError):
        LoadReferenceLabelsd("label", "image", {1: 1})(data)


def test_labels_come_to_the_network_grid_for_training(tmp_path: Path) -> None:
    labels = random_labels((10, 8, 6))
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    path = save(labels, affine, tmp_path / "labels.nii.gz")
    scan = save(labels.astype(np.float32), affine, tmp_path / "scan.nii.gz")
    item = ToNetworkGridd("image", 1.0)(LoadVolumed("image")({"image": str(scan), "label": str(path)}))
    out = LoadReferenceLabelsd("label", "image", on_network_grid=True)(item)
    assert out["label"].shape == out["image"].shape == (1, 10, 8, 12)
    assert torch.equal(out["label"].affine, out["image"].affine)
    twice = np.repeat(labels[::-1], 2, axis=2)  # each slice of 2 mm is two of 1 mm
    assert np.array_equal(out["label"][0].numpy(), twice)


def test_numbers_beyond_the_labels_are_refused(tmp_path: Path) -> None:
    labels = random_labels()
    path = save(labels, SHEARED, tmp_path / "labels.nii.gz")
    item = ToNetworkGridd("image", 1.0)(LoadVolumed("image")({"image": str(path), "label": str(path)}))
    with pytest.raises(VolumeError, match="labels run from 1 to 5, not within 0 to 4"):
        LoadReferenceLabelsd("label", "image", num_classes=5)(item)
    assert int(LoadReferenceLabelsd("label", "image", num_classes=6)(item)["label"].max()) == 5


def test_a_reference_that_covers_only_a_part_of_the_scan_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan = save(np.random.default_rng(0).standard_normal((9, 8, 12)).astype(np.float32), SHEARED, tmp_path / "ct.nii")
    whole = save(random_labels((9, 8, 12)), SHEARED, tmp_path / "whole.nii")
    part = save(random_labels((9, 8, 6)), SHEARED, tmp_path / "part.nii")
    load = LoadVolumed("image")
    read = LoadReferenceLabelsd("label", "image", on_network_grid=True)
    read(load({"image": scan, "label": whole}))
    assert caplog.text == ""
    found = read(load({"image": scan, "label": part}))["label"]
    assert "part.nii covers only a part of the scan" in caplog.text
    assert found[..., 6:].eq(0).all()
