"""Recognising what a folder or file is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from picture_sets import coco_content, labels_of, make_ade20k, make_coco, make_masks, noise, save, square

from dinomed.data.datasets import open_datasets
from dinomed.errors import InputError


def opened(path: Path, **options: object) -> list[tuple[str, str, int]]:
    return [(each.layout, each.split, len(each)) for each in open_datasets(path, **options)]  # type: ignore[arg-type]


def test_ade20k_opens_every_split_and_unlabelled_ones_too(tmp_path: Path) -> None:
    save(make_ade20k(tmp_path) / "images/testing/x.jpg", noise(5))
    assert opened(tmp_path) == [("unlabelled", "testing", 1), ("ade20k", "training", 2), ("ade20k", "validation", 1)]
    assert opened(tmp_path, split="validation") == [("ade20k", "validation", 1)]


def test_ade20k_without_a_folder_of_label_maps_is_no_test_set(tmp_path: Path) -> None:
    shutil.rmtree(make_ade20k(tmp_path) / "annotations" / "validation")
    with pytest.raises(InputError, match=r"there is no folder .*annotations/validation"):
        open_datasets(tmp_path)


def test_a_folder_of_masks_that_are_all_missing_is_not_taken_for_unlabelled(tmp_path: Path) -> None:
    make_masks(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"p0\.jpg has no label map"):
        open_datasets(tmp_path)
    (tmp_path / "masks" / "p0.txt").write_text("0 0.5 0.5 1 1")  # boxes of a detector
    assert opened(tmp_path) == [("unlabelled", "", 3)]


def test_coco_is_recognised_by_its_file_or_its_folder(tmp_path: Path) -> None:
    content = coco_content([{"category_id": 1, "segmentation": [square(2, 2, 6)]}])
    path = make_coco(tmp_path, content)
    make_coco(tmp_path, content, "train2017")
    assert opened(path) == [("coco", "val2017", 1)]
    assert opened(tmp_path) == [("coco", "train2017", 1), ("coco", "val2017", 1)]


@pytest.mark.parametrize("missing", ["images", "annotations", "categories"])
def test_incomplete_coco_files_are_still_recognised(tmp_path: Path, missing: str) -> None:
    content = coco_content([])
    del content[missing]
    with pytest.raises(InputError, match=f"has no list `{missing}`"):
        open_datasets(make_coco(tmp_path, content))


@pytest.mark.parametrize(
    ("images", "masks"), [("images", "masks"), ("images", "labels"), ("JPEGImages", "SegmentationClass")]
)
def test_folders_of_pictures_and_masks_are_recognised(tmp_path: Path, images: str, masks: str) -> None:
    save(tmp_path / images / "a.jpg", noise(0))
    save(tmp_path / masks / "a.png", labels_of(0, (0, 1)))
    assert opened(tmp_path) == [("image-mask", "", 1)]


def test_splits_are_opened_one_by_one(tmp_path: Path) -> None:
    make_masks(tmp_path / "train")
    make_masks(tmp_path / "val", 1)
    save(tmp_path / "test" / "x.jpg", noise(9))
    assert opened(tmp_path) == [("image-mask", "train", 3), ("image-mask", "val", 1), ("unlabelled", "test", 1)]


def test_masks_beside_their_pictures_are_recognised_by_their_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", noise(0))
    save(tmp_path / "a_mask.png", labels_of(0, (0, 1)))
    assert opened(tmp_path) == [("image-mask", "", 1)]


def test_folders_by_class_share_the_classes_of_training(tmp_path: Path) -> None:
    for seed, name in enumerate(["train/ant/1.jpg", "train/bee/2.jpg", "val/bee/3.jpg"]):
        save(tmp_path / name, noise(seed))
    assert opened(tmp_path) == [("image-folder", "train", 2), ("image-folder", "val", 1)]
    assert open_datasets(tmp_path)[1][0]["label"] == 1


def test_folders_by_class_may_be_called_like_anything(tmp_path: Path) -> None:
    for seed, name in enumerate(["car/1.jpg", "train/2.jpg"]):
        save(tmp_path / name, noise(seed))
    assert opened(tmp_path) == [("image-folder", "", 2)]
    assert open_datasets(tmp_path)[0].class_names == ("car", "train")


def test_pictures_alone_are_unlabelled(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", noise(0))
    assert opened(tmp_path) == [("unlabelled", "", 1)]
    assert opened(path) == [("unlabelled", "", 1)]


def test_lists_are_opened_split_by_split(tmp_path: Path) -> None:
    make_masks(tmp_path)
    rows = [{"image": f"images/p{i}.jpg", "label": f"masks/p{i}.png"} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps({"training": rows[:2], "validation": rows[2:]}))
    (tmp_path / "b.csv").write_text("image,split\nimages/p0.jpg,train\nimages/p1.jpg,val\n")
    assert opened(tmp_path / "a.json") == [("list", "training", 2), ("list", "validation", 1)]
    assert opened(tmp_path / "b.csv") == [("list", "train", 1), ("list", "val", 1)]


def test_a_stated_layout_is_taken(tmp_path: Path) -> None:
    make_masks(tmp_path)
    assert opened(tmp_path, layout="unlabelled") == [("unlabelled", "", 6)]
    assert opened(tmp_path, layout="image-folder") == [("image-folder", "", 6)]


def test_own_names_of_folders_can_be_given(tmp_path: Path) -> None:
    make_masks(tmp_path / "made")
    (tmp_path / "made" / "images").rename(tmp_path / "pics")
    (tmp_path / "made" / "masks").rename(tmp_path / "truth")
    options = {"image_dir": tmp_path / "pics", "mask_dir": tmp_path / "truth", "layout": "image-mask"}
    assert opened(tmp_path, **options) == [("image-mask", "", 3)]


def test_what_is_no_data_set_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        open_datasets(tmp_path / "none")
    with pytest.raises(InputError, match="holds no data set of a known layout"):
        open_datasets(tmp_path)
    (tmp_path / "list.csv").write_text("image\n")
    with pytest.raises(InputError, match=r"name a list in it, such as .*list\.csv"):
        open_datasets(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="is no data set; name a folder"):
        open_datasets(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="there is no layout 'voc'"):
        open_datasets(tmp_path, "voc")
    for layout in ("ade20k", "coco", "image-mask", "list"):
        with pytest.raises(InputError):
            open_datasets(tmp_path, layout)
    for layout in ("ade20k", "image-mask", "image-folder"):
        with pytest.raises(InputError):
            open_datasets(tmp_path / "notes.txt", layout)
