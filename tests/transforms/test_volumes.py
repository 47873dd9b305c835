from __future__ import annotations

import gzip
import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose
from scan_samples import AFFINE, itk_image, scan_values, write_series

from dinomed.errors import OutputError, VolumeError
from dinomed.transforms.volumes import (
    Grid,
    LoadVolumed,
    case_name,
    find_volumes,
    is_volume_path,
    read_grid,
    read_volume,
    write_labels,
)

GEOMETRY = ("pixdim", "xyzt_units", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z")
QUATERNION = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")


def itk_affine(image: SimpleITK.Image) -> np.ndarray:
    """Voxel to RAS+ of a SimpleITK image, worked out from its physical points."""
    origin = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    columns = [np.array(image.TransformIndexToPhysicalPoint(tuple(map(int, unit)))) - origin for unit in np.eye(3)]
    affine = np.eye(4)
    affine[:3] = np.array([*columns, origin]).T
    return np.diag([-1, -1, 1, 1]) @ affine


# Reading


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_nifti_of_every_type_gives_the_values_that_nibabel_gives(tmp_path: Path, dtype: type, endianness: str) -> None:
    header = nibabel.Nifti1Header(endianness=endianness)
    image = nibabel.Nifti1Image(scan_values(dtype=dtype), AFFINE, header, dtype=dtype)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert volume.array.dtype == np.float32
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, scan_values(dtype=dtype))
    np.testing.assert_array_equal(volume.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)
    assert volume.format == "nifti"
    assert volume.path == tmp_path / "scan.nii.gz"


def test_stored_values_are_scaled_and_rounded_only_once(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(scan_values(), AFFINE)
    image.header.set_slope_inter(0.1, -1000.3)
    nibabel.save(image, tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[112:120] = np.array([0.1, -1000.3], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)
    stored = np.frombuffer(bytes(raw[352:]), "<i2").reshape(6, 7, 5, order="F")
    expected = (stored.astype(np.float64) * float(np.float32(0.1)) + float(np.float32(-1000.3))).astype(np.float32)
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii").array, expected)


def test_every_sample_is_read_alike_by_an_independent_reader(samples: dict[str, Path]) -> None:
    assert len(samples) >= 15
    for name, path in samples.items():
        volume = read_volume(path)
        expected = scan_values().astype(np.float32)
        if volume.format in ("nifti", "mgh"):
            np.testing.assert_allclose(volume.affine, nibabel.load(path).affine, rtol=0, atol=0, err_msg=name)
        elif volume.format in ("nrrd", "metaimage"):
            image = SimpleITK.ReadImage(str(path))
            np.testing.assert_allclose(volume.affine, itk_affine(image), rtol=0, atol=1e-12, err_msg=name)
            np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), expected)
        else:
            expected = expected * 2 - 100
        np.testing.assert_array_equal(volume.array, expected, err_msg=name)


def test_image_half_of_a_pair_names_the_same_scan_as_its_header(samples: dict[str, Path]) -> None:
    volume = read_volume(samples["pair.hdr"].with_suffix(".img"))
    np.testing.assert_array_equal(volume.array, scan_values())


@pytest.mark.parametrize("name", ["RAS", "LPS", "PIR", "ASL", "SRA", "IAL", "shear"])
def test_real_scans_agree_with_nibabel(data_dir: Path, name: str) -> None:
    path = data_dir / "geometry" / f"{name}.nii.gz"
    volume, reference = read_volume(path), nibabel.load(path)
    np.testing.assert_array_equal(volume.array, reference.get_fdata().astype(np.float32))
    np.testing.assert_array_equal(volume.affine, reference.affine)


def test_format_is_told_by_content_not_by_name(tmp_path: Path, samples: dict[str, Path]) -> None:
    for name in ("a.nii", "a.nii.gz", "a.mgz", "a.nrrd", "a.mha"):
        strange = tmp_path / f"Größe {name.replace('.', '_')}.bin"
        strange.write_bytes(samples[name].read_bytes())
        np.testing.assert_array_equal(read_volume(strange).array, scan_values())
    plain = tmp_path / "not_really.nii.gz"
    plain.write_bytes(samples["a.nii"].read_bytes())
    np.testing.assert_array_equal(read_volume(plain).array, scan_values())


def test_gzip_of_several_members_and_with_padding_is_read(tmp_path: Path, samples: dict[str, Path]) -> None:
    raw = samples["a.nii"].read_bytes()
    parts = gzip.compress(raw[:100]) + gzip.compress(raw[100:400]) + gzip.compress(raw[400:])
    (tmp_path / "parts.nii.gz").write_bytes(parts + b"\0" * 512)
    np.testing.assert_array_equal(read_volume(tmp_path / "parts.nii.gz").array, scan_values())


def test_trailing_axes_of_one_are_no_dimensions(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(scan_values()[..., None, None], AFFINE), tmp_path / "scan.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii").array, scan_values())
    assert read_grid(tmp_path / "scan.nii").shape == (6, 7, 5)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mgz"])
def test_chosen_frame_of_a_four_dimensional_file_is_read(tmp_path: Path, name: str) -> None:
    values = scan_values((6, 7, 5, 3))
    kind = nibabel.MGHImage if name.endswith("mgz") else nibabel.Nifti1Image
    nibabel.save(kind(values, AFFINE), tmp_path / name)
    for frame in range(3):
        np.testing.assert_array_equal(read_volume(tmp_path / name, frame).array, values[..., frame])
    assert read_grid(tmp_path / name).shape == (6, 7, 5)


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_nrrd_may_count_frames_along_any_axis(tmp_path: Path, axis: int) -> None:
    values = scan_values((6, 7, 5, 3))
    stored = np.moveaxis(values, 3, axis)
    directions = ["(-0.9,0.1,0.1)", "(0.1,1.1,0.2)", "(0.2,-0.3,2)"]
    directions.insert(axis, "none")
    kinds = ["domain"] * 3
    kinds.insert(axis, "list")
    header = (
        "NRRD0005\n# made by hand\ntype: int16\ndimension: 4\nspace: right-anterior-superior\n"
        f"sizes: {' '.join(map(str, stored.shape))}\nspace directions: {' '.join(directions)}\n"
        f"kinds: {' '.join(kinds)}\nendian: big\nencoding: raw\nspace origin: (30,-20,10)\nDWMRI_b-value:=1000\n\n"
    )
    (tmp_path / "scan.nrrd").write_bytes(header.encode() + stored.astype(">i2").tobytes(order="F"))
    volume = read_volume(tmp_path / "scan.nrrd", frame=2)
    np.testing.assert_array_equal(volume.array, values[..., 2])
    np.testing.assert_allclose(volume.affine, AFFINE)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_lengths_in_other_units_become_mm_and_keep_their_units_in_the_output(
    tmp_path: Path, unit: str, factor: float
) -> None:
    affine = np.diag([*np.array([1.0, 1.5, 2.0]) / factor, 1.0])
    image = nibabel.Nifti1Image(scan_values(), affine)
    image.header.set_xyzt_units(unit, "sec")
    nibabel.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_allclose(np.diag(volume.affine)[:3], [1.0, 1.5, 2.0], rtol=1e-6)
    write_labels(np.zeros((6, 7, 5), np.uint8), read_grid(tmp_path / "scan.nii"), tmp_path / "seg.nii")
    assert nibabel.load(tmp_path / "seg.nii").header.get_xyzt_units() == (unit, "sec")


def test_unknown_orientation_is_accepted_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nibabel.Nifti1Image(scan_values(), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "scan.nii")
    with caplog.at_level(logging.WARNING):
        volume = read_volume(tmp_path / "scan.nii")
    assert "no orientation" in caplog.text
    np.testing.assert_array_equal(volume.affine, nibabel.load(tmp_path / "scan.nii").affine)


def test_unknown_orientation_of_an_mgh_file_is_accepted_with_a_warning(
    tmp_path: Path, samples: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    raw = bytearray(samples["a.mgh"].read_bytes())
    raw[28:30] = b"\0\0"
    (tmp_path / "scan.mgh").write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        read_volume(samples["a.mgh"])
        assert caplog.text == ""
        volume = read_volume(tmp_path / "scan.mgh")
    assert "no orientation" in caplog.text
    np.testing.assert_array_equal(volume.affine, nibabel.load(tmp_path / "scan.mgh").affine)


def test_grid_is_that_of_the_volume(samples: dict[str, Path]) -> None:
    for path in samples.values():
        grid, volume = read_grid(path), read_volume(path)
        assert grid.shape == volume.array.shape
        assert grid.format == volume.format
        np.testing.assert_array_equal(grid.affine, volume.affine)
        assert (grid.nifti_header is not None) == (grid.format == "nifti")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_reading_needs_hardly_more_memory_than_the_result(tmp_path: Path, suffix: str) -> None:
    shape = (160, 160, 120)
    values = np.arange(np.prod(shape), dtype=np.float64).reshape(shape) % 1000
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / f"scan{suffix}")
    tracemalloc.start()
    try:
        volume = read_volume(tmp_path / f"scan{suffix}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert volume.array.nbytes > 12e6
    assert peak < volume.array.nbytes + 5e6  # the stored float64 voxels alone are 24.6 MB


def test_reading_needs_neither_torch_nor_monai() -> None:
    code = (
        "import sys, dinomed.transforms.volume_reading, dinomed.transforms.volume_folders;"
        "sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


# Writing


@pytest.mark.parametrize(("sform_code", "qform_code"), [(0, 1), (1, 0), (2, 1), (4, 4), (0, 0), (1, 3)])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("header_class", [nibabel.Nifti1Header, nibabel.Nifti2Header])
def test_label_map_keeps_every_bit_of_the_geometry(
    tmp_path: Path, sform_code: int, qform_code: int, endianness: str, header_class: type
) -> None:
    header = header_class(endianness=endianness)
    header.set_data_dtype(np.int16)
    header.set_data_shape((6, 7, 5))
    header.set_zooms((0.9, 1.1, 2.0))
    header.set_sform(AFFINE, sform_code)
    header.set_qform(np.diag([-0.9, 1.1, 2.0, 1.0]), qform_code)
    header["pixdim"][4:] = [2.5, 0.0, 3.0, 0.0]
    header["vox_offset"] = header.single_vox_offset
    header.set_xyzt_units("mm", "msec")
    with (tmp_path / "scan.nii").open("wb") as stream:
        stream.write(header.binaryblock + b"\0\0\0\0")
        stream.write(scan_values(dtype=endianness + "i2").tobytes(order="F"))
    labels = (scan_values() % 8).astype(np.uint8)
    write_labels(labels, read_grid(tmp_path / "scan.nii"), tmp_path / "seg.nii.gz")
    source, written = nibabel.load(tmp_path / "scan.nii"), nibabel.load(tmp_path / "seg.nii.gz")
    assert type(written.header) is header_class
    for name in GEOMETRY + QUATERNION:
        np.testing.assert_array_equal(written.header[name], source.header[name], err_msg=name)
    np.testing.assert_array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.uint8
    assert written.shape == source.shape
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)


def test_label_map_carries_no_text_scaling_or_extension_of_the_scan(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(scan_values(), AFFINE)
    header = image.header
    header["descrip"], header["aux_file"], header["db_name"] = b"Jane Doe", b"jane.hdr", b"doe"
    header["intent_name"], header["intent_code"] = b"jane's brain", 1002
    header["cal_max"], header["cal_min"], header["toffset"], header["slice_duration"] = 80, 5, 3, 2
    header["dim_info"], header["scl_slope"], header["scl_inter"] = 57, 2, 10
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"born 1970, Doe"))
    nibabel.save(image, tmp_path / "scan.nii")
    write_labels((scan_values() % 8).astype(np.uint8), read_grid(tmp_path / "scan.nii"), tmp_path / "seg.nii")
    raw = (tmp_path / "seg.nii").read_bytes()
    assert b"jane" not in raw.lower()
    assert b"doe" not in raw.lower()
    assert len(raw) == 352 + 6 * 7 * 5
    written = nibabel.load(tmp_path / "seg.nii").header
    assert (float(written["cal_min"]), float(written["cal_max"]), int(written["intent_code"])) == (0, 0, 0)
    stored = nibabel.Nifti1Header(raw[:348])
    assert (float(stored["scl_slope"]), float(stored["scl_inter"])) == (1, 0)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgz", "dicom"])
def test_label_map_of_other_formats_lies_on_the_same_grid(tmp_path: Path, samples: dict[str, Path], name: str) -> None:
    grid = read_grid(samples[name])
    write_labels((scan_values() % 8).astype(np.uint8), grid, tmp_path / "seg.nii.gz")
    written = nibabel.load(tmp_path / "seg.nii.gz")
    np.testing.assert_allclose(written.affine, grid.affine, rtol=1e-6, atol=1e-6)
    assert written.header.get_xyzt_units()[0] == "mm"
    assert int(written.header["sform_code"]) == 1
    if name in ("a.nrrd", "a.mha", "dicom"):  # right-angled: ITK finds the same grid
        assert int(written.header["qform_code"]) == 1
        np.testing.assert_allclose(written.header.get_qform(), grid.affine, atol=1e-4)
        image = SimpleITK.ReadImage(str(tmp_path / "seg.nii.gz"))
        np.testing.assert_allclose(itk_affine(image), grid.affine, atol=1e-4)


def test_sheared_grid_has_no_qform_that_contradicts_it(tmp_path: Path) -> None:
    write_series(tmp_path / "tilted", step_mm=(0, 0.8, 3.0))
    grid = read_grid(tmp_path / "tilted")
    write_labels(np.zeros(grid.shape, np.uint8), grid, tmp_path / "seg.nii.gz")
    header = nibabel.load(tmp_path / "seg.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(header.get_best_affine(), grid.affine, rtol=1e-6)


def test_axes_too_long_for_nifti_1_are_written_as_nifti_2(tmp_path: Path) -> None:
    grid = Grid((40000, 2, 2), np.diag([0.05, 1, 1, 1.0]), "nrrd")
    write_labels(np.ones(grid.shape, np.uint8), grid, tmp_path / "seg.nii.gz")
    assert isinstance(nibabel.load(tmp_path / "seg.nii.gz"), nibabel.Nifti2Image)
    assert nibabel.load(tmp_path / "seg.nii.gz").shape == (40000, 2, 2)


def test_same_labels_give_the_same_bytes_in_any_memory_order(tmp_path: Path, samples: dict[str, Path]) -> None:
    grid = read_grid(samples["a.nii.gz"])
    labels = (scan_values() % 8).astype(np.uint8)
    write_labels(np.ascontiguousarray(labels), grid, tmp_path / "one.nii.gz")
    write_labels(np.asfortranarray(labels), grid, tmp_path / "two.nii.gz")
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()
    raw = (tmp_path / "one.nii.gz").read_bytes()
    assert raw[:2] == b"\x1f\x8b"
    assert raw[3:8] == bytes(5), "no file name and no time in the gzip header"


def test_large_label_map_is_written_slab_by_slab_in_order(tmp_path: Path) -> None:
    grid = Grid((256, 256, 200), np.eye(4), "mgh")
    labels = (np.arange(np.prod(grid.shape)) % 251).astype(np.uint8).reshape(grid.shape)
    write_labels(labels, grid, tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "seg.nii.gz").dataobj), labels)


def test_labels_that_do_not_fit_are_our_own_mistake(tmp_path: Path, samples: dict[str, Path]) -> None:
    grid = read_grid(samples["a.nii"])
    with pytest.raises(ValueError, match=r"6 x 7 x 4.*6 x 7 x 5"):
        write_labels(np.zeros((6, 7, 4), np.uint8), grid, tmp_path / "seg.nii")
    with pytest.raises(ValueError, match="int64"):
        write_labels(np.zeros((6, 7, 5), np.int64), grid, tmp_path / "seg.nii")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_named(tmp_path: Path, samples: dict[str, Path]) -> None:
    grid = read_grid(samples["a.nii"])
    labels = np.zeros(grid.shape, np.uint8)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken.nii.gz").mkdir()
    for target, message in (
        ("nowhere/seg.nii.gz", "no such folder"),
        ("file/seg.nii.gz", "cannot be written"),
        ("taken.nii.gz", "cannot be written"),
        ("seg.nrrd", r"\.nii\.gz or \.nii"),
    ):
        with pytest.raises(OutputError, match=message) as caught:
            write_labels(labels, grid, tmp_path / target)
        assert str(tmp_path / target) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.nii.gz"]


def test_failure_while_writing_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = read_grid(samples["a.nii"])
    target = tmp_path / "seg.nii.gz"
    target.write_bytes(b"the old result")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_labels(np.zeros(grid.shape, np.uint8), grid, target)
    assert target.read_bytes() == b"the old result"
    assert list(tmp_path.iterdir()) == [target]


# Loading into MONAI


def test_load_volumed_gives_a_meta_tensor_with_its_grid(samples: dict[str, Path]) -> None:
    untouched = {"image": str(samples["a.nii.gz"]), "label": 3}
    loaded = LoadVolumed("image")(untouched)
    image = loaded["image"]
    assert isinstance(image, MetaTensor)
    assert image.shape == (1, 6, 7, 5)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy()[0], scan_values())
    expected = nibabel.load(samples["a.nii.gz"]).affine
    for name in ("affine", "original_affine"):
        assert image.meta[name].dtype == torch.float64
        np.testing.assert_array_equal(image.meta[name].numpy(), expected)
    assert image.meta["spatial_shape"].tolist() == [6, 7, 5]
    assert image.meta["space"] == "RAS"
    assert image.meta["filename_or_obj"] == str(samples["a.nii.gz"])
    assert loaded["label"] == 3
    assert untouched["image"] == str(samples["a.nii.gz"])


def test_load_volumed_reads_the_chosen_frame(tmp_path: Path) -> None:
    values = scan_values((6, 7, 5, 3))
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "scan.nii.gz")
    loaded = LoadVolumed(["image"], frame=1)({"image": tmp_path / "scan.nii.gz"})
    np.testing.assert_array_equal(loaded["image"].numpy()[0], values[..., 1])


def test_load_volumed_survives_a_monai_data_loader(samples: dict[str, Path]) -> None:
    cases = [{"image": str(samples["a.nii.gz"])}, {"image": str(samples["two.nii.gz"])}]
    batch = next(iter(DataLoader(Dataset(cases, Compose([LoadVolumed("image")])), batch_size=2)))
    assert batch["image"].shape == (2, 1, 6, 7, 5)
    assert batch["image"].meta["filename_or_obj"] == [case["image"] for case in cases]


def test_refusal_is_the_cause_of_the_error_that_monai_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        Compose([LoadVolumed("image")])({"image": str(tmp_path / "absent.nii")})
    assert isinstance(caught.value.__cause__, VolumeError)


# Finding scans


def test_scans_of_a_folder_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.NII", "c.mha", "notes.txt", ".hidden.nii", "p.hdr", "p.img", "deep/er/x.nii", "q.img"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "d.nrrd").touch()
    write_series(tmp_path / "series")
    (tmp_path / "odd.nii").mkdir()
    for name in ("b_seg.nii.gz", "b_seg.json", "manual_seg.nii.gz"):
        (tmp_path / name).touch()
    expected = ["a.NII", "b.nii.gz", "c.mha", "deep/d.nrrd", "manual_seg.nii.gz", "p.hdr", "q.img", "series"]
    assert [str(path.relative_to(tmp_path)) for path in find_volumes(tmp_path)] == expected


def test_folder_of_dicom_files_is_one_case(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    assert find_volumes(tmp_path / "series") == [tmp_path / "series"]


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.nii").touch()
    for path in (tmp_path / "absent", tmp_path / "file.nii"):
        with pytest.raises(VolumeError, match="is no folder"):
            find_volumes(path)
    assert find_volumes(tmp_path / ".") == [tmp_path / "file.nii"]


def test_volume_paths_are_told_from_others(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "IM0001").write_bytes((tmp_path / "series" / "slice000.dcm").read_bytes())
    for name, expected in (
        ("a.nii.gz", True),
        ("series", True),
        ("series/slice000.dcm", True),
        ("IM0001", True),
        ("a.txt", False),
        ("empty", False),
        ("absent.nii", False),
    ):
        assert is_volume_path(tmp_path / name) is expected, name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x/sub-01_T1w.nii.gz", "sub-01_T1w"),
        ("brain.NII.GZ", "brain"),
        ("brain.v2.nii", "brain.v2"),
        ("ct.nrrd", "ct"),
        ("ct.mhd", "ct"),
        ("orig.mgz", "orig"),
        ("IMG0001.dcm", "IMG0001"),
        ("IM0001", "IM0001"),
        ("kopf größe.mha", "kopf größe"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_case_name_drops_the_ending_of_scans(path: str, name: str) -> None:
    assert case_name(path) == name


def test_case_name_of_a_folder_is_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "case.2.nii").mkdir()
    monkeypatch.chdir(tmp_path / "case.2.nii")
    assert case_name(tmp_path / "case.2.nii") == case_name(".") == case_name("") == "case.2.nii"


def test_oblique_itk_image_helper_is_oblique() -> None:
    assert not np.allclose(itk_affine(itk_image(scan_values()))[0, 1], 0)


@pytest.mark.parametrize("size", [0.0, -2.0])
def test_a_voxel_size_that_is_none_is_refused_where_nothing_else_tells_it(tmp_path: Path, size: float) -> None:
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.set_sform(None, 0)
    nibabel.save(image, path)
    with path.open("r+b") as file:
        file.seek(80)
        file.write(np.array([size], "<f4").tobytes())
    with pytest.raises(VolumeError, match=r"voxel sizes .* write the true sizes"):
        read_volume(path)
