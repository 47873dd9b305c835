from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)
from scan_samples import IS_PYDICOM_3, dicom_slice, itk_compressed, save_dicom, scan_values, write_series

from dinomed.errors import VolumeError
from dinomed.transforms.volumes import read_grid, read_volume

VALUES = scan_values().astype(np.float32) * 2 - 100


def refusal_of(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "Doe" not in message
    assert "secret" not in message
    return message


# What is read


def test_voxels_are_columns_rows_and_slices_in_real_values(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path / "series"))
    np.testing.assert_array_equal(volume.array, VALUES)
    assert volume.array.dtype == np.float32
    assert volume.format == "dicom"
    expected = [[-0.75, 0, 0, 10], [0, -1.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-12)


def test_slices_are_ordered_by_position_whatever_their_names_and_numbers(tmp_path: Path) -> None:
    write_series(tmp_path / "series", order=lambda index: (index * 3) % 5, change=lambda index: {"InstanceNumber": 9})
    volume = read_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, VALUES)


def test_slices_stacked_downwards_are_turned_upwards(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path / "series", step_mm=(0, 0, -3.0)))
    np.testing.assert_array_equal(volume.array, VALUES[:, :, ::-1])
    np.testing.assert_allclose(volume.affine[2], [0, 0, 3, 5 - 4 * 3])


@pytest.mark.parametrize(
    "orientation",
    [
        [1, 0, 0, 0, 1, 0],
        [-1, 0, 0, 0, -1, 0],
        [0, 1, 0, 0, 0, -1],
        [1, 0, 0, 0, 0, -1],
        [0.96, 0.28, 0, -0.28 * 0.8, 0.96 * 0.8, -0.6],
    ],
)
def test_grid_and_voxels_agree_with_simpleitk(tmp_path: Path, orientation: list[float]) -> None:
    normal = np.cross(orientation[:3], orientation[3:])
    folder = write_series(tmp_path / "series", step_mm=tuple(2.5 * normal), ImageOrientationPatient=orientation)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
    for index in [(0, 0, 0), (5, 0, 0), (0, 6, 0), (0, 0, 4), (5, 6, 4)]:
        expected = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], expected, atol=1e-4)


def test_real_series_agrees_with_simpleitk(data_dir: Path) -> None:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(data_dir / "dicom")))
    image = reader.Execute()
    volume = read_volume(data_dir / "dicom")
    assert volume.array.shape == (88, 128, 17)
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
    last = np.array(image.TransformIndexToPhysicalPoint((87, 127, 16))) * [-1, -1, 1]
    np.testing.assert_allclose((volume.affine @ [87, 127, 16, 1])[:3], last, atol=1e-4)


def test_shear_of_a_tilted_gantry_stays_in_the_affine(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path / "series", step_mm=(0, 0.8, 3.0)))
    np.testing.assert_allclose(volume.affine[:3, 2], [0, -0.8, 3.0], atol=1e-12)
    np.testing.assert_allclose(volume.affine[:3, 1], [0, -1.5, 0], atol=1e-12)


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path: Path) -> None:
    folder = write_series(
        tmp_path / "series", change=lambda index: {"RescaleSlope": index + 1, "RescaleIntercept": 0.5}
    )
    expected = scan_values() * np.arange(1, 6) + 0.5
    np.testing.assert_array_equal(read_volume(folder).array, expected.astype(np.float32))


def test_positions_rounded_by_the_scanner_are_even_enough(tmp_path: Path) -> None:
    def rounded(index: int) -> dict[str, Any]:
        return {"ImagePositionPatient": [-10, 20, round(5 + index * 0.625, 1)]}

    volume = read_volume(write_series(tmp_path / "series", scan_values((6, 7, 9)), change=rounded))
    assert volume.affine[2, 2] == pytest.approx(0.625)


def test_other_files_in_the_folder_are_passed_over(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    (folder / "README.txt").write_text("about this scan")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + b"\0" * 400)
    (folder / "short").write_bytes(b"\x08")
    (folder / "._slice001.dcm").write_bytes(b"\0\5\x16\7" + b"\0" * 400)
    write_series(folder / "deeper", SeriesInstanceUID="1.2.3.9")
    os.mkfifo(folder / "pipe")
    empty = np.zeros((2, 2), np.int16)
    directory = dicom_slice(empty, Rows=None, Columns=None, PixelData=None, SeriesInstanceUID=None)
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = MediaStorageDirectoryStorage
    save_dicom(directory, folder / "DICOMDIR")
    report = dicom_slice(empty, Rows=None, Columns=None, PixelData=None, SeriesInstanceUID="1.9")
    save_dicom(report, folder / "report.dcm")
    np.testing.assert_array_equal(read_volume(folder).array, VALUES)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, ExplicitVRBigEndian])
def test_transfer_syntaxes_are_decoded(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    if syntax == RLELossless and not IS_PYDICOM_3:
        pytest.skip("only pydicom 3 compresses on its own")
    folder = tmp_path / "series"
    folder.mkdir()
    for index in range(5):
        pixels = scan_values()[:, :, index].T
        position = [-10, 20, 5 + 3 * index]
        is_rle = syntax == RLELossless
        dataset = dicom_slice(
            pixels, ImagePositionPatient=position, **({} if is_rle else {"TransferSyntaxUID": syntax})
        )
        if is_rle:
            dataset.compress(RLELossless)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = pixels.astype(">i2").tobytes()
            dataset["PixelData"].VR = "OW"
        save_dicom(dataset, folder / f"{index}.dcm")
    np.testing.assert_array_equal(read_volume(folder).array, VALUES)


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    for path in folder.iterdir():
        raw = path.read_bytes()
        meta_length = 132 + 12 + int.from_bytes(raw[140:144], "little")
        path.write_bytes(raw[meta_length:])
    np.testing.assert_array_equal(read_volume(folder).array, VALUES)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_jpeg_slices_are_decoded_and_rescaled_once(
    tmp_path: Path, compressor: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = itk_compressed(tmp_path / "series", compressor)
    capfd.readouterr()
    volume = read_volume(folder)
    stored = pydicom.dcmread(folder / "0.dcm", stop_before_pixels=True)
    assert stored.file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(volume.array, scan_values((20, 16, 5)).astype(np.float32))
    assert float(stored.RescaleIntercept) == -1000
    assert capfd.readouterr().err == ""


def test_undecodable_compression_is_refused_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = itk_compressed(tmp_path / "series", "JPEG")
    for path in folder.iterdir():  # says JPEG-LS, but holds lossless JPEG
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        save_dicom(dataset, path)
    capfd.readouterr()
    assert "0.dcm holds pixels, compressed as JPEG-LS" in refusal_of(folder)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_monochrome1_mri_is_turned_so_that_larger_is_brighter(tmp_path: Path, dtype: type) -> None:
    values = scan_values(dtype=dtype)
    common = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "MR", "RescaleSlope": None}
    folder = write_series(tmp_path / "series", values, **common, RescaleIntercept=None, BitsStored=12, HighBit=11)
    top = -1 if dtype is np.int16 else 4095
    np.testing.assert_array_equal(read_volume(folder).array, top - values.astype(np.float32))


def test_monochrome1_ct_keeps_its_hounsfield_units(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_volume(folder).array, VALUES)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_inversion_is_the_same_for_compressed_slices(tmp_path: Path, modality: str) -> None:
    folder = itk_compressed(tmp_path / "series", "JPEG", **{"0008|0060": modality})
    plain = read_volume(folder).array
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PhotometricInterpretation = "MONOCHROME1"
        save_dicom(dataset, path)
    expected = plain if modality == "CT" else 65535 - 1000 - (plain + 1000)
    np.testing.assert_array_equal(read_volume(folder).array, expected)


def enhanced(path: Path, change: dict[str, Any] | None = None, n_described: int = 5) -> Path:
    """One multi-frame file of five slices, stored from the top down."""
    values = scan_values()[:, :, ::-1]
    pixels = np.ascontiguousarray(values.transpose(2, 1, 0))
    own = {"RescaleSlope": None, "RescaleIntercept": None, "ImagePositionPatient": None}
    own |= {"ImageOrientationPatient": None, "PixelSpacing": None, "NumberOfFrames": 5} | (change or {})
    dataset = dicom_slice(pixels, **own)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = EnhancedCTImageStorage

    def item(**values: Any) -> list[Dataset]:
        part = Dataset()
        for name, value in values.items():
            setattr(part, name, value)
        return [part]

    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = item(PixelSpacing=[1.5, 0.75], SliceThickness=3)
    shared.PixelValueTransformationSequence = item(RescaleSlope=2, RescaleIntercept=-100)
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in range(n_described):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[-10, 20, 5 + 3 * (4 - index)])
        frames.append(frame)
    if n_described:
        dataset.PerFrameFunctionalGroupsSequence = frames
    path.parent.mkdir(exist_ok=True)
    save_dicom(dataset, path)
    return path


def test_enhanced_multi_frame_file_is_read_like_its_slices(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "series" / "all.dcm")
    classic = read_volume(write_series(tmp_path / "classic"))
    for given in (path, path.parent):
        volume = read_volume(given)
        np.testing.assert_array_equal(volume.array, VALUES)
        np.testing.assert_allclose(volume.affine, classic.affine)


def test_multi_frame_files_that_are_no_described_stack_are_refused(tmp_path: Path) -> None:
    assert "without their positions" in refusal_of(enhanced(tmp_path / "a" / "a.dcm", n_described=0))
    assert "claims 5 frames and describes 4" in refusal_of(enhanced(tmp_path / "b" / "b.dcm", n_described=4))


# Which series


def test_folder_with_two_series_lists_them_without_patient_data(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "study")
    write_series(folder, prefix="mr", SeriesInstanceUID="1.2.3.2", SeriesNumber=7, Modality="MR", change=lambda i: {})
    message = refusal_of(folder)
    assert "holds 2 DICOM series" in message
    assert "series 4 (CT, 5 files, UID 1.2.3.1, with slice000.dcm)" in message
    assert "series 7 (MR, 5 files, UID 1.2.3.2, with mr000.dcm)" in message
    assert "give one file of the series" in message


def test_one_file_stands_for_its_series(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "study")
    other = scan_values(seed=1)
    write_series(folder, other, prefix="mr", SeriesInstanceUID="1.2.3.2", Modality="MR")
    np.testing.assert_array_equal(read_volume(folder / "mr003.dcm").array, other * 2 - 100)
    np.testing.assert_array_equal(read_volume(folder / "slice000.dcm").array, VALUES)
    assert read_grid(folder / "mr003.dcm").shape == (6, 7, 5)


def test_folder_above_the_series_names_one_that_holds_images(tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "series one")
    assert "give one of its folders that do, such as series one" in refusal_of(tmp_path / "study")


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    assert "holds no DICOM images" in refusal_of(tmp_path)
    (tmp_path / "notes.txt").write_text("x" * 500)
    assert "holds no DICOM images" in refusal_of(tmp_path)
    report = dicom_slice(np.zeros((2, 2), np.int16), Rows=None, Columns=None, PixelData=None)
    save_dicom(report, tmp_path / "report.dcm")
    assert "holds no DICOM images" in refusal_of(tmp_path)
    assert "without an image" in refusal_of(tmp_path / "report.dcm")


# What is refused


def test_missing_slices_are_counted_and_placed(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", scan_values((6, 7, 12)))
    for index in (4, 5, 9):
        (folder / f"slice{index:03d}.dcm").unlink()
    message = refusal_of(folder)
    assert "lacks 3 slices: slice003.dcm and slice006.dcm are 9.00 mm apart where 3.00 mm is usual" in message


def test_repeated_slices_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    (folder / "copy.dcm").write_bytes((folder / "slice002.dcm").read_bytes())
    message = refusal_of(folder)
    assert "1 slices at positions that are already taken" in message
    assert "copy.dcm" in message
    assert "slice002.dcm" in message


def test_two_echoes_in_one_series_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    write_series(folder, prefix="echo2_")
    assert "5 slices at positions that are already taken" in refusal_of(folder)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "different orientation"),
        ({"PixelSpacing": [1.5, 0.8]}, "different pixel spacing"),
        ({"ImagePositionPatient": [-10, 20, 12.5]}, "not evenly spaced: slice002.dcm lies 1.50 mm away"),
        ({"ImagePositionPatient": [-8, 20, 11.0]}, "not evenly spaced"),
        ({"ImagePositionPatient": None}, "no ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "no ImageOrientationPatient"),
        ({"PixelSpacing": None}, "no PixelSpacing"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "holds colours"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, "holds colours"),
        ({"Rows": 6, "Columns": 7}, "mixes slices of 6 x 7 and 7 x 6 pixels"),
        ({"PixelData": None}, "holds no pixels"),
        ({"PixelData": b"\0\0"}, "cannot be decoded"),
        ({"ModalityLUTSequence": [Dataset()]}, "Modality LUT"),
        ({"RescaleSlope": "1e400"}, "damaged DICOM header"),
    ],
)
def test_one_strange_slice_stops_the_series(tmp_path: Path, attributes: dict[str, Any], message: str) -> None:
    folder = write_series(tmp_path / "series", change=lambda index: attributes if index == 2 else {})
    assert message in refusal_of(folder)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "damaged ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "damaged ImageOrientationPatient"),
        ({"PixelSpacing": [0.0001, 0.0001]}, "outside 0.05 to 50 mm"),
        ({"RescaleSlope": 0}, "constant"),
    ],
)
def test_impossible_series_are_refused(tmp_path: Path, attributes: dict[str, Any], message: str) -> None:
    assert message in refusal_of(write_series(tmp_path / "series", **attributes))


def test_single_slice_is_no_volume(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", scan_values((6, 7, 1)))
    assert "two-dimensional image (6 x 7 x 1)" in refusal_of(folder)
    assert "two-dimensional image (6 x 7 x 1)" in refusal_of(folder / "slice000.dcm")


def test_damaged_last_slice_is_not_silently_left_out(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    last = folder / "slice004.dcm"
    sound = last.read_bytes()
    for raw, message in (
        (b"", "slice004.dcm is named like a DICOM file but is none"),
        (sound[:250], "slice004.dcm is a DICOM file without a series"),
        (sound.replace(b"DICM", b"DICK", 1), "slice004.dcm is named like a DICOM file but is none"),
        (
            sound.replace(b"\x28\0\x10\0US", b"\x28\0\x0f\0US", 1),
            "slice004.dcm belongs to the series but holds no image",
        ),
    ):
        assert raw != sound
        last.write_bytes(raw)
        assert message in refusal_of(folder)


@pytest.mark.parametrize(
    ("compressor", "old", "new"),
    [
        ("JPEG", b"\x10\0\x10\0\x14", b"\x10\xff\xf0\xff\xf4"),
        ("JPEG2000", b"\0\0\0\x14\0\0\0\x10" + bytes(8), b"\0\0\xff\x14\0\0\xff\x10" + bytes(8)),
    ],
)
def test_jpeg_data_of_another_size_than_the_header_is_never_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressor: str, old: bytes, new: bytes
) -> None:
    folder = itk_compressed(tmp_path / compressor, compressor)
    assert read_volume(folder).array.shape == (20, 16, 5)
    for path in folder.iterdir():
        raw = path.read_bytes()
        assert old in raw
        path.write_bytes(raw.replace(old, new, 1))
    monkeypatch.setattr(SimpleITK, "ImageFileReader", None)
    assert "0.dcm holds damaged JPEG data" in refusal_of(folder)


@pytest.mark.parametrize("damage", [b"\xff\xd9" * 100, bytes(200)])
def test_damaged_jpeg_data_is_refused_without_a_word_from_the_decoder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: bytes
) -> None:
    folder = itk_compressed(tmp_path / "series", "JPEG")
    raw = (folder / "2.dcm").read_bytes()
    (folder / "2.dcm").write_bytes(raw[:-300] + damage + raw[-100:])
    capfd.readouterr()
    assert "2.dcm holds pixels, compressed as JPEG Lossless" in refusal_of(folder)
    assert capfd.readouterr().err == ""


def test_frame_of_a_series_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    assert read_volume(folder, frame=0).array.shape == (6, 7, 5)
    with pytest.raises(VolumeError, match="leave --frame out"):
        read_volume(folder, frame=1)


def test_file_that_cannot_be_opened_is_named_instead_of_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_series(tmp_path / "series")
    original = Path.open

    def guarded(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "slice004.dcm":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", guarded)
    assert "slice004.dcm cannot be opened" in refusal_of(folder)
