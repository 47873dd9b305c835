"""Labels on the native grid, against a dense computation, and translated label numbers."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from dinomed.transforms.geometry import ToNetworkGridd, match_grids, plan_network_grid
from dinomed.transforms.labels import LabelsToNativeGridd, MapLabelsd, decide_labels, map_labels

ROTATION = Rotation.from_euler("xyz", [12, -20, 31], degrees=True).as_matrix() @ np.array(
    [[1.0, 0, 0], [0, 1, 0.2], [0, 0, 1]]
)


def affine_of(spacing_mm: tuple[float, ...], rotation: np.ndarray = ROTATION) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing_mm)
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    return affine


def smooth_probs(classes: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, 4, 4, 4, generator=generator) * 3
    logits = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0]
    return (logits.softmax(0) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 0.8, 3.0)])
def test_labels_are_bitwise_the_same_in_world_space_for_all_48_voxel_orders(spacing_mm) -> None:
    array = np.zeros((13, 11, 6), np.float32)
    affine = affine_of(spacing_mm)
    probs = smooth_probs(5, plan_network_grid(array.shape, affine, 1.0).shape)
    reference_index = np.arange(array.size).reshape(array.shape)
    reference = None
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        order = np.array([[axes.index(i), signs[axes.index(i)]] for i in range(3)])
        stored_affine = affine @ nib.orientations.inv_ornt_aff(order, array.shape)
        stored = nib.orientations.apply_orientation(array, order)
        image = MetaTensor(torch.from_numpy(stored.copy())[None], affine=torch.from_numpy(stored_affine))
        data = ToNetworkGridd("image")({"image": image})
        labels = LabelsToNativeGridd()({**data, "pred": probs})["pred"]
        assert labels.shape == image.shape
        assert torch.equal(labels.affine, image.affine)
        original = np.empty_like(reference_index, dtype=np.uint8)
        original.flat[nib.orientations.apply_orientation(reference_index, order).ravel()] = labels[0].numpy().ravel()
        reference = original if reference is None else reference
        np.testing.assert_array_equal(original, reference)
    assert len(np.unique(reference)) == 5


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.7, 0.9), (1.0, 1.0, 1.0), (0.6, 1.0, 1.0)])
def test_labels_equal_argmax_of_linearly_interpolated_probabilities(spacing_mm) -> None:
    shape, affine = (30, 25, 20), affine_of(spacing_mm)
    grid = plan_network_grid(shape, affine, 1.0)
    probs = smooth_probs(4, grid.shape)
    where = np.linalg.solve(grid.network_affine(affine), affine)
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), 0).reshape(3, -1)
    positions = where[:3, :3] @ indices + where[:3, 3:]
    dense = np.stack([map_coordinates(p, positions, order=1, mode="nearest") for p in probs.double().numpy()])
    decided = decide_labels(probs, grid, block_voxels=700)
    expected = dense.argmax(0).reshape(shape)
    assert (decided.labels == expected).mean() > 0.995
    assert decided.voxel_counts.tolist() == np.bincount(decided.labels.ravel(), minlength=4).tolist()
    winning = dense.max(0).reshape(shape) / 255
    for label in range(4):
        assert decided.mean_confidence[label] == pytest.approx(winning[expected == label].mean(), abs=0.01)


@pytest.mark.parametrize("block_voxels", [1, 50, 333, 10**7])
@pytest.mark.parametrize("groups", [None, [[0, 3], [1, 2, 4]]])
def test_the_size_of_blocks_changes_nothing(block_voxels: int, groups) -> None:
    for spacing_mm in [(1.0, 1.0, 1.0), (0.5, 2.2, 0.9)]:
        grid = plan_network_grid((9, 8, 7), affine_of(spacing_mm), 1.0)
        probs = smooth_probs(5, grid.shape)
        reference, other = decide_labels(probs, grid, groups), decide_labels(probs, grid, groups, block_voxels)
        np.testing.assert_array_equal(other.labels, reference.labels)
        np.testing.assert_array_equal(other.voxel_counts, reference.voxel_counts)
        np.testing.assert_array_equal(other.mean_confidence, reference.mean_confidence)


def test_grouped_classes_are_added_before_deciding() -> None:
    probs = torch.tensor([100, 60, 0, 95], dtype=torch.uint8)[:, None, None, None].expand(4, 2, 2, 2)
    grid = plan_network_grid((2, 2, 2), np.eye(4), 1.0)
    assert (decide_labels(probs, grid).labels == 0).all()
    decided = decide_labels(probs, grid, [[0], [1, 3], [2]])
    assert (decided.labels == 1).all()
    assert decided.mean_confidence[1] == pytest.approx(155 / 255)
    assert np.isnan(decided.mean_confidence[[0, 2]]).all()
    full = decide_labels(
        torch.full((2, 3, 3, 3), 128, dtype=torch.uint8), plan_network_grid((3, 3, 3), np.eye(4), 1.0), [[0, 1]]
    )
    assert full.mean_confidence.tolist() == [1.0]


def test_of_equal_probabilities_the_first_class_wins() -> None:
    probs = torch.full((3, 4, 4, 4), 85, dtype=torch.uint8)
    for spacing_mm in (1.0, 0.5):
        grid = match_grids((4, 4, 4), np.diag([spacing_mm] * 3 + [1]), (4, 4, 4), np.eye(4))
        assert (decide_labels(probs, grid).labels == 0).all()


@pytest.mark.parametrize("groups", [[[0], [1]], [[0, 1], [1, 2]], [[0, 1, 2], []], [[0], [1], [2], [3]]])
def test_groups_that_lose_or_repeat_a_channel_are_refused(groups) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        decide_labels(torch.zeros(3, 2, 2, 2, dtype=torch.uint8), plan_network_grid((2, 2, 2), np.eye(4), 1.0), groups)


def test_probabilities_of_another_grid_or_type_are_refused() -> None:
    grid = plan_network_grid((2, 2, 2), np.eye(4), 1.0)
    for probs in (torch.zeros(3, 2, 2, 3, dtype=torch.uint8), torch.zeros(3, 2, 2, 2), torch.zeros(2, 2, 2).byte()):
        with pytest.raises(ValueError, match="uint8 of shape"):
            decide_labels(probs, grid)
    with pytest.raises(ValueError, match="ToNetworkGridd"):
        LabelsToNativeGridd()({"image": MetaTensor(torch.rand(1, 2, 2, 2)), "pred": torch.zeros(3, 2, 2, 2).byte()})


def test_label_map_carries_confidence_and_counts() -> None:
    image = MetaTensor(torch.rand(1, 3, 3, 3), affine=torch.eye(4), meta={"filename_or_obj": "a.nii"})
    data = ToNetworkGridd("image")({"image": image})
    probs = torch.zeros(3, 3, 3, 3, dtype=torch.uint8)
    probs[0], probs[2, 1] = 51, 204
    labels = LabelsToNativeGridd()({**data, "pred": probs})["pred"]
    assert labels.dtype is torch.uint8
    assert labels.meta["voxel_counts"].tolist() == [18, 0, 9]
    np.testing.assert_allclose(labels.meta["mean_confidence"].numpy(), [0.2, np.nan, 0.8], rtol=1e-6)
    assert labels.meta["filename_or_obj"] == "a.nii"


def test_label_numbers_are_translated() -> None:
    labels = torch.tensor([[0, 3, 42], [530, 1000, -1]])
    assert map_labels(labels, {3: 1, "42": 1, 530: 7}).tolist() == [[0, 1, 1], [7, 0, 0]]
    assert map_labels(labels.float(), {3: 1}, unlisted=9).tolist() == [[9, 1, 9], [9, 9, 9]]
    assert map_labels(labels, {}).dtype is torch.uint8


def test_label_tables_and_maps_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="whole"):
        map_labels(torch.tensor([0.5]), {1: 1})
    for table in ({-1: 1}, {1: 256}):
        with pytest.raises(ValueError, match="table"):
            map_labels(torch.tensor([1]), table)


def test_translation_keeps_the_affine() -> None:
    labels = MetaTensor(torch.tensor([[[[2, 41]]]]), affine=torch.eye(4) * 3)
    out = MapLabelsd("label", {2: 3, 41: 4})({"label": labels})["label"]
    assert out.tolist() == [[[[3, 4]]]]
    assert torch.equal(out.affine, labels.affine)
