"""Pictures with classes out of folders, CSV and JSON: numbers, parts, held-out shares, and what is refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_pictures import as_labels, make_folders, make_rows, write_csv, write_json
from picture_sets import noise, save

from dinomed.data.datasets.holdout import hold_out
from dinomed.data.datasets.imagenette import IMAGENETTE_CLASSES
from dinomed.data.datasets.labelled_images import LabelledImages, check_label_names, open_labelled_images
from dinomed.data.datasets.labelled_rows import read_rows
from dinomed.errors import InputError

COLOURS = ["amber", "blue", "green"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        save(folder / name, noise(0, 8, 8))


def labels(data: LabelledImages) -> dict[str, Any]:
    return {Path(item["image"]).name: item["label"] for item in data}


def numbers_of(data: LabelledImages) -> list[int]:
    return [item["label"] for item in data]


def table(tmp_path: Path, rows: list[dict[str, Any]], name: str = "list.csv") -> Path:
    for row in rows:
        if row["image"] and not (tmp_path / row["image"]).exists():
            touch(tmp_path, row["image"])
    return write_csv(tmp_path / name, rows)


def refused(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_labelled_images(table(tmp_path, list(rows)), **options)
    return str(caught.value)


ROWS = [
    {"image": f"{k}.png", "label": label, "split": split}
    for k, (label, split) in enumerate([("cat", "train"), ("dog", "train"), ("cat", "train"), ("dog", "val")])
]


def test_folders_are_the_classes_and_parts_have_the_same_numbers(tmp_path: Path) -> None:
    root = make_folders(tmp_path, training=2, validation=1)
    training = open_labelled_images(root)
    validation = open_labelled_images(root, "validation", class_names=training.given_classes)
    assert training.label_names == validation.label_names == COLOURS
    assert numbers_of(training) == [0, 0, 1, 1, 2, 2]
    assert numbers_of(validation) == [0, 1, 2]
    assert {Path(item["image"]).parent.name for item in training if item["label"] == 1} == {"blue"}
    assert len(open_labelled_images(root, "all")) == 9


def test_wordnet_folders_have_names(tmp_path: Path) -> None:
    for folder in IMAGENETTE_CLASSES:
        touch(tmp_path / "train" / folder, f"{folder}_1.JPEG".replace(".JPEG", ".jpg"))
        touch(tmp_path / "val" / folder, f"{folder}_2.jpg")
    data = open_labelled_images(tmp_path, "validation", class_names=IMAGENETTE_CLASSES)
    assert data.label_names[:3] == ["tench", "English springer", "cassette player"]
    assert labels(data)["n03888257_2.jpg"] == 9
    assert len(IMAGENETTE_CLASSES) == 10


def test_names_that_the_folders_have_already_are_taken_too(tmp_path: Path) -> None:
    touch(tmp_path / "tench", "a.jpg", "b.jpg")
    touch(tmp_path / "church", "c.jpg", "d.jpg")
    data = open_labelled_images(tmp_path, "all", class_names={"n1": "tench", "n2": "church"})
    assert labels(data) == {"a.jpg": 0, "b.jpg": 0, "c.jpg": 1, "d.jpg": 1}


def test_validation_is_held_out_of_folders_without_one_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folders(tmp_path, training=10, validation=0)
    with caplog.at_level(logging.INFO):
        training = open_labelled_images(root, validation_share=0.3, seed=4)
    validation = open_labelled_images(root, "validation", validation_share=0.3, seed=4)
    assert "9 of 30 pictures are held out" in caplog.text
    assert "seed 4" in caplog.text
    assert not set(labels(training)) & set(labels(validation))
    assert len(training) + len(validation) == 30
    assert np.bincount(numbers_of(validation)).tolist() == [3, 3, 3]
    again = open_labelled_images(root, "validation", validation_share=0.3, seed=4)
    other = open_labelled_images(root, "validation", validation_share=0.3, seed=5)
    assert labels(again) == labels(validation) != labels(other)


def test_test_folder_is_never_drawn_into_training(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for colour in ("red", "blue"):
            touch(tmp_path / part / colour, *(f"{part}{k}{colour}.jpg" for k in range(5)))
    parts = {part: open_labelled_images(tmp_path, part) for part in ("training", "validation", "test")}
    assert {part: len(data) for part, data in parts.items()} == {"training": 8, "validation": 2, "test": 10}
    assert all(name.startswith("test") for name in labels(parts["test"]))


def test_csv_and_json_give_the_same_items(tmp_path: Path) -> None:
    csv_list = table(tmp_path, ROWS)
    plain = write_json(tmp_path / "list.json", ROWS)
    by_part = write_json(
        tmp_path / "parts.json",
        {"training": [{k: r[k] for k in ("image", "label")} for r in ROWS[:3]], "validation": [ROWS[3]], "n": 4},
    )
    for part, wanted in (("training", {"0.png": 0, "1.png": 1, "2.png": 0}), ("validation", {"3.png": 1})):
        for source in (csv_list, plain, by_part):
            assert labels(open_labelled_images(source, part)) == wanted, (part, source)


def test_numbers_in_a_list_are_sorted_as_numbers_and_may_stand_for_names(tmp_path: Path) -> None:
    path = table(tmp_path, [{"image": f"{k}.png", "label": k, "split": "train"} for k in (10, 9, 2)])
    assert open_labelled_images(path).label_names == ["2", "9", "10"]
    pair = table(tmp_path, [{"image": f"{k}.png", "label": k, "split": "train"} for k in (1, 0)], "pair.csv")
    assert labels(open_labelled_images(pair, class_names=["cat", "dog"])) == {"1.png": 1, "0.png": 0}


def test_labels_of_zero_and_one_become_vectors(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    data = open_labelled_images(write_csv(tmp_path / "l.csv", as_labels(rows)), kind="multilabel")
    assert data.label_names == ["blue", "green", "stripe"]
    for row, item in zip(rows, data, strict=False):
        wanted = [float(row["colour"] == "blue"), float(row["colour"] == "green"), float(row["shape"] == "stripe")]
        assert item["label"].tolist() == wanted
        assert item["label"].dtype == torch.float32
    share = sum(row["colour"] == "blue" for row in rows[:12])
    assert data.positive_weights()[0] == pytest.approx((12 - share) / share)


def test_json_lists_of_names_are_labels_too(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    rows = [
        {"image": "a.png", "label": ["x", "y"]},
        {"image": "b.png", "label": []},
        {"image": "c.png", "label": ["y"]},
    ]
    data = open_labelled_images(write_json(tmp_path / "l.json", rows), "all", kind="multilabel")
    assert data.label_names == ["x", "y"]
    assert [item["label"].tolist() for item in data] == [[1, 1], [0, 0], [0, 1]]


def test_several_columns_are_several_tasks(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    path = write_csv(tmp_path / "m.csv", rows)
    data = open_labelled_images(path, kind="multitask")
    assert data.label_names == {"colour": COLOURS, "shape": ["box", "stripe"]}
    assert data[0]["label"] == {"colour": 0, "shape": 0}
    assert data[2]["label"] == {"colour": 2, "shape": 1}
    named = open_labelled_images(path, kind="multitask", class_names={"shape": ["stripe", "box"], "colour": COLOURS})
    assert named[2]["label"] == {"shape": 0, "colour": 2}
    only = open_labelled_images(path, kind="multitask", targets=["shape"])
    assert only.label_names == {"shape": ["box", "stripe"]}
    single = open_labelled_images(path, kind="multiclass", targets=["shape"])
    assert single.label_names == ["box", "stripe"]


def test_presence_lets_rare_classes_be_drawn_as_often_as_others(tmp_path: Path) -> None:
    from dinomed.data.sampling import ClassBalancedSampler

    touch(tmp_path / "train" / "often", *(f"o{k}.jpg" for k in range(20)))
    touch(tmp_path / "train" / "rare", "r.jpg", "s.jpg")
    touch(tmp_path / "val" / "rare", "v.jpg")
    data = open_labelled_images(tmp_path)
    draws = [int(index) for index in ClassBalancedSampler(data.presence(), samples_per_epoch=2000, seed=1)]
    rare = sum(data[index]["label"] == 1 for index in draws)
    assert 900 < rare < 1100
    assert draws == [int(i) for i in ClassBalancedSampler(data.presence(), samples_per_epoch=2000, seed=1)]


def test_presence_of_labels_counts_pictures_without_any(tmp_path: Path) -> None:
    data = open_labelled_images(write_csv(tmp_path / "l.csv", as_labels(make_rows(tmp_path))), kind="multilabel")
    presence = data.presence()
    assert presence.shape == (12, 4)
    assert presence.any(1).all()


def test_patients_are_not_divided(tmp_path: Path) -> None:
    rows = [
        {"image": f"{k}.png", "label": ("a", "b")[k // 2 % 2], "patient": f"p{k // 2}", "split": ""} for k in range(24)
    ]
    path = table(tmp_path, rows)
    parts = [open_labelled_images(path, part) for part in ("training", "validation")]
    patients = [{item["subject"] for item in data} for data in parts]
    assert not patients[0] & patients[1]
    assert all(patients)


def test_class_of_a_single_picture_stays_in_training() -> None:
    presence = np.zeros((21, 3), dtype=bool)
    presence[:10, 0] = presence[10:20, 1] = presence[20, 2] = True
    for seed in range(5):
        out = hold_out(presence, 0.2, seed)
        assert not out[20]
        assert out[:10].any()
        assert out[10:20].any()
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out(presence, 1.5)


def test_unknown_class_in_validation_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [*ROWS, {"image": "9.png", "label": "fox", "split": "val"}]
    path = table(tmp_path, rows)
    classes = open_labelled_images(path).given_classes
    with pytest.raises(InputError, match=r"list\.csv line 6 has the class 'fox', which is none of cat, dog; correct"):
        open_labelled_images(path, "validation", class_names=classes)
    assert len(open_labelled_images(path, "validation", class_names=classes, strict=False)) == 1


def test_folder_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    make_folders(tmp_path, 2, 1)
    touch(tmp_path / "val" / "purple", "p.jpg")
    with pytest.raises(InputError, match=r"val/purple has the class 'purple', which is none of amber, blue, green"):
        open_labelled_images(tmp_path, "validation")


def test_missing_file_is_named_with_its_row_and_may_be_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, ROWS)
    (tmp_path / "1.png").unlink()
    (tmp_path / "5.png").touch()
    with pytest.raises(InputError, match=r"line 3 names .*1\.png, which is not there; correct the path"):
        open_labelled_images(path)
    assert set(labels(open_labelled_images(path, strict=False))) == {"0.png", "2.png"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": ""}, "line 2 has no label; fill it, or remove the row"),
        ({"image": " "}, "line 2 names no picture; fill image"),
        ({"split": "holdout"}, "line 2 has the split 'holdout'; write one of"),
    ],
)
def test_broken_cells_are_named_with_their_row(tmp_path: Path, change: dict[str, str], said: str) -> None:
    path = table(tmp_path, ROWS)
    write_csv(path, [{**ROWS[0], **change}, *ROWS[1:]])
    with pytest.raises(InputError, match=said):
        open_labelled_images(path)


def test_class_without_training_pictures_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, *ROWS, class_names=["cat", "dog", "owl"])
    assert "no training picture of the class owl" in said
    assert "null takes those of the data" in said


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, *[{**row, "label": "cat"} for row in ROWS])
    assert "all 3 training pictures have the class cat, so that nothing can be told apart" in said


def test_labels_that_no_picture_or_every_picture_has_are_refused(tmp_path: Path) -> None:
    rows = [{"image": f"{k}.png", "label_a": k % 2, "label_b": 0, "split": "train"} for k in range(4)]
    assert "no training picture of the label b" in refused(tmp_path, *rows, kind="multilabel")
    rows = [{**row, "label_b": 1} for row in rows]
    assert "training pictures have the label b, so that nothing can be told apart" in refused(
        tmp_path, *rows, kind="multilabel"
    )


def test_same_picture_with_two_labels_is_refused_and_with_one_label_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = refused(tmp_path, *ROWS, {**ROWS[0], "label": "dog"})
    assert "line 6 gives 0.png other labels than" in said
    assert "line 2; keep the right one" in said
    assert "keep it in one part" in refused(tmp_path, *ROWS, {**ROWS[0], "split": "val"})
    assert len(open_labelled_images(table(tmp_path, [*ROWS, ROWS[0]]))) == 3
    assert "lists 1 pictures more than once" in caplog.text


def test_columns_that_do_not_fit_the_task_are_named(tmp_path: Path) -> None:
    rows = as_labels(make_rows(tmp_path))
    assert "with label_ columns set task to multilabel" in refused(tmp_path, *rows)
    assert "has no column 'size'" in refused(tmp_path, *rows, kind="multilabel", targets=["size"])
    assert "needs columns label_NAME of 0 and 1" in refused(
        tmp_path, {"image": "a.png", "colour": "x"}, kind="multilabel"
    )
    rows[3]["label_green"] = 2
    assert "line 5 has '2' as label_green; write 0 or 1" in refused(tmp_path, *rows, kind="multilabel")
    rows[3]["label_green"] = "nan"
    assert "write 0 or 1" in refused(tmp_path, *rows, kind="multilabel")


def test_labels_in_json_are_names_and_whole_numbers(tmp_path: Path) -> None:
    def write(*given: Any) -> Path:
        return write_json(tmp_path / "l.json", [{"image": f"{k}.png", "label": each} for k, each in enumerate(given)])

    touch(tmp_path, *(f"{k}.png" for k in range(4)))
    assert open_labelled_images(write(1, 1.0, "1", 2), "all").label_names == ["1", "2"]
    assert open_labelled_images(write(True, False, True, False), "all").label_names == ["False", "True"]
    for bad in ({"x": 0}, float("nan"), 0.5, float("inf")):
        with pytest.raises(InputError, match=r"item 2 has .* as label; write a name or a whole number"):
            open_labelled_images(write("a", bad, "b", "a"), "all")
        data = open_labelled_images(write("a", bad, "b", "a"), "all", strict=False)
        assert data.label_names == ["a", "b"]
    with pytest.raises(InputError, match="item 1 has True as label, other rows have numbers"):
        open_labelled_images(write(True, 1, 0, 0), "all")


def test_class_whose_name_no_report_could_hold_is_refused(tmp_path: Path) -> None:
    for folder in (b"caf\xe9", b"bar"):
        place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder))
        try:
            touch(place, "a.jpg", "b.jpg")
        except OSError:
            pytest.skip("this disk takes no names that are no UTF-8")
    with pytest.raises(InputError, match=r"the class 'caf\\udce9' has a name that is no Unicode text") as caught:
        open_labelled_images(tmp_path, "all")
    str(caught.value).encode()


def test_label_without_a_column_is_not_taken_for_zero(tmp_path: Path) -> None:
    rows = [{"image": f"{k}.png", "label_red": k % 2, "split": "val"} for k in range(4)]
    options = {"part": "validation", "kind": "multilabel"}
    for names in (["red", "green"], {"red": "Red", "green": "Green"}):
        assert "has no column of the label 'green' (label_green), but of red; add it" in refused(
            tmp_path, *rows, class_names=names, **options
        )
    path = table(tmp_path, [{**row, "label_green": 0} for row in rows])
    data = open_labelled_images(path, class_names={"red": "Red", "green": "Green"}, **options)
    assert [item["label"].tolist() for item in data] == [[0, 0], [1, 0], [0, 0], [1, 0]]
    shown = table(tmp_path, [{"image": f"{k}.png", "label_Red": 0, "label_Green": 1} for k in range(4)], "shown.csv")
    data = open_labelled_images(shown, "all", "multilabel", class_names={"red": "Red", "green": "Green"})
    assert data[0]["label"].tolist() == [0, 1]


def test_list_of_labels_is_no_class(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    path = write_json(tmp_path / "l.json", [{"image": "a.png", "label": ["x"]}])
    with pytest.raises(InputError, match="item 1 has a list as label; write one class, or set task to multilabel"):
        open_labelled_images(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("image,label\n", "has no rows below its header"),
        ("picture,label\na.png,x\n", "has no column image"),
        ("image,label\na.png\n", "line 2 has not as many cells as the header's 2"),
        ("image,label\na.png,x,y\n", "line 2 has not as many cells as the header's 2"),
        ("image,label,label\na.png,x,y\n", "has the column 'label' more than once"),
    ],
)
def test_broken_lists_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "l.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        open_labelled_images(tmp_path / "l.csv")


def test_sources_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file or folder .*absent"):
        open_labelled_images(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no folder with pictures for each class"):
        open_labelled_images(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON file"):
        open_labelled_images(tmp_path / "a.json")
    touch(tmp_path / "x", "train/stray.jpg", "train/c/a.jpg")
    with pytest.raises(InputError, match=r"stray\.jpg lies in no class's folder"):
        open_labelled_images(tmp_path / "x")
    with pytest.raises(InputError, match="no validation pictures"):
        open_labelled_images(table(tmp_path, ROWS[:1]), "validation")
    with pytest.raises(InputError, match="has no training pictures; it has validation"):
        open_labelled_images(table(tmp_path, ROWS[3:], "val.csv"))
    with pytest.raises(InputError, match="task 'binary' or part 'training' is unknown"):
        open_labelled_images(tmp_path, kind="binary")
    with pytest.raises(InputError, match="validation_share is 2"):
        open_labelled_images(tmp_path, validation_share=2)


def test_class_called_test_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path / "test", "a.jpg", "b.jpg")
    touch(tmp_path / "control", "c.jpg", "d.jpg")
    assert open_labelled_images(tmp_path, "all").label_names == ["control", "test"]
    assert {row.part for row in read_rows(tmp_path)[0]} == {""}


def test_flat_class_called_train_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path / "train", "a.jpg", "b.jpg")
    touch(tmp_path / "bus", "c.jpg", "d.jpg")
    assert labels(open_labelled_images(tmp_path, "all")) == {"a.jpg": 1, "b.jpg": 1, "c.jpg": 0, "d.jpg": 0}


def test_empty_and_unknown_folders_are_named(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "empty", 2, 1)
    (root / "train" / "pink").mkdir()
    with pytest.raises(InputError, match=r"train/pink is a class's folder without pictures; add some, or remove it"):
        open_labelled_images(root)
    assert open_labelled_images(root, strict=False).label_names == COLOURS
    root = make_folders(tmp_path / "unknown", 2, 1)
    (root / "val").rename(root / "validate")
    with pytest.raises(InputError, match=r"validate is no part's folder, but holds pictures; call it train, val or"):
        open_labelled_images(root)
    (root / "validate").rename(root / ".validate")
    (root / "val").mkdir()
    with pytest.raises(InputError, match=r"val holds no folder of a class"):
        open_labelled_images(root)


def test_broken_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    path = table(tmp_path, ROWS)
    text = path.read_text()
    path.write_text(text + ",cat,train\n7.png\n8.png,cat,someday\n9.png,dog,\n")
    with pytest.raises(InputError, match=r"line 6 names no picture; fill image and 3 more problems"):
        open_labelled_images(path)
    data = open_labelled_images(path, strict=False)
    assert set(labels(data)) == {"0.png", "1.png", "2.png"}
    assert [problem.reason.split(";")[0] for problem in data.problems] == [
        "names no picture",
        "has not as many cells as the header's 3",
        "has the split 'someday'",
        "has no split, though other rows have one",
    ]


@pytest.mark.parametrize("image", ["a\0.png", "\ud800.png"])
def test_picture_whose_name_no_disk_has_is_named_with_its_row(tmp_path: Path, image: str) -> None:
    table(tmp_path, ROWS)
    path = write_json(tmp_path / "l.json", [*ROWS, {**ROWS[0], "image": image}])
    with pytest.raises(InputError, match=r"item 5 names the picture '.*', which is no path"):
        open_labelled_images(path)
    assert len(open_labelled_images(path, strict=False)) == 3
    path = write_json(tmp_path / "l.json", [*ROWS, {**ROWS[0], "image": "a" * 5000}])
    assert len(open_labelled_images(path, strict=False)) == 3


def test_picture_with_two_labels_is_left_out_altogether(tmp_path: Path) -> None:
    path = table(tmp_path, [*ROWS, {**ROWS[0], "label": "dog"}])
    assert set(labels(open_labelled_images(path, strict=False))) == {"1.png", "2.png"}


def test_patient_in_two_parts_is_refused_and_left_out(tmp_path: Path) -> None:
    patients = ("p0", "p1", "p2", "p1 ")
    path = table(tmp_path, [{**row, "patient": patient} for row, patient in zip(ROWS, patients, strict=True)])
    extra = [{"image": f"{k}.png", "label": "dog", "split": split} for k, split in ((7, "train"), (8, "val"))]
    with pytest.raises(
        InputError, match=r"line 5 is of the patient 'p1' for validation, .*line 3 is for training; keep"
    ):
        open_labelled_images(path)
    rows = [{**row, "patient": patient} for row, patient in zip(ROWS, patients, strict=True)]
    path = table(tmp_path, [*rows, *({**row, "patient": row["image"]} for row in extra)])
    assert set(labels(open_labelled_images(path, strict=False))) == {"0.png", "2.png", "7.png"}
    assert set(labels(open_labelled_images(path, "validation", strict=False))) == {"8.png"}


def test_nothing_is_held_out_where_the_whole_validation_part_is_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, [*ROWS[:3], {**ROWS[3], "label": ""}])
    assert len(open_labelled_images(path, strict=False)) == 3
    with pytest.raises(InputError, match="line 5 has no label"):
        open_labelled_images(path, "validation", strict=False)


def test_patient_zero_is_a_patient_and_spaces_are_none(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{k}.png" for k in range(4)))
    rows = [{"image": f"{k}.png", "label": k % 2, "patient": each} for k, each in enumerate((0, "0 ", " ", None))]
    data = open_labelled_images(write_json(tmp_path / "l.json", rows), "all")
    assert [item["subject"] for item in data] == ["0", "0", "", ""]


def test_different_pictures_of_one_name_are_refused_in_one_part_only(tmp_path: Path) -> None:
    rows = [{**row, "name": name} for row, name in zip(ROWS, ("a", "b", "a", "a"), strict=True)]
    assert "line 4 is called 'a' as is" in refused(tmp_path, *rows)
    assert len(open_labelled_images(tmp_path / "list.csv", "validation")) == 1
    assert set(labels(open_labelled_images(tmp_path / "list.csv", strict=False))) == {"0.png", "1.png"}


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    for names in (["cat", "cat"], {"cat": "pet", "dog": "pet"}):
        assert "two classes are called" in refused(tmp_path, *ROWS, class_names=names)
    assert "class_names must map each of the tasks" in refused(
        tmp_path, *ROWS, kind="multitask", class_names=["cat", "dog"]
    )


def test_other_classes_than_the_networks_are_refused(tmp_path: Path) -> None:
    data = open_labelled_images(table(tmp_path, ROWS))
    check_label_names(data, ["cat", "dog"])
    with pytest.raises(InputError, match=r"has the classes \['cat', 'dog'\], but the network's are \['dog', 'cat'\]"):
        check_label_names(data, ["dog", "cat"])
