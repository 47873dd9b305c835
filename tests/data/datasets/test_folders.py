"""ADE20K's layout, pictures with masks, folders by class, pictures without labels."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import DataLoader, Dataset
from monai.transforms import Compose
from picture_sets import labels_of, make_ade20k, make_masks, noise, save

from dinomed.data.datasets import ADE20KFolder, ImageFolder, ImageMaskFolder, ItemList, UnlabelledImages
from dinomed.data.datasets.class_names import ADE20K_CLASSES
from dinomed.errors import InputError
from dinomed.transforms.augmentation import load_preset
from dinomed.transforms.natural_images import LoadImageRGBd, LoadLabelMapd


def names(dataset: object) -> list[str]:
    return [item["name"] for item in dataset]  # type: ignore[attr-defined]


def test_ade20k_items_pair_pictures_and_label_maps(tmp_path: Path) -> None:
    dataset = ADE20KFolder(make_ade20k(tmp_path))
    assert names(dataset) == ["a 1", "b"]
    assert dataset[0]["image"] == str(tmp_path / "images" / "training" / "a 1.jpg")
    assert dataset[0]["label"] == str(tmp_path / "annotations" / "training" / "a 1.png")
    assert names(ADE20KFolder(tmp_path, "validation")) == ["küche"]


def test_ade20k_has_150_classes_from_wall_to_flag(tmp_path: Path) -> None:
    dataset = ADE20KFolder(make_ade20k(tmp_path))
    assert dataset.num_classes == 150
    assert len(set(ADE20K_CLASSES)) == 150
    assert [dataset.class_name(label) for label in (0, 12, 149, 150)] == ["wall", "person", "flag", "class 150"]


def test_ade20k_zero_is_ignored_and_one_becomes_wall(tmp_path: Path) -> None:
    dataset = ADE20KFolder(make_ade20k(tmp_path))
    assert np.unique(dataset.label_map(0)).tolist() == [0, 1, 149, 255]
    data = Dataset(dataset, LoadLabelMapd(reduce_zero_label=True))[0]
    np.testing.assert_array_equal(data["label"][0].numpy(), dataset.label_map(0))


def test_own_data_in_ade20ks_layout_may_count_from_zero(tmp_path: Path) -> None:
    dataset = ADE20KFolder(make_ade20k(tmp_path, (0, 1, 2)), num_classes=3, reduce_zero_label=False)
    assert dataset.num_classes == 3
    assert dataset.class_name(0) == "class 0"
    assert np.unique(dataset.label_map(0)).tolist() == [0, 1, 2]


def test_more_classes_than_8_bits_need_another_ignored_label(tmp_path: Path) -> None:
    numbers = np.full((24, 32), 256, np.uint16)
    numbers[0, :4] = (0, 1, 255, 300)
    image = save(tmp_path / "images/training/a.jpg", noise(0))
    label = save(tmp_path / "annotations/training/a.png", numbers)
    (tmp_path / "list.csv").write_text("image,label\nimages/training/a.jpg,annotations/training/a.png\n")
    three_hundred = [f"c{number}" for number in range(300)]

    def ade(**options: Any) -> ADE20KFolder:
        return ADE20KFolder(tmp_path, **options)

    def masks(**options: Any) -> ImageMaskFolder:
        return ImageMaskFolder(image.parent, label.parent, **options)

    def listed(**options: Any) -> ItemList:
        return ItemList(tmp_path / "list.csv", **options)

    for opened in (ade, masks, listed):
        for options in ({"class_names": three_hundred}, {"num_classes": 256}):
            with pytest.raises(InputError, match=r"classes, so that label 255 is one of them .* such as 65535"):
                opened(**options)
        assert opened(num_classes=255).ignore_index == 255
        data = opened(class_names=three_hundred, ignore_index=65535, reduce_zero_label=True)
        load = LoadLabelMapd(reduce_zero_label=True, ignore_index=data.ignore_index, num_classes=300)
        for read in (data.label_map(0), load(data[0])["label"][0].numpy()):
            assert read[0, :5].tolist() == [65535, 0, 254, 299, 255]


def test_a_class_that_gets_the_number_of_ignored_pixels_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "images/a.jpg", noise(0))
    path = save(tmp_path / "masks/a.png", np.full((24, 32), 256, np.uint16))
    data = ImageMaskFolder(tmp_path / "images", tmp_path / "masks", reduce_zero_label=True)
    with pytest.raises(InputError, match=f"{path} holds 256, which reduce_zero_label makes 255, the number of ignored"):
        data.label_map(0)


def test_missing_partners_are_an_error_or_left_out(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    (tmp_path / "annotations/training/b.png").unlink()
    save(tmp_path / "annotations/training/c.png", labels_of(0, (0, 1)))
    with pytest.raises(InputError, match=r"b\.jpg has no label map b\.\* .* and 1 more problems"):
        ADE20KFolder(tmp_path)
    dataset = ADE20KFolder(tmp_path, strict=False)
    assert names(dataset) == ["a 1"]
    assert [(each.kind, Path(each.file).name) for each in dataset.problems] == [
        ("missing pair", "b.jpg"),
        ("missing pair", "c.png"),
    ]


def test_missing_folders_are_named(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*images/testing"):
        ADE20KFolder(tmp_path, "testing")
    with pytest.raises(InputError, match="holds no picture that can be used"):
        ImageMaskFolder(_empty(tmp_path / "x"), _empty(tmp_path / "y"))


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_masks_are_matched_by_name_in_folders_of_any_depth_and_ending(tmp_path: Path) -> None:
    for name in ("a.b.c", "deep er/ü #1", "deep er/$x"):
        save(tmp_path / "images" / f"{name}.JPG", noise(0))
        save(tmp_path / "masks" / f"{name}.tif", labels_of(0, (0, 1)))
    (tmp_path / "images" / "._a.b.c.jpg").write_bytes(b"left by a Mac")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"left by Windows")
    dataset = ImageMaskFolder(tmp_path / "images", tmp_path / "masks")
    assert names(dataset) == ["a.b.c", "deep er/$x", "deep er/ü #1"]
    data = Dataset(dataset, lambda item: LoadLabelMapd()(LoadImageRGBd()(item)))[2]
    assert data["image"].shape == (3, 24, 32)
    assert data["label"].shape == (1, 24, 32)


def test_accents_written_in_two_ways_are_the_same_name(tmp_path: Path) -> None:
    save(tmp_path / "images" / (unicodedata.normalize("NFD", "küche") + ".jpg"), noise(0))
    save(tmp_path / "masks" / (unicodedata.normalize("NFC", "küche") + ".png"), labels_of(0, (0, 1)))
    assert len(ImageMaskFolder(tmp_path / "images", tmp_path / "masks")) == 1


def test_suffixes_tell_masks_from_pictures_in_one_folder(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", noise(0))
    save(tmp_path / "a_mask.png", labels_of(0, (0, 1)))
    save(tmp_path / "b_mask.png", labels_of(0, (0, 1)))
    with pytest.raises(InputError, match=r"b_mask\.png has no picture b\.\*"):
        ImageMaskFolder(tmp_path, tmp_path, mask_suffix="_mask")
    dataset = ImageMaskFolder(tmp_path, tmp_path, mask_suffix="_mask", strict=False)
    assert [(Path(i["image"]).name, Path(i["label"]).name) for i in dataset] == [("a.jpg", "a_mask.png")]


def test_suffixes_on_both_sides_are_taken_off(tmp_path: Path) -> None:
    save(tmp_path / "l" / "x_leftImg8bit.png", noise(0))
    save(tmp_path / "g" / "x_labelIds.png", labels_of(0, (0, 1)))
    save(tmp_path / "g" / "x_color.png", noise(1))  # another rendering, left aside
    dataset = ImageMaskFolder(tmp_path / "l", tmp_path / "g", "_leftImg8bit", "_labelIds")
    assert dataset.items == [
        {"image": str(tmp_path / "l/x_leftImg8bit.png"), "label": str(tmp_path / "g/x_labelIds.png"), "name": "x"}
    ]


def test_two_files_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    make_masks(tmp_path)
    save(tmp_path / "images" / "p0.png", noise(9))
    with pytest.raises(InputError, match=r"p0\.png has the name of another picture, p0\.jpg"):
        ImageMaskFolder(tmp_path / "images", tmp_path / "masks")


def test_black_and_white_masks_are_renumbered(tmp_path: Path) -> None:
    make_masks(tmp_path, values=(0, 255))
    dataset = ImageMaskFolder(tmp_path / "images", tmp_path / "masks", num_classes=2, label_values={255: 1})
    assert np.unique(dataset.label_map(0)).tolist() == [0, 1]


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    make_masks(tmp_path, 1)
    os.symlink(tmp_path / "images", tmp_path / "images" / "again")
    assert len(ImageMaskFolder(tmp_path / "images", tmp_path / "masks")) == 1


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for seed, name in enumerate(["zebra/1.jpg", "ant/2.png", "ant/deep/3.webp"]):
        save(tmp_path / name, noise(seed))
    dataset = ImageFolder(tmp_path)
    assert dataset.class_names == ("ant", "zebra")
    assert [(item["label"], item["name"]) for item in dataset] == [(0, "ant/2"), (0, "ant/deep/3"), (1, "zebra/1")]


def test_a_validation_set_keeps_the_numbers_of_training(tmp_path: Path) -> None:
    save(tmp_path / "zebra/1.jpg", noise(0))
    assert ImageFolder(tmp_path, class_names=("ant", "bee", "zebra"))[0]["label"] == 2
    with pytest.raises(InputError, match="zebra is no class of this data set"):
        ImageFolder(tmp_path, class_names=("ant", "bee"))


def test_empty_classes_and_stray_pictures_are_problems(tmp_path: Path) -> None:
    save(tmp_path / "ant/1.jpg", noise(0))
    save(tmp_path / "stray.jpg", noise(1))
    (tmp_path / "bee").mkdir()
    dataset = ImageFolder(tmp_path, strict=False)
    assert [Path(problem.file).name for problem in dataset.problems] == ["stray.jpg", "bee"]
    assert len(dataset) == 1
    with pytest.raises(InputError, match=r"stray\.jpg lies in no class's folder"):
        ImageFolder(tmp_path)


def test_unlabelled_pictures_have_no_label(tmp_path: Path) -> None:
    save(tmp_path / "in" / "ä.jpg", noise(0))
    save(tmp_path / "b.png", noise(1))
    assert UnlabelledImages(tmp_path).items == [
        {"image": str(tmp_path / "b.png"), "name": "b"},
        {"image": str(tmp_path / "in" / "ä.jpg"), "name": "in/ä"},
    ]
    assert names(UnlabelledImages(tmp_path / "b.png")) == ["b"]
    with pytest.raises(InputError, match="there is no file or folder"):
        UnlabelledImages(tmp_path / "none")


def test_items_are_copies_and_slices_are_lists(tmp_path: Path) -> None:
    dataset = ADE20KFolder(make_ade20k(tmp_path))
    dataset[0]["image"] = "changed"
    assert dataset[0]["image"] != "changed"
    assert [item["name"] for item in dataset[:1]] == ["a 1"]
    with pytest.raises(InputError, match="has no label maps"):
        UnlabelledImages(tmp_path).label_map(0)


def test_batches_for_training_come_from_worker_processes(tmp_path: Path) -> None:
    dataset = ADE20KFolder(make_ade20k(tmp_path))
    loading = [LoadImageRGBd(), LoadLabelMapd(reduce_zero_label=True), load_preset("natural", size=(16, 16))]
    loader = DataLoader(Dataset(dataset, Compose(loading)), batch_size=2, num_workers=1)
    (batch,) = list(loader)
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["label"].shape == (2, 1, 16, 16)
    assert set(batch["label"].unique().tolist()) <= {0, 1, 149, 255}
    assert batch["name"] == ["a 1", "b"]
