"""Every kind of finding, and none on sound data."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from picture_sets import coco_content, labels_of, make_ade20k, make_coco, make_masks, noise, save, square
from PIL import Image

from dinomed.data import dataset_checks
from dinomed.data.dataset_checks import SplitCheck, check_datasets
from dinomed.data.datasets import CocoSegmentation, open_datasets
from dinomed.errors import InputError


def check(path: Path, **options: object) -> list[SplitCheck]:
    return check_datasets(open_datasets(path, strict=False, **options), workers=2)  # type: ignore[arg-type]


def findings(path: Path, **options: object) -> list[tuple[str, str]]:
    """Kind and file's name of everything found."""
    found = [problem for each in check(path, **options) for problem in each.problems]
    return [(problem.kind, os.path.basename(problem.file)) for problem in found]


def test_sound_data_have_no_findings(tmp_path: Path) -> None:
    assert findings(make_ade20k(tmp_path / "a")) == []
    assert findings(make_masks(tmp_path / "b")) == []
    assert (
        findings(make_coco(tmp_path / "c", coco_content([{"category_id": 1, "segmentation": [square(2, 2, 6)]}]))) == []
    )
    save(tmp_path / "d/ant/1.jpg", noise(0))
    save(tmp_path / "d/bee/1.jpg", noise(1))
    assert findings(tmp_path / "d") == []


def test_missing_pairs_are_found(tmp_path: Path) -> None:
    make_masks(tmp_path)
    (tmp_path / "masks" / "p0.png").unlink()
    (tmp_path / "images" / "p1.jpg").unlink()
    assert findings(tmp_path) == [("missing pair", "p0.jpg"), ("missing pair", "p1.png")]


@pytest.mark.parametrize("name", ["images/p1.jpg", "masks/p1.png"])
@pytest.mark.parametrize("part", [0.0, 0.6])
def test_unreadable_and_cut_off_files_are_found(tmp_path: Path, name: str, part: float) -> None:
    path = make_masks(tmp_path) / name
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert findings(tmp_path) == [("unreadable file", path.name)]
    reason = check(tmp_path)[0].problems[0].reason
    assert reason.startswith("is empty" if part == 0.0 else "cannot be read as a picture")


def test_sizes_that_differ_are_found(tmp_path: Path) -> None:
    make_masks(tmp_path)
    save(tmp_path / "masks" / "p2.png", labels_of(0, (0, 1), 24, 31))
    assert findings(tmp_path) == [("size mismatch", "p2.png")]
    assert "is 31 x 24 pixels but its picture is 32 x 24" in check(tmp_path)[0].problems[0].reason


def test_exif_orientation_that_only_the_picture_has_is_found(tmp_path: Path) -> None:
    make_masks(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "images" / "p0.jpg", noise(0), exif=exif)
    assert findings(tmp_path) == [("size mismatch", "p0.png")]
    assert "EXIF" in check(tmp_path)[0].problems[0].reason


def test_coco_sizes_that_differ_from_the_file_are_found(tmp_path: Path) -> None:
    path = make_coco(tmp_path, coco_content([]))
    save(tmp_path / "val2017" / "ä b.jpg", noise(0, 24, 30))
    assert findings(path) == [("size mismatch", "instances_val2017.json: ä b")]


def test_coco_label_maps_of_a_wrong_size_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_coco(tmp_path, coco_content([{"category_id": 1, "segmentation": [square(2, 2, 6)]}]))
    path.write_text(path.read_text().replace('"width": 32', '"width": 30000000'))
    drawn = []
    monkeypatch.setattr(CocoSegmentation, "draw", lambda _, index: drawn.append(index))
    assert [kind for kind, _ in findings(path)] == ["size mismatch"]
    assert drawn == []


def test_polygons_that_cannot_be_drawn_end_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_coco(tmp_path, coco_content([{"category_id": 1, "segmentation": [square(2, 2, 6)]}]))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(InputError, match=r"pip install 'dinomed\[natural\]'"):
        check(path)


def test_labels_out_of_range_are_found(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    save(tmp_path / "annotations/training/b.png", labels_of(0, (0, 1, 151, 200)))
    assert findings(tmp_path) == [("label out of range", "b.png")]
    reason = check(tmp_path)[0].problems[0].reason
    assert "has label 150 (151 in the file), 199 (200 in the file), but the 150 classes are 0 to 149" in reason


def test_labels_of_other_data_have_a_range_when_it_is_given(tmp_path: Path) -> None:
    make_masks(tmp_path, values=(0, 3, 255))
    assert findings(tmp_path) == []
    assert findings(tmp_path, num_classes=4) == []
    assert findings(tmp_path, num_classes=3) == [("label out of range", f"p{i}.png") for i in range(3)]


def test_labels_out_of_range_are_told_by_the_files_own_numbers(tmp_path: Path) -> None:
    make_masks(tmp_path, count=1, values=(0, 1, 3, 7))
    reason = check(tmp_path, num_classes=3)[0].problems[0].reason
    assert reason.startswith("has label 3, 7, but the 3 classes")
    reason = check(tmp_path, num_classes=3, label_values={1: 5})[0].problems[0].reason
    assert reason.startswith("has label 3, 5 (1 in the file), 7, but the 3 classes")
    reason = check(tmp_path, num_classes=3, label_values={1: 5}, reduce_zero_label=True)[0].problems[0].reason
    assert reason.startswith("has label 4 (1 in the file), 6 (7 in the file), but the 3 classes")


def test_masks_of_colours_are_found(tmp_path: Path) -> None:
    make_masks(tmp_path)
    save(tmp_path / "masks" / "p0.png", noise(5))
    assert findings(tmp_path) == [("unreadable file", "p0.png")]


def test_black_and_white_masks_whose_white_is_ignored_are_found(tmp_path: Path) -> None:
    make_masks(tmp_path, values=(0, 255))
    assert findings(tmp_path) == [("label out of range", "images")]
    assert findings(tmp_path, label_values={255: 1}) == []


def test_duplicates_are_found_by_content_in_other_formats_and_splits(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    save(tmp_path / "images/training/copy.png", np.asarray(Image.open(tmp_path / "images/training/b.jpg")))
    save(tmp_path / "annotations/training/copy.png", labels_of(0, (1, 2)))
    leaked = (tmp_path / "images/training/a 1.jpg").read_bytes()
    (tmp_path / "images/validation/küche.jpg").write_bytes(leaked)
    assert findings(tmp_path) == [("duplicate image", "copy.png"), ("duplicate image", "küche.jpg")]
    assert "a 1.jpg in the split training; keep one" in check(tmp_path)[1].problems[0].reason


def test_duplicates_of_another_class_say_so(tmp_path: Path) -> None:
    save(tmp_path / "ant/1.png", noise(0))
    save(tmp_path / "bee/2.png", noise(0))
    assert "1.png, there as ant; keep one" in check(tmp_path)[0].problems[0].reason


def test_a_picture_that_is_listed_twice_is_told_from_a_copy(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": "a.jpg", "height": 24, "width": 32} for number in (7, 8)]
    one = check(make_coco(tmp_path, coco_content([], images=images)))[0].problems[-1]
    assert (os.path.basename(one.file), one.reason) == ("a.jpg", "is listed twice; keep one entry")
    picture = save(tmp_path / "p.jpg", noise(0))
    (tmp_path / "list.csv").write_text("image,label,split\np.jpg,ant,train\n./p.jpg,bee,train\n")
    one = check(tmp_path / "list.csv")[0].problems[-1]
    assert (one.file, one.reason) == (str(picture), "is listed twice, first as ant; keep one entry")
    (tmp_path / "list.csv").write_text("image,split\np.jpg,train\np.jpg,test\n")
    one = check(tmp_path / "list.csv")[1].problems[-1]
    assert one.reason == "is listed in the split train too; keep one entry"


def test_pictures_of_the_same_bytes_but_another_shape_are_no_duplicates(tmp_path: Path) -> None:
    for name, shape in {"a.png": (4, 6), "b.png": (6, 4)}.items():
        save(tmp_path / name, np.zeros((*shape, 3), dtype=np.uint8))
    assert findings(tmp_path) == []


def test_broken_annotations_are_found(tmp_path: Path) -> None:
    annotations = [{"category_id": 1, "segmentation": []}, {"category_id": 3, "segmentation": [square(2, 2, 6)]}]
    path = make_coco(tmp_path, coco_content(annotations))
    assert [kind for kind, _ in findings(path)] == ["broken annotation", "label out of range"]


def test_class_balance_counts_labelled_pixels_and_pictures(tmp_path: Path) -> None:
    for seed in range(2):
        labels = np.zeros((10, 10), dtype=np.uint8)
        labels[:5] = 1
        labels[9] = 255
        labels[0, 0] = 2 if seed else 1
        save(tmp_path / "images" / f"{seed}.jpg", noise(seed, 10, 10))
        save(tmp_path / "masks" / f"{seed}.png", labels)
    (found,) = check(tmp_path, num_classes=4)
    assert dict(found.pixels) == {0: 80, 1: 99, 2: 1, 255: 20}
    assert {label: found.images[label] for label in range(4)} == {0: 2, 1: 2, 2: 1, 3: 0}
    assert found.sizes == {(10, 10): 2}
    assert found.notes == ["1 classes do not occur: class 3"]


def test_balance_of_coco_counts_what_is_visible_and_notes_what_is_not(tmp_path: Path) -> None:
    annotations = [
        {"category_id": 1, "segmentation": [square(0, 0, 10)]},
        {"category_id": 18, "segmentation": [square(2, 2, 4)]},
        {"category_id": 18, "segmentation": [square(-50, -50, 4)]},
        {"category_id": 1, "iscrowd": 1, "segmentation": [square(20, 10, 5)]},
    ]
    (found,) = check(make_coco(tmp_path, coco_content(annotations)))
    assert dict(found.pixels) == {0: 24 * 32 - 100 - 25, 1: 84, 17: 16, 255: 25}
    assert found.problems == []
    assert "1 objects cover no pixel and were not drawn" in found.notes


def test_a_class_that_covers_nearly_all_is_noted(tmp_path: Path) -> None:
    labels = np.zeros((24, 32), dtype=np.uint8)
    labels[0, 0] = 1
    save(tmp_path / "images" / "a.jpg", noise(0))
    save(tmp_path / "masks" / "a.png", labels)
    assert check(tmp_path)[0].notes == ["class 0 has 99.9 % of the labelled pixels"]


def test_few_pictures_are_in_memory_at_a_time_and_the_order_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(60):
        save(tmp_path / f"{index:02}.png", noise(index, 4, 4))
    started, done, most, lock = 0, 0, 0, threading.Lock()
    original = dataset_checks.check_item

    def counted(*arguments: object) -> object:
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - done)
        return original(*arguments)  # type: ignore[arg-type]

    def advance() -> None:
        nonlocal done
        done += 1

    monkeypatch.setattr(dataset_checks, "check_item", counted)
    (found,) = check_datasets(open_datasets(tmp_path), workers=3, progress=advance)
    assert done == started == 60
    assert most <= 4 * 3 + 1
    assert found.sizes == {(4, 4): 60}


def test_nothing_is_written_while_checking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_coco(tmp_path, coco_content([{"category_id": 1, "segmentation": [square(2, 2, 6)]}]))
    before = sorted(tmp_path.rglob("*"))
    check(path)
    assert sorted(tmp_path.rglob("*")) == before
