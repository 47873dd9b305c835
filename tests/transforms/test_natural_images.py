"""Reading pictures and label maps of every common kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from picture_sets import noise, save
from PIL import Image

from dinomed.errors import InputError
from dinomed.transforms.natural_images import (
    LoadImageRGBd,
    LoadLabelMapd,
    image_size,
    read_image,
    read_label_map,
    read_pixels,
    renumber,
)

PIXELS = noise(0, 6, 9)
GREY = PIXELS[..., 0]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "ü b$.png"])
def test_lossless_pictures_keep_every_pixel(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, PIXELS)
    image = read_image(path)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, PIXELS.transpose(2, 0, 1) / 255.0, atol=1e-6)


def test_lossless_webp_and_fine_jpeg_are_read(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    np.testing.assert_array_equal(read_pixels(save(tmp_path / "a.webp", flat, lossless=True)), flat)
    np.testing.assert_allclose(read_pixels(save(tmp_path / "a.jpg", flat, quality=100)), flat, atol=3)


def test_first_picture_of_several_is_read(tmp_path: Path) -> None:
    for name, kind in (("a.jpg", "MPO"), ("a.tif", "TIFF"), ("a.webp", "WEBP")):
        first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
        first.save(tmp_path / name, format=kind, save_all=True, append_images=[second])
        np.testing.assert_allclose(read_pixels(tmp_path / name)[4, 4], (255, 0, 0), atol=6)


def test_grey_of_8_bits_becomes_three_equal_channels(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", GREY))
    np.testing.assert_allclose(image, np.stack([GREY / 255.0] * 3), atol=1e-6)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_depth(tmp_path: Path, ending: str) -> None:
    deep = np.array([[0, 1, 257], [32768, 65534, 65535]], dtype=np.uint16)
    np.testing.assert_allclose(read_image(save(tmp_path / f"a.{ending}", deep))[1], deep / 65535.0, atol=1e-7)


def test_floating_point_must_lie_in_the_unit_range(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", values))[0], values)
    with pytest.raises(InputError, match=r"b\.tif holds floating point values from 0 to 300"):
        read_image(save(tmp_path / "b.tif", values * 300))
    with pytest.raises(InputError, match="floating point"):
        read_image(save(tmp_path / "c.tif", values * np.float32("nan")))


def test_palette_shows_its_colours_as_picture_and_its_index_as_label_map(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    image.save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png")[0, 1].tolist() == [200, 0, 0]
    assert read_label_map(tmp_path / "a.png").tolist() == [[0, 1], [2, 1]]


def test_transparent_parts_are_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 0] = 100
    rgba[0, :, 3] = (255, 0, 51)  # opaque, clear, a fifth
    pixels = read_pixels(save(tmp_path / "a.png", rgba))
    assert pixels[0].tolist() == [[100, 0, 0], [255, 255, 255], [224, 204, 204]]


def test_clear_palette_entry_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_pixels(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [200, 0, 0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(read_pixels(tmp_path / "a.jpg")[4, 4], (255, 0, 0), atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_picture_label_map_and_size(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", GREY, exif=exif)
    upright = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, -1),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY),
    }[orientation]
    np.testing.assert_array_equal(read_pixels(path)[..., 2], upright)
    np.testing.assert_array_equal(read_label_map(path), upright)
    assert image_size(path) == upright.shape


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("empty.png", 0.0, "is empty"),
        ("cut.png", 0.5, "cannot be read as a picture"),
        ("cut.jpg", 0.5, "cannot be read as a picture"),
        ("cut.webp", 0.5, "cannot be read as a picture"),
        ("cut.tif", 0.5, "cannot be read as a picture"),
        ("short.png", 0.0005, "it is none of JPEG"),
    ],
)
def test_damaged_files_are_named_with_what_is_wrong(tmp_path: Path, name: str, part: float, words: str) -> None:
    path = save(tmp_path / name, noise(1, 64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match=words) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)


def test_postscript_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(InputError, match="none of"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_label_maps_keep_their_numbers_in_every_depth(tmp_path: Path, dtype: type) -> None:
    labels = np.array([[0, 3, 150], [255, 7, 1]], dtype=dtype)
    read = read_label_map(save(tmp_path / "a.tif", labels))
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels)


def test_label_maps_of_one_bit_and_of_equal_channels_are_read(tmp_path: Path) -> None:
    bits = np.array([[True, False]])
    assert read_label_map(save(tmp_path / "a.png", bits)).tolist() == [[1, 0]]
    three = np.repeat(np.array([[4, 9]], dtype=np.uint8)[..., None], 3, axis=2)
    assert read_label_map(save(tmp_path / "b.png", three)).tolist() == [[4, 9]]


def test_colours_fractions_and_jpeg_are_no_label_maps(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png is a colour picture"):
        read_label_map(save(tmp_path / "a.png", PIXELS))
    with pytest.raises(InputError, match="fractions"):
        read_label_map(save(tmp_path / "b.tif", np.full((2, 2), 0.5, dtype=np.float32)))
    with pytest.raises(InputError, match="is a JPEG"):
        read_label_map(save(tmp_path / "c.jpg", GREY))


def test_zero_label_becomes_ignored_and_ignored_stays_ignored() -> None:
    labels = np.array([[0, 1, 150, 255]], dtype=np.int32)
    assert renumber(labels, reduce_zero_label=True).tolist() == [[255, 0, 149, 255]]
    assert labels.tolist() == [[0, 1, 150, 255]]


def test_label_values_are_replaced_from_the_numbers_of_the_file() -> None:
    labels = np.array([[0, 1, 2]], dtype=np.int32)
    assert renumber(labels, label_values={1: 2, 2: 1}).tolist() == [[0, 2, 1]]


def test_transforms_give_meta_tensors_with_file_and_size(tmp_path: Path) -> None:
    image, label = save(tmp_path / "ä.jpg", PIXELS), save(tmp_path / "ä.png", GREY)
    data = LoadLabelMapd()(LoadImageRGBd()({"image": str(image), "label": str(label), "name": "ä"}))
    assert isinstance(data["image"], MetaTensor)
    assert data["image"].shape == (3, 6, 9)
    assert data["image"].dtype == torch.float32
    assert data["label"].shape == (1, 6, 9)
    assert data["label"].dtype == torch.int64
    assert data["label"].meta["filename_or_obj"] == str(label)
    assert data["image"].meta["spatial_shape"].tolist() == [6, 9]
    assert data["name"] == "ä"


def test_label_map_of_another_size_is_refused(tmp_path: Path) -> None:
    image, label = save(tmp_path / "a.jpg", PIXELS), save(tmp_path / "a.png", np.ascontiguousarray(GREY.T))
    data = LoadImageRGBd()({"image": image, "label": label})
    with pytest.raises(InputError, match=r"a\.png is 6 x 9 pixels but its picture is 9 x 6; turn it"):
        LoadLabelMapd()(data)
