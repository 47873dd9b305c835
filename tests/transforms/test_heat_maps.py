"""Heat maps on the CT's own voxels."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from dinomed.data.features import FeatureExtractor, FeatureSettings
from dinomed.errors import InputError, OutputError
from dinomed.networks import create_backbone
from dinomed.transforms.heat_map_kinds import HEAT_MAP_KINDS, SIMILARITY
from dinomed.transforms.heat_maps import (
    HeatMap,
    canonical_positions,
    extent_mm,
    heat_volume,
    pixel_mm,
    slice_grid,
    upright_slices,
    upright_values,
    write_heat_volume,
)
from dinomed.transforms.similarity_map import check_reference
from dinomed.transforms.slice_boxes import SliceBox
from dinomed.transforms.volume_reading import Grid, read_grid, read_volume

SHAPE = (26, 34, 9)  # columns, rows, slices of the canonical scan
ORDERS = [(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)]
OBLIQUE = np.array([[0.7, -0.06, 0.3, -31.0], [0.05, 0.5, 0.9, 12.0], [-0.02, -0.1, 4.8, 77.0], [0, 0, 0, 1.0]])


def grid_of(affine=OBLIQUE, shape=SHAPE) -> Grid:
    return Grid(shape, affine, "nifti")


def reordered(axes, flips, affine=OBLIQUE, shape=SHAPE):
    """The same scan with its axes stored in another order: its grid, and how an array is turned the same way."""
    steps = np.zeros((4, 4))
    steps[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        steps[old, new] = -1.0 if flip else 1.0
        steps[old, 3] = shape[old] - 1 if flip else 0.0

    def turn(array):
        return np.flip(array.transpose(axes), [new for new in range(3) if flips[new]])

    return grid_of(affine @ steps, tuple(shape[old] for old in axes)), turn


def make_map(grid: Grid, canonical=(2, 7, 0), size=(48, 40), seed=0, **more) -> HeatMap:
    """A map of random values on slices counted from the feet up."""
    cells = tuple(-(-pixels // 16) for pixels in size)
    values = np.random.default_rng(seed).normal(size=(len(canonical), *cells)).astype(np.float32)
    return HeatMap("occlusion", "any", np.array(canonical_positions(canonical, grid)), values, size, **more)


def test_all_48_voxel_orders_of_a_scan_get_the_same_voxels() -> None:
    wanted = heat_volume(make_map(grid_of()), grid_of())
    assert np.abs(wanted).max() > 0
    for axes, flips in ORDERS:
        grid, turn = reordered(axes, flips)
        found = heat_volume(make_map(grid), grid)
        assert found.dtype == np.float32
        assert found.shape == grid.shape
        assert np.array_equal(found, turn(wanted)), (axes, flips)


@pytest.mark.parametrize(
    "affine",
    [np.diag([0.5, 0.5, 5.0, 1.0]), OBLIQUE, np.array([[1, 0, 0, 0], [0, 1, 0.6, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])],
    ids=["straight", "oblique", "gantry tilt"],
)
def test_a_cell_lands_where_the_backbone_saw_it(affine) -> None:
    """The first cell of a slice lies in front and on the patient's left, the last behind and on the right."""
    for axes, flips in ORDERS[::5]:
        grid, _ = reordered(axes, flips, affine)
        first, last = np.zeros((2, 1, 2, 2), np.float32)
        first[0, 0, 0], last[0, 1, 1] = 1.0, 1.0
        centres = []
        for values in (first, last):
            heat = HeatMap("gradient", "any", np.array(canonical_positions([6], grid)), values, (32, 32))
            volume = heat_volume(heat, grid)
            places = np.argwhere(volume == volume.max())
            centres.append((grid.affine[:3, :3] @ places.mean(axis=0)) + grid.affine[:3, 3])
        step = centres[1] - centres[0]
        assert step[0] > 0, "columns run to the patient's right"
        assert step[1] < 0, "rows run to the back"


def test_maps_follow_what_the_extractor_shows_the_backbone() -> None:
    """Cells of the mean of each patch lie, on the scan's own voxels, on the values that they were made of."""
    torch.manual_seed(0)
    shape = (64, 48, 5)
    smooth = np.indices(shape).astype(np.float32)
    scan = 200 * np.sin(smooth[0] / 9.0 + 1) + 150 * np.cos(smooth[1] / 7.0) + 40 * smooth[2]
    backbone = create_backbone("dinov3_vits16", embed_dim=32, depth=1, num_heads=2)
    extractor = FeatureExtractor(backbone, FeatureSettings(resize=None), precision="float32")
    for axes, flips in ORDERS[::7]:
        grid, turn = reordered(axes, flips, shape=shape)
        array = np.ascontiguousarray(turn(scan))
        native = extractor.extract_volume(array, grid.affine).indices[[1, 4]]
        places = canonical_positions(native, grid)
        assert places == [1, 4]
        batch = extractor.slice_batch(slice_grid(grid).canonical_view(array)[:, :, places])
        cells = torch.nn.functional.avg_pool2d(batch[:, :1], 4)[:, 0].numpy()
        heat = HeatMap("occlusion", None, native, cells, (48, 64), cell_px=4)
        volume = heat_volume(heat, grid)
        seen = batch[:, 0].numpy()
        upright = upright_slices(volume, grid, native)
        assert np.corrcoef(upright.ravel(), seen.ravel())[0, 1] > 0.99
        hu = upright_slices(array, grid, native)
        assert np.corrcoef(upright[0].ravel(), hu[0].ravel())[0, 1] > 0.99


def test_maps_of_slices_that_are_no_squares_lie_where_the_whole_ones_do() -> None:
    """A lump keeps its place in mm when its scan is cropped, or when its pixels become oblong."""
    torch.manual_seed(0)
    backbone = create_backbone("dinov3_vits16", embed_dim=32, depth=1, num_heads=2)
    extractor = FeatureExtractor(backbone, FeatureSettings(resize=64), precision="float32")
    x, y = np.indices((64, 64)).astype(np.float64)
    lump = np.repeat((1600 * np.exp(-((x - 40) ** 2 + (y - 22) ** 2) / 60) - 1000)[..., None], 3, axis=2)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    cropped = affine.copy()
    cropped[0, 3] = 2 * 18
    oblong = np.diag([2.0, 8.0, 5.0, 1.0])
    oblong[1, 3] = 3.0  # every four rows become one
    scans = (
        (lump, affine, (0, 0, 64, 64)),
        (lump[18:52], cropped, (0, 15, 64, 34)),
        (lump.reshape(64, 16, 4, 3).mean(axis=2), oblong, (0, 0, 64, 64)),
        (lump[:, :32], affine, (16, 0, 32, 64)),
    )
    for array, to_mm, wanted in scans:
        grid = grid_of(to_mm, array.shape)
        hu = np.ascontiguousarray(array, np.float32)
        box = extractor.slice_box((array.shape[1], array.shape[0]), pixel_mm(grid))
        assert box == SliceBox(*wanted)
        seen = extractor.seen_slices(slice_grid(grid).canonical_view(hu)[:, :, [1]], pixel_mm(grid))
        cells = torch.nn.functional.avg_pool2d(seen[:, :1] - extractor.air[:, :1], 4)[:, 0].numpy()
        heat = HeatMap("occlusion", None, np.array([1]), cells, (64, 64), cell_px=4, box=box)
        volume = heat_volume(heat, grid)
        weights = np.where(volume > volume.max() / 4, volume, 0)
        centre = (np.indices(volume.shape) * weights).sum(axis=(1, 2, 3)) / weights.sum()
        np.testing.assert_allclose((to_mm[:3, :3] @ centre + to_mm[:3, 3])[:2], (80, 44), atol=1.0)
        assert extent_mm(4, heat.place.size, grid) == pytest.approx((8, 8), rel=0.01)


def test_a_pictures_scale_leaves_the_air_beside_a_slice_out() -> None:
    values = np.zeros((1, 4, 4), np.float32)
    values[0, 0, 0], values[0, 2, 1] = 9.0, 1.0
    heat = HeatMap("rollout", None, np.array([0]), values, (64, 64), box=SliceBox(0, 20, 64, 24))
    assert heat.inside.shape == (1, 4, 2)
    assert heat.inside.max() == 1.0
    for row, column in ((0, 0), (3, 3)):
        with pytest.raises(InputError, match=r"row in 0\.\.3 and col in 1\.\.2"):
            check_reference(row, column, heat.place, 16)
    check_reference(3, 2, heat.place, 16)


def test_slices_without_a_map_are_zero() -> None:
    grid = grid_of()
    heat = make_map(grid, (1, 2, 6))
    volume = heat_volume(heat, grid)
    assert [index for index in range(SHAPE[2]) if volume[:, :, index].any()] == [1, 2, 6]


def test_cells_are_spread_as_a_bilinear_resize_does() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for size in ((30, 25), (48, 80), (7, 4)):
        found = upright_values(values, size, SliceBox(0, 0, 48, 80), 16)
        wanted = torch.nn.functional.interpolate(
            torch.from_numpy(values)[None, None], size, mode="bilinear", align_corners=False
        )
        np.testing.assert_allclose(found, wanted[0, 0], atol=1e-6)


def test_cells_that_reach_into_the_padding_keep_their_place() -> None:
    """An image of 40 pixels has 3 cells of 16; the third lies half beyond it."""
    values = np.array([[0.0, 1.0, 2.0]], np.float32)  # a ramp: the value at pixel x is (x + 0.5) / 16 - 0.5
    found = upright_values(values, (1, 40), SliceBox(0, 0, 16, 40), 16)[0]
    wanted = np.clip((np.arange(40) + 0.5) / 16 - 0.5, 0, 2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    single = upright_values(np.full((1, 1), 3.0, np.float32), (5, 6), SliceBox(0, 0, 10, 12), 16)
    np.testing.assert_array_equal(single, np.full((5, 6), 3.0))


def test_sizes_in_mm_follow_the_slice_whatever_the_order() -> None:
    affine = np.diag([0.5, 0.75, 5.0, 1.0])
    for axes, flips in ORDERS[::7]:
        grid, _ = reordered(axes, flips, affine)
        assert pixel_mm(grid) == (0.75, 0.5)
        assert extent_mm(16, (68, 52), grid) == pytest.approx((16 * 0.75 / 2, 16 * 0.5 / 2))


@pytest.mark.parametrize("name", ["RAS", "LPS", "PIR", "ASL", "SRA", "IAL", "shear"])
def test_files_lie_on_the_grid_of_real_scans(name: str, data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "geometry" / f"{name}.nii.gz"
    grid = read_grid(path)
    count = slice_grid(grid).shape[2]
    volume = heat_volume(make_map(grid, (count // 3, count // 2), (224, 224)), grid)
    write_heat_volume(volume, grid, tmp_path / "heat.nii.gz")
    ours, theirs = nibabel.load(tmp_path / "heat.nii.gz"), nibabel.load(path)
    assert ours.get_data_dtype() == np.float32
    assert ours.shape == theirs.shape[:3]
    np.testing.assert_array_equal(np.asarray(ours.dataobj), volume)
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert ours.header[field] == theirs.header[field]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["heat.nii.gz"]


def test_one_brain_in_six_voxel_orders_gets_one_map(data_dir: Path) -> None:
    found = []
    for name in ("RAS", "LPS", "PIR", "ASL", "SRA", "IAL"):
        path = data_dir / "geometry" / f"{name}.nii.gz"
        grid = read_grid(path)
        count = slice_grid(grid).shape[2]
        native = np.array(canonical_positions([count // 2], grid))
        brain = upright_slices(read_volume(path).array, grid, native)
        volume = heat_volume(make_map(grid, (count // 2,), (224, 224)), grid)
        found.append((brain, upright_slices(volume, grid, native)))
    for brain, heat in found[1:]:
        assert np.corrcoef(brain.ravel(), found[0][0].ravel())[0, 1] > 0.95
        np.testing.assert_array_equal(heat, found[0][1])


def test_other_formats_get_a_sform_and_nifti_2_stays(tmp_path: Path) -> None:
    grid = grid_of()
    write_heat_volume(np.ones(SHAPE, np.float32), grid, tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert int(image.header["sform_code"]) == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    nibabel.save(nibabel.Nifti2Image(np.ones(SHAPE, np.int16), OBLIQUE), tmp_path / "two.nii.gz")
    write_heat_volume(np.ones(SHAPE, np.float32), read_grid(tmp_path / "two.nii.gz"), tmp_path / "b.nii.gz")
    assert isinstance(nibabel.load(tmp_path / "b.nii.gz"), nibabel.Nifti2Image)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    values = np.zeros((2, 3, 3), np.float32)
    with pytest.raises(ValueError, match="choose from rollout, gradient, occlusion"):
        HeatMap("saliency", None, np.array([0, 1]), values, (48, 48))
    with pytest.raises(ValueError, match=r"they must be \(slices, 2, 3\) with cells of 16 pixels"):
        HeatMap("rollout", None, np.array([0, 1]), values, (32, 48))
    with pytest.raises(ValueError, match="names no slice, or one twice"):
        HeatMap("rollout", None, np.array([1, 1]), values, (48, 48))
    with pytest.raises(ValueError, match="no finite numbers"):
        HeatMap("rollout", None, np.array([0, 1]), values + np.nan, (48, 48))
    with pytest.raises(ValueError, match=r"slices must lie in 0\.\.8, not \[9\]"):
        canonical_positions([9], grid_of())
    with pytest.raises(ValueError, match="does not fit a grid of 26 x 34 x 9"):
        write_heat_volume(np.zeros((2, 2, 2), np.float32), grid_of(), tmp_path / "a.nii.gz")
    with pytest.raises(OutputError, match=r"let it end with \.nii\.gz"):
        write_heat_volume(np.zeros(SHAPE, np.float32), grid_of(), tmp_path / "a.png")
    with pytest.raises(OutputError, match="there is no such folder"):
        write_heat_volume(np.zeros(SHAPE, np.float32), grid_of(), tmp_path / "none" / "a.nii.gz")


def test_every_kind_says_what_it_is_and_is_not() -> None:
    for kind in (*HEAT_MAP_KINDS.values(), SIMILARITY):
        assert "no segmentation" in kind.what_it_is_not
        assert "no probability" in kind.what_it_is_not
        assert "Values" in kind.what_it_is
    for kind in (HEAT_MAP_KINDS["rollout"], SIMILARITY):
        assert "belongs to no label" in kind.what_it_is_not
