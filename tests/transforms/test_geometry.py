"""The network grid and the way back, against SciPy, nibabel and arithmetic."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.integrate import trapezoid
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from dinomed.errors import VolumeError
from dinomed.transforms import geometry
from dinomed.transforms.geometry import (
    ToNetworkGridd,
    closest_canonical,
    match_grids,
    native_blocks,
    plan_network_grid,
    to_network_grid,
)
from dinomed.transforms.resampling import axis_taps, resample_axis

OBLIQUE = Rotation.from_euler("xyz", [12, -20, 31], degrees=True).as_matrix()
SHEAR = np.array([[1.0, 0, 0], [0, 1, 0.3], [0, 0, 1]])


def affine_of(rotation: np.ndarray, spacing_mm: tuple[float, ...], origin=(-31.0, 12.5, 7.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing_mm)
    affine[:3, 3] = origin
    return affine


def all_orders(array: np.ndarray, affine: np.ndarray):
    """Store one scan in every one of the 48 voxel orders, without touching its world space."""
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        order = np.array([[axes.index(i), signs[axes.index(i)]] for i in range(3)])
        stored = np.ascontiguousarray(nib.orientations.apply_orientation(array, order))
        yield order, stored, affine @ nib.orientations.inv_ornt_aff(order, array.shape)


def world(affine: np.ndarray, shape) -> np.ndarray:
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("degrees", [0, 10, 25])
def test_voxel_order_agrees_with_nibabel_on_all_48_orders(degrees: int) -> None:
    rotation = Rotation.from_euler("yxz", [degrees, degrees / 2, -degrees], degrees=True).as_matrix()
    for _, stored, affine in all_orders(np.zeros((2, 3, 4)), affine_of(rotation, (1.0, 0.7, 3.0))):
        axes, flips = closest_canonical(affine)
        expected = nib.io_orientation(affine)
        assert [int(np.flatnonzero(expected[:, 0] == j)[0]) for j in range(3)] == list(axes), stored.shape
        assert [expected[axis, 1] < 0 for axis in axes] == list(flips)


@pytest.mark.parametrize("angles", [(45, 0, 0), (0, 45, 0), (45, 45, 0), (90, 45, 45), (45, 35.26438968, 45)])
def test_ties_at_45_degrees_are_decided_alike_in_all_48_orders(angles: tuple[float, ...]) -> None:
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    results = []
    for _, stored, affine in all_orders(array, affine_of(rotation, (1, 1, 1))):
        axes, _ = closest_canonical(affine)
        assert sorted(axes) == [0, 1, 2]
        results.append(to_network_grid(torch.from_numpy(stored), plan_network_grid(stored.shape, affine, 1.0)))
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE, OBLIQUE @ SHEAR], ids=["straight", "oblique", "sheared"])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.6, 2.5, 1.0), (0.3, 0.45, 6.0)])
def test_all_48_voxel_orders_give_bitwise_the_same_network_grid(rotation: np.ndarray, spacing_mm) -> None:
    array = np.random.default_rng(0).normal(size=(17, 12, 5)).astype(np.float32)
    reference: torch.Tensor | None = None
    for _, stored, affine in all_orders(array, affine_of(rotation, spacing_mm)):
        grid = plan_network_grid(stored.shape, affine, 1.0)
        for layout in ("C", "F"):
            values = to_network_grid(torch.from_numpy(np.array(stored, order=layout)), grid)
            reference = values if reference is None else reference
            assert torch.equal(values, reference)
        np.testing.assert_allclose(grid.network_affine(affine)[:3, :3] / 1.0, _network_axes(rotation), atol=1e-9)


def _network_axes(rotation: np.ndarray) -> np.ndarray:
    return rotation / np.linalg.norm(rotation, axis=0)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.4, 0.8, 2.5), (3.0, 0.3, 1.3), (0.7, 6.0, 0.9995)])
@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE, OBLIQUE @ SHEAR], ids=["straight", "oblique", "sheared"])
def test_voxels_lie_where_the_affine_says(rotation: np.ndarray, spacing_mm) -> None:
    """An intensity that is a linear function of the position must stay this function of the position."""
    affine = affine_of(rotation, spacing_mm)
    shape = (31, 24, 27)
    gradient = np.array([0.7, -1.1, 0.4])
    native = (world(affine, shape) @ gradient + 5).astype(np.float32)
    grid = plan_network_grid(shape, affine, 1.0)
    values = to_network_grid(torch.from_numpy(native), grid).numpy()
    expected = world(grid.network_affine(affine), grid.shape) @ gradient + 5
    inside = tuple(slice(n // 4, n - n // 4) for n in grid.shape)
    np.testing.assert_allclose(values[inside], expected[inside], atol=2e-4)


def test_enlarging_equals_scipy_linear_interpolation() -> None:
    rng = np.random.default_rng(1)
    native = rng.normal(size=(14, 15, 6)).astype(np.float32)
    affine = affine_of(OBLIQUE @ SHEAR, (1.7, 1.2, 4.0))
    grid = plan_network_grid(native.shape, affine, 1.0)
    values = to_network_grid(torch.from_numpy(native), grid).numpy()
    where = np.linalg.solve(
        affine, np.vstack([world(grid.network_affine(affine), grid.shape).reshape(-1, 3).T, np.ones(values.size)])
    )[:3]
    expected = map_coordinates(native.astype(np.float64), where, order=1, mode="nearest").reshape(grid.shape)
    np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize("step", [1.0, 1.3, 2.0, 3.7])
def test_shrinking_averages_the_interpolated_line(step: float) -> None:
    line = np.random.default_rng(2).normal(size=40)
    taps = axis_taps(40, 9, step, 3.0)
    ours = resample_axis(torch.from_numpy(line), 0, taps).numpy()
    fine = np.linspace(-0.5, 0.5, 4001) * (step - 1)
    for j in range(9):
        expected = np.interp(3.0 + step * j + fine, np.arange(40), line)
        assert ours[j] == pytest.approx(trapezoid(expected, dx=1 / 4000), abs=1e-4)


def test_shrinking_suppresses_aliasing() -> None:
    stripes = torch.zeros(64, 8, 8)
    stripes[::2] = 1.0
    grid = plan_network_grid((64, 8, 8), np.diag([0.25, 1, 1, 1]), 1.0)
    values = to_network_grid(stripes, grid)
    assert values.shape == (16, 8, 8)
    assert (values[1:-1] - 0.5).abs().max() < 0.05


def test_equal_spacing_is_copied_not_resampled() -> None:
    volume = torch.rand(5, 6, 7)
    grid = plan_network_grid((5, 6, 7), np.diag([1.0004, 0.9996, 1, 1]), 1.0)
    values = to_network_grid(volume, grid)
    assert values.data_ptr() == volume.data_ptr()
    np.testing.assert_array_equal(grid.network_affine(np.diag([1.0004, 0.9996, 1, 1])), np.diag([1.0004, 0.9996, 1, 1]))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 2), (3, 1, 50)])
@pytest.mark.parametrize("spacing_mm", [0.3, 1.0, 6.0])
def test_short_axes_survive(shape: tuple[int, int, int], spacing_mm: float) -> None:
    grid = plan_network_grid(shape, np.diag([spacing_mm, 0.5, 2.0, 1.0]), 1.0)
    values = to_network_grid(torch.full(shape, 3.5), grid)
    assert values.shape == grid.shape
    torch.testing.assert_close(values, torch.full(grid.shape, 3.5), rtol=1e-6, atol=0)


def test_the_network_grid_covers_the_native_voxels() -> None:
    for n, size_mm in [(5, 6.0), (512, 0.3), (7, 1.4), (33, 0.7)]:
        affine = np.diag([size_mm, 1, 1, 1])
        grid = plan_network_grid((n, 4, 4), affine, 1.0)
        network = grid.network_affine(affine)
        low, high = network[0, 3] - 0.5, network[0, 3] + grid.shape[0] - 0.5
        assert low <= -size_mm / 2 + 0.01
        assert high >= (n - 0.5) * size_mm - 0.01
        assert grid.shape[0] <= n * size_mm + 1
        assert low + high == pytest.approx((n - 1) * size_mm)


def test_no_spacing_keeps_the_voxels() -> None:
    grid = plan_network_grid((5, 6, 7), np.diag([-0.3, 2, 5, 1]), None)
    assert grid.shape == (5, 6, 7)
    assert grid.flips == (True, False, False)


def test_nan_does_not_spread_through_resampling() -> None:
    volume = torch.rand(8, 8, 8) + 1
    volume[4, 4, 4] = float("nan")
    values = to_network_grid(volume, plan_network_grid((8, 8, 8), np.diag([0.5, 2, 1.5, 1]), 1.0))
    assert torch.isfinite(values).all()


def test_match_grids_recovers_the_plan_in_all_48_orders() -> None:
    affine = affine_of(OBLIQUE @ SHEAR, (0.6, 2.5, 1.0))
    maps = set()
    for _, stored, stored_affine in all_orders(np.zeros((17, 12, 5)), affine):
        plan = plan_network_grid(stored.shape, stored_affine, 1.0)
        match = match_grids(stored.shape, stored_affine, plan.shape, plan.network_affine(stored_affine))
        assert (match.axes, match.flips, match.shape) == (plan.axes, plan.flips, plan.shape)
        np.testing.assert_allclose(match.scale, plan.scale, atol=1e-8)
        np.testing.assert_allclose(match.offset, plan.offset, atol=1e-5)
        maps.add((match.scale, match.offset, match.canonical_shape))
    assert len(maps) == 1


def test_match_grids_refuses_an_oblique_grid() -> None:
    with pytest.raises(ValueError, match="oblique"):
        match_grids((4, 4, 4), np.eye(4), (4, 4, 4), affine_of(OBLIQUE, (1, 1, 1)))


@pytest.mark.parametrize("step", [0.37, 1.0, 2.6, 9.0])
def test_rounded_weights_are_whole_parts_of_32_and_sum_to_one(step: float) -> None:
    for tap in axis_taps(30, 12, step, 0.21, levels=32):
        assert sum(weight for _, weight in tap) == 1.0
        assert all(float(weight * 32).is_integer() for _, weight in tap)
        assert all(0 <= index < 30 for index, _ in tap)


def test_blocks_of_any_size_cover_the_native_grid_once() -> None:
    grid = plan_network_grid((9, 14, 5), np.diag([0.7, -0.6, 3.0, 1]), 1.0)
    probs = torch.randint(0, 256, grid.shape, dtype=torch.uint8)
    results = []
    for largest in (1, 7, 60, 10**6):
        whole = torch.full(grid.canonical_shape, -1.0)
        for block in native_blocks(grid, largest):
            assert (whole[block.where] == -1).all()
            whole[block.where] = block.resample(probs[block.source])
        results.append(whole)
    assert all(torch.equal(results[0], other) for other in results)


def test_the_way_back_interpolates_linearly_within_a_64th_of_a_voxel() -> None:
    grid = plan_network_grid((9, 14, 11), np.diag([0.7, -0.6, 0.45, 1]), 1.0)
    probs = torch.randint(0, 256, grid.shape, dtype=torch.uint8)
    (block,) = native_blocks(grid, 10**6)
    where = [(np.arange(n) - o) / s for n, o, s in zip(grid.canonical_shape, grid.offset, grid.scale, strict=True)]
    expected = map_coordinates(probs.double().numpy(), np.meshgrid(*where, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(block.resample(probs).numpy(), expected, atol=3 * 255 / 64)


def test_an_affine_without_inverse_is_refused_with_the_files_name() -> None:
    image = MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.eye(4), meta={"filename_or_obj": "flat.nii.gz"})
    image.affine = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(VolumeError, match=r"flat\.nii\.gz.*cannot be inverted"):
        ToNetworkGridd("image")({"image": image})


def test_absurd_voxel_sizes_are_refused() -> None:
    with pytest.raises(VolumeError, match="too many"):
        plan_network_grid((512, 512, 400), np.diag([500.0, 500.0, 500.0, 1.0]), 1.0)


def test_transform_keeps_both_grids_in_the_meta_data() -> None:
    affine = torch.diag(torch.tensor([-2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 4, 5, 6), affine=affine, meta={"filename_or_obj": "a.nii"})
    out = ToNetworkGridd("image")({"image": image})["image"]
    assert tuple(out.shape) == (1, 8, 5, 6)
    assert out.meta["native_shape"].tolist() == [4, 5, 6]
    assert torch.equal(out.meta["native_affine"], affine)
    assert out.meta["filename_or_obj"] == "a.nii"
    assert torch.diag(out.affine).tolist() == [1, 1, 1, 1]
    assert out.affine[0, 3] == -6.5
    assert image.meta.get("native_shape") is None
    with pytest.raises(ValueError, match="MetaTensor"):
        ToNetworkGridd("image")({"image": torch.rand(1, 4, 5, 6)})
    with pytest.raises(ValueError, match="spacing_mm"):
        ToNetworkGridd("image", spacing_mm=0)


def test_six_stored_voxel_orders_of_one_brain_meet_on_the_network_grid(data_dir: Path) -> None:
    values = {}
    for order in ("RAS", "LPS", "PIR", "ASL", "SRA", "IAL"):
        image = nib.load(data_dir / "geometry" / f"{order}.nii.gz")
        array = np.asarray(image.dataobj, dtype=np.float32)
        grid = plan_network_grid(array.shape, image.affine, 1.0)
        values[order] = (to_network_grid(torch.from_numpy(array), grid), grid.network_affine(image.affine))
    reference, reference_affine = values["RAS"]
    for order, (volume, affine) in values.items():
        assert torch.equal(volume, reference), order
        np.testing.assert_allclose(affine, reference_affine, atol=1e-3)


def test_a_network_grid_larger_than_the_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "physical_memory_bytes", lambda: 40 * 40 * 40 * 16)
    scan = MetaTensor(torch.rand(1, 10, 10, 10), affine=torch.diag(torch.tensor([4.0, 4, 4, 1])))
    assert ToNetworkGridd("image", 1.0)({"image": scan})["image"].shape == (1, 40, 40, 40)
    scan.affine = torch.diag(torch.tensor([4.0, 4, 4.2, 1]))
    with pytest.raises(VolumeError, match=r"10 x 10 x 10 voxels become 40 x 40 x 42 of 1\.0 mm, which takes"):
        ToNetworkGridd("image", 1.0)({"image": scan})
