"""CSV and JSON lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from picture_sets import make_masks, noise, save

from dinomed.data.datasets import ItemList
from dinomed.data.datasets.item_list import splits_of
from dinomed.errors import InputError


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "image,label\nimages/p0.jpg,masks/p0.png\nimages/p1.jpg,masks/p1.png\n",
        "\ufeffImage;Label\r\nimages/p0.jpg;masks/p0.png\r\nimages/p1.jpg;masks/p1.png",
        'label\timage\tnote\nmasks/p0.png\timages/p0.jpg\t"a\nb"\nmasks/p1.png\timages/p1.jpg\t\n',
    ],
)
def test_csv_paths_are_relative_to_the_list(tmp_path: Path, text: str) -> None:
    make_masks(tmp_path)
    dataset = ItemList(write(tmp_path / "list.csv", text))
    assert dataset.task == "segmentation"
    assert dataset.items == [
        {
            "image": str(tmp_path / f"images/p{i}.jpg"),
            "label": str(tmp_path / f"masks/p{i}.png"),
            "name": f"images/p{i}",
        }
        for i in range(2)
    ]
    assert dataset.label_map(0).shape == (24, 32)


def test_json_lists_and_lists_per_split_are_read(tmp_path: Path) -> None:
    make_masks(tmp_path)
    rows = [{"image": f"images/p{i}.jpg", "label": f"masks/p{i}.png", "name": f"n{i}"} for i in range(3)]
    assert [item["name"] for item in ItemList(write(tmp_path / "a.json", rows))] == ["n0", "n1", "n2"]
    both = write(tmp_path / "b.json", {"description": "x", "training": rows[:2], "validation": rows[2:]})
    assert splits_of(both) == ["training", "validation"]
    assert len(ItemList(both)) == 2
    assert ItemList(both, "validation")[0]["name"] == "n2"
    with pytest.raises(InputError, match="has no list 'test' of items with `image`; it has training, validation"):
        ItemList(both, "test")


def test_rows_of_one_split_are_taken(tmp_path: Path) -> None:
    make_masks(tmp_path)
    text = "image,split\nimages/p0.jpg,train\nimages/p1.jpg,val\nimages/p2.jpg,train\n"
    path = write(tmp_path / "a.csv", text)
    assert splits_of(path) == ["train", "val"]
    assert [item["name"] for item in ItemList(path, "train")] == ["images/p0", "images/p2"]
    with pytest.raises(InputError, match="no rows whose split is 'tset'"):
        ItemList(path, "tset")


def test_classes_by_name_are_numbered_in_their_order(tmp_path: Path) -> None:
    make_masks(tmp_path)
    path = write(tmp_path / "a.csv", "image,label\nimages/p0.jpg,zebra\nimages/p1.jpg,ant\nimages/p2.jpg,zebra\n")
    dataset = ItemList(path)
    assert dataset.task == "classification"
    assert dataset.class_names == ("ant", "zebra")
    assert [item["label"] for item in dataset] == [1, 0, 1]
    assert ItemList(path, class_names=("zebra", "ant"))[0]["label"] == 0
    with pytest.raises(InputError, match="row 1 has the class 'zebra', which is not among the class names"):
        ItemList(path, class_names=("ant", "bee"))


def test_classes_by_number_stay_as_they_are(tmp_path: Path) -> None:
    make_masks(tmp_path)
    rows = [{"image": "images/p0.jpg", "label": 4}, {"image": "images/p1.jpg", "label": 0}]
    dataset = ItemList(write(tmp_path / "a.json", rows))
    assert [item["label"] for item in dataset] == [4, 0]
    assert dataset.num_classes is None


def test_lists_without_labels_are_for_testing(tmp_path: Path) -> None:
    make_masks(tmp_path)
    dataset = ItemList(write(tmp_path / "a.csv", "image,label\nimages/p0.jpg,\n"))
    assert dataset.task == "unlabelled"
    assert "label" not in dataset[0]


def test_missing_files_and_labels_are_an_error_or_left_out(tmp_path: Path) -> None:
    make_masks(tmp_path)
    text = "image,label\nimages/p0.jpg,masks/p0.png\nimages/x.jpg,masks/p1.png\nimages/p2.jpg,\n,masks/p1.png\n"
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(InputError, match=r"a\.csv row 2 names .*x\.jpg, which is not there.* and 2 more problems"):
        ItemList(path)
    dataset = ItemList(path, strict=False)
    assert len(dataset) == 1
    assert [each.file.rsplit(" ", 1)[1] for each in dataset.problems] == ["2", "3", "4"]


def test_names_stay_below_the_folder_of_results(tmp_path: Path) -> None:
    save(tmp_path / "out.jpg", noise(0))
    (tmp_path / "lists").mkdir()
    rows = [{"image": "../out.jpg"}, {"image": str(tmp_path / "out.jpg")}]
    assert [item["name"] for item in ItemList(write(tmp_path / "lists" / "a.json", rows))] == ["out", "out"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "picture,label\nx.jpg,1\n", "has no column `image`"),
        ("a.csv", "", "has no column `image`"),
        ("a.csv", 'image,label\n"x.jpg,1\n', r"line \d is no CSV"),
        ("a.json", "[1, 2]", "is no list of items"),
        ("a.json", "{", "is no JSON file"),
        ("a.json", "{}", "has no list 'training' of items with `image`; it has none"),
        ("a.json", "[]", "holds no picture that can be used"),
        ("a.csv", "image,label\nimages/p0.jpg,masks/p0.png\nimages/p1.jpg,cat\n", "names 1 label maps and 1 classes"),
    ],
)
def test_lists_that_are_none_are_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    make_masks(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        ItemList(write(tmp_path / name, content))
    assert str(caught.value).startswith(str(tmp_path / name))


def test_missing_and_latin1_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        ItemList(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes("image\nküche.jpg\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not text in UTF-8"):
        ItemList(tmp_path / "a.csv")
