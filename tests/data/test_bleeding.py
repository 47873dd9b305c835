"""Drawn bleedings lie where anatomy puts them, and head CTs show them in their Hounsfield units."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from dinomed.data.bleeding import (
    CALCIFIED_CLASS,
    FIRST_BLEED_CLASS,
    KINDS,
    OEDEMA_CLASS,
    SMALLEST_ML,
    HeadAnatomy,
    draw_bleedings,
    draw_mimics,
)
from dinomed.data.bleeding_scans import draw_bleeding_scan, write_bleeding_scans
from dinomed.data.bleeding_slices import DrawBleedingSlices, draw_kinds, read_anatomy
from dinomed.data.features import HEAD_WINDOWS_HU, IMAGE_MEAN, IMAGE_STD
from dinomed.data.head_tissues import CSF, EXTERNAL_CSF_CLASS, FIRST_OUTSIDE_CLASS, intensity_classes
from dinomed.data.series_table import read_series_table
from dinomed.data.synthetic_ct import draw_ct_parameters, kinds_shown, scan_slices
from dinomed.errors import InputError, VolumeError
from tests.head_maps import head_numbers, write_map

SIZE = 150


@pytest.fixture(scope="module")
def anatomy():
    return HeadAnatomy.of(intensity_classes(torch.from_numpy(head_numbers(SIZE))).numpy())


@pytest.fixture(scope="module")
def label_map(tmp_path_factory):
    return write_map(tmp_path_factory.mktemp("maps") / "head_01.nii.gz", head_numbers(SIZE))


def blood(drawn, kind):
    return drawn == FIRST_BLEED_CLASS + KINDS.index(kind)


def draw(anatomy, kind, tries=6):
    """Several drawings of one kind that hold it."""
    drawings = [draw_bleedings(anatomy, [kind], np.random.default_rng(seed)) for seed in range(tries)]
    held = [(drawn, blood(drawn, kind)) for drawn in drawings if blood(drawn, kind).any()]
    assert len(held) >= tries // 2
    return held


@pytest.mark.parametrize("kind", KINDS)
def test_every_bleeding_lies_inside_the_skull_and_is_large_enough(anatomy, kind):
    for drawn, shape in draw(anatomy, kind):
        assert (anatomy.depth_mm[shape] > 0).all()
        assert shape.sum() >= 1000 * SMALLEST_ML[kind]
        assert (drawn[~shape & (drawn != OEDEMA_CLASS)] == anatomy.classes[~shape & (drawn != OEDEMA_CLASS)]).all()


@pytest.mark.parametrize("kind", ["epidural", "subdural"])
def test_blood_between_skull_and_brain_touches_the_skull(anatomy, kind):
    touching = [(anatomy.depth_mm[shape] <= 1).sum() / shape.sum() ** (2 / 3) for _, shape in draw(anatomy, kind)]
    assert np.median(touching) > 0.3


def test_an_epidural_bleeding_is_a_lens_and_a_subdural_one_a_crescent(anatomy):
    def flatness(shape):  # thickness against extent
        extent = np.ptp(np.argwhere(shape), axis=0).max()
        return anatomy.depth_mm[shape].max() / extent

    lens = np.median([flatness(shape) for _, shape in draw(anatomy, "epidural")])
    crescent = np.median([flatness(shape) for _, shape in draw(anatomy, "subdural")])
    assert crescent < 0.7 * lens


def test_a_subdural_bleeding_stays_on_one_side(anatomy):
    for _, shape in draw(anatomy, "subdural"):
        sides = np.argwhere(shape)[:, 0] - anatomy.midline
        assert min((sides < -1).mean(), (sides > 1).mean()) == 0


def test_subarachnoid_blood_lies_in_outer_fluid_and_intraventricular_blood_in_the_ventricles(anatomy):
    for _, shape in draw(anatomy, "subarachnoid"):
        assert (anatomy.classes[shape] == EXTERNAL_CSF_CLASS).all()
    for _, shape in draw(anatomy, "intraventricular"):
        found = anatomy.classes[shape]
        assert ((found <= len(CSF)) & (found != EXTERNAL_CSF_CLASS)).all()


def test_blood_in_the_tissue_is_one_lump_with_swelling_around_it(anatomy):
    for drawn, shape in draw(anatomy, "intraparenchymal"):
        assert (anatomy.depth_mm[shape] > 4).all()
        assert ndimage.label(shape)[1] <= 3
        swollen = drawn == OEDEMA_CLASS
        if swollen.any():
            assert ndimage.distance_transform_edt(~shape)[swollen].max() < 20


def test_mimics_are_no_blood(anatomy):
    drawings = [draw_mimics(anatomy, anatomy.classes, np.random.default_rng(seed)) for seed in range(30)]
    seen = {int(value) for drawn in drawings for value in np.unique(drawn)}
    assert {CALCIFIED_CLASS, OEDEMA_CLASS} <= seen
    assert not any(FIRST_BLEED_CLASS <= value < OEDEMA_CLASS for value in seen)


def test_kinds_are_drawn_alone_and_together_and_often_not_at_all():
    generator = np.random.default_rng(0)
    counts = np.bincount([len(draw_kinds(generator)) for _ in range(2000)])
    assert counts[0] / 2000 == pytest.approx(0.4, abs=0.05)
    assert counts[1] > counts[2] > counts[3] > 0


def test_the_slices_have_the_tissues_hounsfield_units(anatomy):
    drawn = draw(anatomy, "intraparenchymal")[0][0]
    shape = blood(drawn, "intraparenchymal")
    parameters = draw_ct_parameters(np.random.default_rng(3))
    parameters = type(parameters)(
        **{**vars(parameters), "affine": torch.eye(3), "elastic_mm": torch.zeros_like(parameters.elastic_mm)}
    )
    middle = (np.array(drawn.shape) - 1) / 2
    height = float(np.median(np.argwhere(shape)[:, 2]) - middle[2])
    slices, shown = scan_slices(torch.from_numpy(drawn), parameters, [height])
    kind = KINDS.index("intraparenchymal")
    assert kinds_shown(shown, parameters.in_plane_mm)[0].tolist() == [k == kind for k in range(len(KINDS))]
    core = torch.from_numpy(ndimage.binary_erosion(shown[0].numpy() == kind + 1, iterations=2))
    assert 45 < float(slices[0][core].median()) < 85
    assert float(slices[0][0, 0]) < -900
    tissue = torch.from_numpy(ndimage.binary_dilation(core.numpy(), iterations=22)) & (shown[0] == 0)
    assert 0 < float(slices[0][tissue].median()) < 42
    centre = torch.nonzero(core).float().mean(0)
    expected = (np.argwhere(shape).mean(0) - middle)[:2] / parameters.in_plane_mm + (288 - 1) / 2
    np.testing.assert_allclose(centre.numpy(), expected, atol=6)  # first axis right, second front


def test_training_slices_are_the_same_for_the_same_state_and_half_show_the_blood(label_map):
    def slices(seed):
        make = DrawBleedingSlices([label_map], HEAD_WINDOWS_HU, IMAGE_MEAN, IMAGE_STD, 6, 4, size=96)
        make.set_random_state(seed)
        return make()

    first, again, other = slices(0), slices(0), slices(1)
    assert len(first) == 24
    assert first[0]["image"].shape == (3, 96, 96)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(first, other, strict=True))
    with_blood = sum(bool(item["label"].any()) for item in first + other) / 48
    assert 0.15 < with_blood < 0.8
    air = (torch.tensor([0.0, 0.0, 0.0]) - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    torch.testing.assert_close(first[0]["image"][:2, 0, 0], air[:2], atol=0.05, rtol=0)


def test_label_maps_that_cannot_be_used_are_refused(tmp_path):
    coarse = write_map(tmp_path / "coarse.nii.gz", head_numbers(32), voxel_mm=3.0)
    with pytest.raises(VolumeError, match="drawn into label maps of 1 mm"):
        read_anatomy(coarse)
    numbers = head_numbers(32)
    numbers[numbers < 500] = 0
    with pytest.raises(VolumeError, match="no tissue of the brain"):
        read_anatomy(write_map(tmp_path / "empty.nii.gz", numbers))
    with pytest.raises(InputError, match="no label maps"):
        DrawBleedingSlices([], HEAD_WINDOWS_HU, IMAGE_MEAN, IMAGE_STD)


def test_a_written_data_set_is_one_that_training_reads(label_map, tmp_path):
    table = write_bleeding_scans([label_map], tmp_path, 3, seed=5, parts={label_map.name: "test"})
    read = read_series_table(table, check="voxels")
    assert not read.problems
    assert [series.part for series in read.series] == ["test"] * 3
    image = nibabel.load(tmp_path / "scans" / "head_01_001.nii.gz")
    scan = draw_bleeding_scan(label_map, 5, 1)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), scan.array_hu)
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
    assert list(read.series[1].labels) == list(scan.labels.values())
    with (tmp_path / "slices.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["series_uid"] == "head_01_001.1"]
    assert [[int(row[kind]) for kind in KINDS] for row in rows] == scan.shown.astype(int).tolist()


def test_a_data_set_of_nothing_is_refused(label_map, tmp_path):
    with pytest.raises(InputError, match="one label map or more"):
        write_bleeding_scans([], tmp_path, 3)
    with pytest.raises(InputError, match=r"head_09.nii.gz are not among the label maps"):
        write_bleeding_scans([label_map], tmp_path, 1, parts={"head_09.nii.gz": "test"})


def test_the_skull_is_bright_and_fluid_is_dark(anatomy):
    parameters = draw_ct_parameters(np.random.default_rng(0))
    means = parameters.means_hu
    assert float(means[1]) < float(means[len(CSF) + 1])
    assert float(means[FIRST_OUTSIDE_CLASS:].max()) > 800
    assert float(means[FIRST_BLEED_CLASS:OEDEMA_CLASS].min()) > float(means[1:FIRST_OUTSIDE_CLASS].max())
