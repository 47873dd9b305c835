"""Slices, their neighbours, and volumes put together from them."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from dinomed.errors import DinomedError
from dinomed.inferers import SliceInferer, slice_inputs, slices_along
from dinomed.inferers.occupancy import occupied
from dinomed.transforms.geometry import ToNetworkGridd
from dinomed.transforms.intensity import NormalisePercentilesd
from dinomed.transforms.labels import LabelsToNativeGridd

PLANES = ("sagittal", "coronal", "axial")


class Levels(nn.Module):
    """Class k is the more probable the closer the middle channel is to k; knows nothing of its surroundings."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.arange(classes, dtype=torch.float32))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, slices: Tensor) -> Tensor:
        self.sizes.append(tuple(slices.shape))
        middle = slices.shape[1] // 2
        return -3 * (slices[:, middle : middle + 1] - self.levels[:, None, None]) ** 2


def expected_probs(volume: Tensor, classes: int = 4) -> Tensor:
    return (-3 * (volume - torch.arange(classes)[:, None, None, None]) ** 2).softmax(0) * 255


def shells(shape=(20, 24, 28)) -> Tensor:
    """Values 0..3 in nested boxes, so that there are empty slices on all sides."""
    volume = torch.zeros(shape)
    for value in (1, 2, 3):
        volume[tuple(slice(value * 2, n - value * 3) for n in shape)] = value
    return volume


@pytest.mark.parametrize(("axis", "rows", "cols"), [(0, 2, 1), (1, 2, 0), (2, 1, 0)])
def test_slices_stand_upright(axis: int, rows: int, cols: int) -> None:
    volume = torch.arange(3 * 4 * 5).reshape(3, 4, 5)
    slices = slices_along(volume, axis)
    assert slices.shape == (volume.shape[axis], volume.shape[rows], volume.shape[cols])
    position = [0, 0, 0]
    position[axis], position[rows], position[cols] = 1, volume.shape[rows] - 1, 2
    assert slices[1, 0, 2] == volume[tuple(position)]  # the top row is the last position along the rows' axis


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("neighbours", [0, 1, 3])
def test_neighbours_become_channels_and_edges_repeat(axis: int, neighbours: int) -> None:
    volume = torch.rand(4, 5, 6)
    every = slices_along(volume, axis)
    indices = [0, 3, 1, 3]
    inputs = slice_inputs(volume, axis, indices, neighbours)
    assert inputs.shape == (4, 2 * neighbours + 1, *every.shape[1:])
    for n, index in enumerate(indices):
        for channel in range(2 * neighbours + 1):
            neighbour = min(max(index + channel - neighbours, 0), len(every) - 1)
            assert torch.equal(inputs[n, channel], every[neighbour])
    assert slice_inputs(volume, axis, [], neighbours).shape[0] == 0


def test_slices_that_are_not_there_are_refused() -> None:
    volume = torch.rand(4, 5, 6)
    for bad in (
        lambda: slices_along(volume[0], 0),
        lambda: slices_along(volume, 3),
        lambda: slice_inputs(volume, 0, [4]),
        lambda: slice_inputs(volume, 0, [-1]),
        lambda: slice_inputs(volume, 0, [1], -1),
    ):
        with pytest.raises(ValueError, match=r"axis|volume|positions|neighbours"):
            bad()


@pytest.mark.parametrize("planes", [("axial",), ("sagittal", "coronal"), PLANES, "coronal"])
@pytest.mark.parametrize("skip_empty", [True, False])
def test_probabilities_land_where_their_voxels_are(planes, skip_empty: bool) -> None:
    volume = shells() + 0.3 * torch.rand(20, 24, 28) * (shells() > 0)
    inferer = SliceInferer(planes, skip_empty=skip_empty, precision="float32", batch_size=3)
    probs = inferer(volume[None, None], Levels())
    assert probs.shape == (1, 4, 20, 24, 28)
    assert probs.dtype is torch.uint8
    inside = volume > 0
    expected = expected_probs(volume)
    assert (probs[0].float() - expected)[:, inside].abs().max() <= 1.6
    assert probs[0].int().sum(0).sub(255).abs().max() <= 6


def test_average_over_planes_is_the_mean_of_each() -> None:
    class Ramp(nn.Module):
        def forward(self, slices: Tensor) -> Tensor:
            rows = torch.linspace(-2, 2, slices.shape[2])[:, None].expand(slices.shape[0], 1, *slices.shape[2:])
            columns = torch.linspace(-1, 3, slices.shape[3]).expand(slices.shape[0], 1, *slices.shape[2:])
            return torch.cat([rows, columns, slices[:, 1:2]], 1)

    volume = torch.rand(1, 1, 32, 64, 96) + 0.1
    single = [SliceInferer((plane,), precision="float32")(volume, Ramp())[0].float() for plane in PLANES]
    for chosen in ((0, 1), (2, 0), (0, 1, 2)):
        planes = [PLANES[i] for i in chosen]
        mean = torch.stack([single[i] for i in chosen]).mean(0)
        averaged = SliceInferer(planes, precision="float32")(volume, Ramp())[0].float()
        assert (averaged - mean).abs().max() <= 1.6


def test_certain_probabilities_never_overflow() -> None:
    class Certain(nn.Module):
        def forward(self, slices: Tensor) -> Tensor:
            return torch.stack([slices[:, 1] * 0 - 90, slices[:, 1] * 0 + 90], 1)

    for planes in (("axial",), ("axial", "coronal"), PLANES):
        probs = SliceInferer(planes, skip_empty=False)(torch.rand(1, 1, 5, 6, 7), Certain())
        assert (probs[:, 1] == 255).all()
        assert (probs[:, 0] == 0).all()


def test_empty_slices_are_skipped_and_certainly_background() -> None:
    network, done = Levels(), []
    volume = torch.full((40, 30, 50), -1.5)
    volume[10:20, 5:25, 8:40] = 2
    probs = SliceInferer(progress=lambda i, n: done.append((i, n)), precision="float32", batch_size=7)(
        volume[None, None], network
    )
    assert sum(size[0] for size in network.sizes) == 10 + 20 + 32
    assert done[-1] == (62, 62)
    outside = torch.ones(40, 30, 50, dtype=torch.bool)
    outside[10:20, 5:25, 8:40] = False
    # Within a slice that is run, what is around the box is decided by the network.
    assert (probs[0, 0][:10, :5][:, :, :8] == 255).all()
    assert (probs[0, 1:][:, :10, :5, :8] == 0).all()
    assert (probs[0, 2][~outside] > 200).all()
    everything = Levels()
    SliceInferer(skip_empty=False)(volume[None, None], everything)
    assert sum(size[0] for size in everything.sizes) == 120


def test_an_empty_volume_is_background_at_the_cost_of_one_slice() -> None:
    network = Levels()
    probs = SliceInferer()(torch.full((1, 1, 8, 9, 10), 3.0), network)
    assert (probs[0, 0] == 255).all()
    assert (probs[0, 1:] == 0).all()
    assert len(network.sizes) == 1


def test_slices_that_hold_anything_are_run_whole() -> None:
    network = Levels()
    volume = torch.zeros(256, 300, 8)
    volume[60:180, 20:200, 2:6] = 2.0
    probs = SliceInferer(("axial",), precision="float32")(volume[None, None], network)
    assert network.sizes == [(4, 3, 320, 256)]
    assert (probs[0, 2, 60:180, 20:200, 2:6] > 200).all()
    assert (probs[0, 0, ..., :2] == 255).all()
    assert (probs[0, 0, ..., 6:] == 255).all()


def test_slices_are_padded_with_emptiness_to_a_multiple_of_32() -> None:
    seen = []

    class Spy(Levels):
        def forward(self, slices: Tensor) -> Tensor:
            seen.append(slices)
            return super().forward(slices)

    volume = torch.rand(1, 1, 33, 20, 2) + 1
    volume[0, 0, 0, 0, 0] = -7.0
    probs = SliceInferer(("axial",), precision="float32")(volume, Spy())
    (slices,) = seen
    assert slices.shape == (2, 3, 32, 64)
    assert (slices[:, :, 20:] == -7).all()
    assert (slices[:, :, :, 33:] == -7).all()
    assert (probs[0].float() - expected_probs(volume[0])).abs().max() <= 0.51 + 255 * 1e-5


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_speckles_in_the_air_do_not_count(noise: float) -> None:
    volume = (torch.rand(60, 70, 80, generator=torch.Generator().manual_seed(0)) < noise / 10).float()
    volume[20:30, 25:40, 30:50] = 1
    for marks, size, (first, stop) in zip(
        occupied(volume, 0.0), volume.shape, [(20, 30), (25, 40), (30, 50)], strict=True
    ):
        assert marks.shape == (size,)
        used = torch.nonzero(marks).flatten()
        assert abs(int(used[0]) - first) <= 1
        assert abs(int(used[-1]) + 1 - stop) <= 1
        assert marks[first:stop].all()


def test_thin_things_count_where_there_is_nothing_else() -> None:
    volume = torch.zeros(10, 12, 14)
    volume[4, 5, 6:9] = 1
    assert [torch.nonzero(marks).flatten().tolist() for marks in occupied(volume, 0.0)] == [[4], [5], [6, 7, 8]]
    assert all(marks.all() for marks in occupied(torch.ones(1, 4, 5), 0.0))


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_size_changes_nothing_but_rounding(batch_size: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    volume = torch.rand(1, 1, 33, 20, 17)
    reference = SliceInferer(precision="float32", batch_size=8)(volume, network)
    other = SliceInferer(precision="float32", batch_size=batch_size)(volume, network)
    assert (reference.int() - other.int()).abs().max() <= 1


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_inside_large_slices_cover_them_seamlessly(overlap: float) -> None:
    network = Levels()
    volume = torch.rand(1, 1, 150, 100, 4) * 3
    probs = SliceInferer(("axial",), window=64, overlap=overlap, precision="float32")(volume, network)
    assert all(size[2:] == (64, 64) for size in network.sizes)
    assert max(size[0] for size in network.sizes) <= 8
    assert (probs[0].float() - expected_probs(volume[0])).abs().max() <= 0.6


def test_a_window_larger_than_the_slice_changes_nothing() -> None:
    volume = torch.rand(1, 1, 40, 30, 4)
    whole = SliceInferer(window=None, precision="float32")(volume, Levels())
    assert torch.equal(SliceInferer(window=512, precision="float32")(volume, Levels()), whole)


def test_bfloat16_agrees_with_float32() -> None:
    volume = torch.rand(1, 1, 12, 14, 16) * 3
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    exact = SliceInferer(precision="float32")(volume, network)
    rounded = SliceInferer(precision="bfloat16")(volume, network)
    assert not torch.equal(exact, rounded)
    assert (exact.int() - rounded.int()).abs().max() <= 3
    assert all(p.dtype is torch.float32 for p in network.parameters())


def test_each_volume_of_a_batch_is_its_own() -> None:
    volumes = torch.stack([shells(), shells() * 0.5 + 1])[:, None]
    both = SliceInferer(precision="float32")(volumes, Levels())
    for one, volume in zip(both, volumes, strict=True):
        assert torch.equal(one, SliceInferer(precision="float32")(volume[None], Levels())[0])


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (torch.rand(1, 4, 5, 6), "shape"),
        (torch.rand(1, 3, 4, 5, 6), "shape"),
        (torch.rand(1, 1, 4, 0, 6), "shape"),
        (torch.ones(1, 1, 4, 5, 6, dtype=torch.int16), "floating point"),
    ],
)
def test_inputs_that_are_no_volume_are_refused(inputs: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SliceInferer()(inputs, Levels())


@pytest.mark.parametrize(
    "arguments",
    [
        {"planes": ()},
        {"planes": ("axial", "axial")},
        {"planes": ("oblique",)},
        {"precision": "half"},
        {"batch_size": 0},
        {"neighbours": -1},
        {"overlap": 1.0},
        {"window": 0},
    ],
)
def test_arguments_out_of_range_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match=r"planes|precision|batch_size|overlap"):
        SliceInferer(**arguments)


def test_a_network_that_gives_something_else_is_refused() -> None:
    volume = torch.rand(1, 1, 4, 5, 6)
    with pytest.raises(ValueError, match="logits"):
        SliceInferer()(volume, lambda slices: slices[:, :, ::2])
    with pytest.raises(ValueError, match="logits"):
        SliceInferer()(volume, lambda slices: (slices,))
    with pytest.raises(DinomedError, match="not finite"):
        SliceInferer()(volume, lambda slices: slices * float("nan"))


def test_the_result_may_be_changed_in_place_and_carries_meta_data() -> None:
    image = MetaTensor(torch.rand(1, 1, 4, 5, 6), affine=torch.eye(4) * 2)
    probs = SliceInferer()(image, Levels())
    assert isinstance(probs, MetaTensor)
    assert torch.equal(probs.affine, image.affine)
    probs += 1
    assert type(SliceInferer()(image.as_tensor(), Levels())) is Tensor


def test_it_works_inside_monais_evaluator_with_decollated_postprocessing() -> None:
    volume = shells((12, 14, 16))
    affine = torch.diag(torch.tensor([-1.0, 1.0, 0.5, 1.0], dtype=torch.float64))
    names = ["a.nii", "b.nii"]
    items = [
        {"image": MetaTensor(volume[None] * (n + 1), affine=affine, meta={"filename_or_obj": name})}
        for n, name in enumerate(names)
    ]
    loader = DataLoader(Dataset(items, ToNetworkGridd("image")), batch_size=2)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=Levels(),
        inferer=SliceInferer(precision="float32"),
        postprocessing=Compose([LabelsToNativeGridd()]),
    )
    evaluator.run()
    outputs = evaluator.state.output
    assert [out["pred"].meta["filename_or_obj"] for out in outputs] == names
    for n, out in enumerate(outputs):
        assert out["pred"].shape == (1, 12, 14, 16)
        assert torch.equal(out["pred"].affine, affine)
        assert int(out["pred"].meta["voxel_counts"].sum()) == volume.numel()
        assert volume[3, 7, 8] == 1
        assert out["pred"][0, 3, 7, 8] == n + 1
        assert out["pred"][0, 0, 0, 0] == 0


def segment(image: MetaTensor, spacing_mm: float = 1.0) -> MetaTensor:
    """Run the whole path with a network that sees its surroundings and tells left from right."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2)).eval()
    data = ToNetworkGridd("image", spacing_mm)({"image": image})
    data = NormalisePercentilesd("image")(data)
    data["pred"] = SliceInferer(precision="float32")(data["image"][None], network)[0]
    return LabelsToNativeGridd()(data)["pred"]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.6, 0.8, 2.5)])
def test_all_48_voxel_orders_of_one_scan_get_bitwise_the_same_labels(spacing_mm: tuple[float, ...]) -> None:
    shape = (24, 21, 9)
    array = np.random.default_rng(0).gamma(2.0, size=shape).astype(np.float32)
    where = np.arange(array.size).reshape(shape)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, :3] = Rotation.from_euler("xyz", [10, -15, 20], degrees=True).as_matrix() @ affine[:3, :3]
    reference = None
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        order = np.array([[axes.index(i), signs[axes.index(i)]] for i in range(3)])
        stored = np.asfortranarray(nib.orientations.apply_orientation(array, order))
        stored_affine = affine @ nib.orientations.inv_ornt_aff(order, shape)
        labels = segment(MetaTensor(torch.from_numpy(stored)[None], affine=torch.from_numpy(stored_affine)))
        assert labels.shape[1:] == stored.shape
        original = np.empty(shape, np.uint8)
        original.flat[nib.orientations.apply_orientation(where, order).ravel()] = labels[0].numpy().ravel()
        reference = original if reference is None else reference
        np.testing.assert_array_equal(original, reference)
    assert len(np.unique(reference)) > 1


def test_six_stored_voxel_orders_of_one_brain_get_the_same_labels_in_world_space(data_dir: Path) -> None:
    canonical = {}
    for order in ("RAS", "LPS", "PIR", "ASL", "SRA", "IAL"):
        scan = nib.load(data_dir / "geometry" / f"{order}.nii.gz")
        array = np.asarray(scan.dataobj, dtype=np.float32)
        labels = segment(
            MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(scan.affine)), spacing_mm=3.0
        )
        assert tuple(labels.shape[1:]) == scan.shape
        np.testing.assert_array_equal(labels.affine.numpy(), scan.affine)
        canonical[order] = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(labels[0].numpy(), scan.affine)).dataobj)
    assert all(np.array_equal(labels, canonical["RAS"]) for labels in canonical.values())
    assert len(np.unique(canonical["RAS"])) > 1


@pytest.mark.gpu
def test_volume_on_the_cpu_and_network_on_the_gpu() -> None:
    volume = shells()[None, None]
    on_gpu = SliceInferer(precision="float32")(volume, Levels().cuda())
    assert on_gpu.device.type == "cpu"
    assert (on_gpu.int() - SliceInferer(precision="float32")(volume, Levels()).int()).abs().max() <= 1


MEMORY_PROGRAM = """
import sys, threading
import torch
from torch import nn
from monai.data import MetaTensor
from dinomed.inferers import SliceInferer
from dinomed.transforms.geometry import ToNetworkGridd
from dinomed.transforms.intensity import FixedGammad, NormalisePercentilesd
from dinomed.transforms.labels import LabelsToNativeGridd

def peak_gib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20

torch.manual_seed(0)
network = nn.Conv2d(3, 8, 3, padding=1).eval()
spacing_mm = float(sys.argv[1])
SliceInferer()(torch.rand(1, 1, 32, 32, 32), network)
loaded = peak_gib()
affine = torch.diag(torch.tensor([-spacing_mm, -spacing_mm, spacing_mm, 1.0], dtype=torch.float64))
values = torch.empty(400, 512, 512).permute(2, 1, 0)  # in memory as a file stores it
for plane in values.unbind(2):
    plane.copy_(torch.rand(512, 512))
data = {"image": MetaTensor(values[None], affine=affine)}
del values, plane
for transform in (ToNetworkGridd("image"), NormalisePercentilesd("image"), FixedGammad("image")):
    data = transform(data)
data["pred"] = SliceInferer(("axial",))(data["image"][None], network)[0]
data = LabelsToNativeGridd()(data)
assert data["pred"].shape == (1, 512, 512, 400)
print(peak_gib() - loaded)
"""


@pytest.mark.slow
@pytest.mark.parametrize("spacing_mm", [1.0, 0.5])
def test_a_large_scan_of_eight_classes_stays_within_two_and_a_half_gigabytes(
    spacing_mm: float, repository: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(spacing_mm)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) * 2**30 / 1e9 <= 2.5
