"""The classes of one picture: what the network sees, probabilities, report, table and picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_pictures import drawn
from monai.data import MetaTensor
from picture_sets import noise, save
from PIL import Image
from torchvision.transforms import v2

from dinomed.data.datasets.classified_pictures import list_to_classify
from dinomed.errors import InputError, OutputError
from dinomed.transforms.class_results import (
    CentreSquared,
    NameCased,
    SaveImageClassificationd,
    ToProbabilitiesd,
    write_predictions,
)
from dinomed.transforms.image_chart import draw_classes, shown_share
from dinomed.transforms.image_classification import ImageClassification, assemble_image_classification
from dinomed.transforms.report import RunInfo
from dinomed.transforms.staged_results import is_own_png

RUN = RunInfo("imagenette_classification", "0.1.0", weights_file="best.pt", weights_sha256="ab", device="cpu")
NAMES = ["tench", "church", "golf ball"]


def picture(tmp_path: Path, name: str = "photo.jpg") -> Path:
    return save(tmp_path / name, drawn("blue", "box", 3), quality=95)


def network_input(path: Path) -> MetaTensor:
    return MetaTensor(torch.zeros(3, 224, 224), meta={"filename_or_obj": str(path)})


def classified(path: Path, probabilities: Any = (0.2, 0.7, 0.1), **settings: Any) -> ImageClassification:
    names = settings.pop("label_names", NAMES)
    given = probabilities if isinstance(probabilities, dict) else torch.tensor(probabilities)
    return assemble_image_classification(network_input(path), given, names, RUN, **settings)


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (257, 257), (120, 90), (256, 300)])
def test_network_sees_the_centre_as_torchvision_cuts_it(height: int, width: int) -> None:
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0)), (height, width), mode="bicubic"
    )[0].clamp(0, 1)
    found = CentreSquared("image", 256, 224)({"image": smooth})["image"]
    wanted = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])(smooth)
    assert found.shape == (3, 224, 224)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    assert float((found - wanted).abs().mean()) < 5e-3  # torchvision rounds the longer side, and so its scale


def test_very_long_and_tiny_pictures_give_a_square_too() -> None:
    for shape in ((3, 1, 30000), (3, 30000, 1), (3, 1, 1)):
        assert CentreSquared("image", 64, 48)({"image": torch.rand(shape)})["image"].shape == (3, 48, 48)
    with pytest.raises(ValueError, match="a picture of 200 pixels cannot give a square of 224"):
        CentreSquared("image", 200, 224)


def test_logits_become_probabilities_of_their_kind() -> None:
    logits = torch.tensor([1.0, -2.0, 0.5])
    torch.testing.assert_close(ToProbabilitiesd()({"pred": logits})["pred"], logits.exp() / logits.exp().sum())
    labels = ToProbabilitiesd(kind="multilabel")({"pred": logits})["pred"]
    torch.testing.assert_close(labels, 1 / (1 + (-logits).exp()))
    tasks = ToProbabilitiesd(kind="multitask")({"pred": {"a": logits, "b": logits[:2]}})["pred"]
    assert all(float(each.sum()) == pytest.approx(1) for each in tasks.values())
    with pytest.raises(ValueError, match="choose from multiclass"):
        ToProbabilitiesd(kind="softmax")


def test_report_says_classes_model_and_picture(tmp_path: Path) -> None:
    paths = classified(picture(tmp_path)).save(tmp_path / "out")
    report = strict(paths.report)
    task = report["tasks"][0]
    assert (task["name"], task["predicted"]) == ("label", ["church"])
    assert [(row["rank"], row["name"]) for row in task["top"]] == [(1, "church"), (2, "tench"), (3, "golf ball")]
    assert task["probabilities"] == pytest.approx({"tench": 0.2, "church": 0.7, "golf ball": 0.1})
    assert report["input"]["name"] == "photo.jpg"
    assert len(report["input"]["sha256"]) == 64
    assert report["model"]["weights_file"] == "best.pt"
    assert report["warnings"] == []
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["photo_class.json", "photo_class.png"]
    assert is_own_png(paths.picture)


def test_top_five_of_many_classes_are_listed(tmp_path: Path) -> None:
    values = torch.tensor([0.1, 0.05, 0.3, 0.25, 0.2, 0.06, 0.04])
    result = classified(picture(tmp_path), values.tolist(), label_names=[f"class {k}" for k in range(7)])
    assert [name for name, _ in result.top()] == ["class 2", "class 3", "class 4", "class 0", "class 5"]
    assert "probability of only 0.30" in result.warnings[0]
    one = classified(picture(tmp_path), [0.5, 0.5], label_names=["a", "b"], top_k=1)
    assert one.top() == [("a", 0.5)], "of equals the first"


def test_labels_are_decided_by_their_threshold(tmp_path: Path) -> None:
    settings = {"kind": "multilabel", "threshold": 0.4}
    result = classified(picture(tmp_path), (0.4, 0.9, 0.39), **settings)
    assert result.predicted() == ["tench", "church"]
    assert result.row()["predicted"] == "tench|church"
    none = classified(picture(tmp_path), (0.1, 0.2, 0.3), **settings)
    assert none.predicted() == []
    assert strict(none.save(tmp_path).report)["threshold"] == 0.4


def test_tasks_stand_apart_in_report_and_table(tmp_path: Path) -> None:
    given = {"animal": torch.tensor([0.9, 0.1]), "place": torch.tensor([0.2, 0.3, 0.5])}
    names = {"animal": ["dog", "cat"], "place": ["home", "park", "lake"]}
    result = classified(picture(tmp_path), given, label_names=names, kind="multitask")
    assert [task["predicted"] for task in strict(result.save(tmp_path).report)["tasks"]] == [["dog"], ["lake"]]
    row = result.row()
    assert (row["animal_predicted"], row["place_probability"]) == ("dog", 0.5)
    assert row["place_prob_park"] == pytest.approx(0.3)


def test_names_must_be_as_many_as_probabilities(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 label_names of label do not fit 2 probabilities"):
        classified(picture(tmp_path), (0.5, 0.5))


def test_picture_stands_beside_bars_as_long_as_the_probabilities() -> None:
    pixels = np.full((40, 60, 3), (200, 30, 30), dtype=np.uint8)
    sheet = np.asarray(draw_classes(pixels, [("", [("a", 0.75, True), ("b", 0.25, False)])]))
    red = (sheet == (200, 30, 30)).all(-1)
    assert red.sum() == 480 * 320, "the picture, enlarged to its frame"
    chosen = (sheet == (0x1F, 0x6F, 0x4A)).all(-1).sum(1).max()
    other = (sheet == (0x9F, 0xB3, 0xA8)).all(-1).sum(1).max()
    assert (chosen, other) == (315, 105)


def test_long_names_and_strange_shapes_are_drawn(tmp_path: Path) -> None:
    name = "a class with a name that is longer than any chart is wide, and wider still \n in two lines"
    for shape in ((1, 900, 3), (900, 1, 3), (2000, 1500, 3)):
        sheet = draw_classes(np.zeros(shape, dtype=np.uint8), [("task", [(name, 1.0, True)] * 8)], name)
        assert sheet.width == 948
        assert sheet.height < 1000


def test_shares_never_claim_what_rounding_made() -> None:
    assert [shown_share(value) for value in (0.0, 0.0001, 0.1234, 0.9999, 1.0)] == [
        *("0.0 %", "< 0.1 %", "12.3 %", "> 99.9 %", "100.0 %")
    ]


def test_results_are_replaced_only_when_asked(tmp_path: Path) -> None:
    result = classified(picture(tmp_path))
    result.save(tmp_path / "out")
    with pytest.raises(OutputError, match="exists already; pass overwrite"):
        result.save(tmp_path / "out")
    again = classified(result.path, (0.6, 0.3, 0.1)).save(tmp_path / "out", overwrite=True)
    assert strict(again.report)["tasks"][0]["predicted"] == ["tench"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_failed_drawing_leaves_no_half_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    result = classified(picture(tmp_path))
    monkeypatch.setattr("dinomed.transforms.image_classification.save_png", fail)
    with pytest.raises(OutputError, match=r"photo cannot be written .*no space left"):
        result.save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_result_never_replaces_its_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "x_class.png", noise(0))
    result = assemble_image_classification(network_input(path), torch.tensor([0.2, 0.8]), ["a", "b"], RUN)
    result.case = "x"
    with pytest.raises(OutputError, match="would be replaced by a result"):
        result.save(tmp_path, overwrite=True)


def test_transform_writes_results_and_a_table_for_all(tmp_path: Path) -> None:
    saving = SaveImageClassificationd(output_dir=tmp_path / "out", label_names=NAMES)
    for name, probabilities in (("a.jpg", [0.2, 0.7, 0.1]), ("b.jpg", [0.5, 0.1, 0.4])):
        saving({"image": network_input(picture(tmp_path, name)), "pred": torch.tensor(probabilities)})
    with saving.write_table().open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["predicted"] for row in rows] == ["church", "tench"]
    assert float(rows[1]["prob_golf ball"]) == pytest.approx(0.4)
    assert Image.open(tmp_path / "out" / "b_class.png").mode == "RGB"
    with pytest.raises(OutputError, match=r"predictions\.csv exists already"):
        write_predictions(saving.rows, tmp_path / "out")
    with pytest.raises(ValueError, match="top_k must be a whole number"):
        SaveImageClassificationd(top_k=0)


def test_cases_carry_their_names_and_patients() -> None:
    assert NameCased()({"name": "val/x.jpg", "subject": ""})["case"] == "val/x.jpg"
    assert NameCased()({"name": "x", "subject": "p1"})["patient"] == "p1"


def test_results_in_a_folder_are_not_classified_again(tmp_path: Path) -> None:
    path = picture(tmp_path)
    classified(path).save(tmp_path)
    assert list_to_classify(tmp_path, tmp_path) == [{"image": str(path)}]
    other = save(tmp_path / "other_class.png", noise(1))  # without a report it is a picture like others
    assert {each["image"] for each in list_to_classify(tmp_path)} == {str(path), str(other)}
    assert list_to_classify([path, path, tmp_path / "other_class.png"]) == [{"image": str(path)}, {"image": str(other)}]


def test_pictures_that_cannot_be_listed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="input is None; set it to a picture"):
        list_to_classify(None)
    with pytest.raises(InputError, match="holds no picture"):
        list_to_classify(tmp_path)
    picture(tmp_path / "one")
    picture(tmp_path / "two")
    with pytest.raises(InputError, match="several pictures are called photo, so that their results"):
        list_to_classify(tmp_path)
    pair = [save(tmp_path / "p" / name, noise(2)) for name in ("a.jpg", "a_class.png")]
    with pytest.raises(OutputError, match="is a picture of this run and the result of another"):
        list_to_classify(pair, tmp_path / "p")
