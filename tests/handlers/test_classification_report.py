from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn import metrics as sk
from torch import distributed
from two_processes import run_together

from dinomed.errors import InputError, OutputError
from dinomed.handlers.classification_report import ClassificationReport
from dinomed.metrics.classification import wilson_interval

NAMES = ["any", "rare", "absent", "<b>odd</b>"]
THRESHOLDS = {"any": 0.5, "absent": 0.3, "<b>odd</b>": 0.25}
CLASSES = ["cat", "dog", "owl"]
FILES = ("cases.csv", "metrics.json", "report.html")


def case(index: int) -> dict[str, Any]:
    """A case of 60: two a patient; `rare` is in case 7 alone, `absent` in none."""
    random = np.random.default_rng(index)
    label = np.array([index % 3 == 0, index == 7, False, index % 2 == 0])
    probs = np.clip(random.random(4) * 0.8 + 0.2 * label, 0, 1)
    return {
        "pred": torch.tensor(probs),
        "label": torch.tensor(label, dtype=torch.float32),
        "case": f"series{index:02d}",
        "patient": f"p{index // 2}",
        "study": f"s{index // 2}",
    }


def picture(index: int) -> dict[str, Any]:
    logits = torch.randn(3, generator=torch.Generator().manual_seed(index))
    logits[index % 3] += 1.0
    return {"species": logits.softmax(0), "truth": torch.tensor(index % 3), "case": f"picture{index}.jpg"}


def report_on(folder: Path, indices: Any = range(60), **settings: Any) -> ClassificationReport:
    options = {"about": {"bundle": "tiny", "part": "test"}, "thresholds": THRESHOLDS, "bootstrap_repeats": 200}
    report = ClassificationReport(folder, NAMES, **{**options, **settings})
    for index in indices:
        report.add_case(case(index))
    report.write()
    return report


def classes_on(folder: Path, indices: Any = range(40), **settings: Any) -> None:
    keys = {"pred_key": "species", "label_key": "truth"}
    report = ClassificationReport(folder, CLASSES, kind="multiclass", bootstrap_repeats=200, **keys, **settings)
    for index in indices:
        report.add_case(picture(index))
    report.write()


def arrays() -> tuple[np.ndarray, np.ndarray]:
    cases = [case(index) for index in range(60)]
    return np.stack([each["pred"] for each in cases]), np.stack([each["label"] for each in cases])


def metrics_of(folder: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


class Reader(HTMLParser):
    """Collects the tags, the pictures and the text of a page, and checks that its tags close."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self.feed((folder / "report.html").read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "onerror")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th", "p", "li", "h3"):
            self.text += "|"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "report"
    report_on(folder)
    return folder


@pytest.fixture(scope="module")
def written_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes") / "report"
    classes_on(folder)
    return folder


def test_three_files_are_written_and_nothing_half(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == list(FILES)


def test_numbers_are_those_of_scikit_learn(written: Path) -> None:
    probs, labels = arrays()
    found = metrics_of(written)
    rows = {row["label"]: row for row in found["labels"]}
    for name, k in (("any", 0), ("<b>odd</b>", 3)):
        row, called = rows[name], probs[:, k] >= THRESHOLDS[name]
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(labels[:, k], probs[:, k]), abs=1e-8)
        assert row["average_precision"] == pytest.approx(
            sk.average_precision_score(labels[:, k], probs[:, k]), abs=1e-8
        )
        assert row["brier"] == pytest.approx(sk.brier_score_loss(labels[:, k], probs[:, k]), abs=1e-8)
        assert [row["tn"], row["fp"], row["fn"], row["tp"]] == sk.confusion_matrix(
            labels[:, k], called
        ).ravel().tolist()
        assert row["sensitivity"] == pytest.approx(sk.recall_score(labels[:, k], called), abs=1e-8)
        assert row["positive_predictive_value"] == pytest.approx(sk.precision_score(labels[:, k], called), abs=1e-8)
        limits = wilson_interval(row["tn"], row["tn"] + row["fp"])
        assert row["specificity_interval"] == pytest.approx(list(limits or ()), abs=1e-8)
        assert row["auroc_interval"][0] < row["auroc"] < row["auroc_interval"][1]
    assert found["counts"] == {"cases": 60, "studies": 30, "patients": 30}
    assert rows["any"]["prevalence"] == pytest.approx(1 / 3)


def test_what_is_undefined_is_null_with_its_reason_and_in_no_mean(written: Path) -> None:
    found = metrics_of(written)
    rows = {row["label"]: row for row in found["labels"]}
    absent, rare = rows["absent"], rows["rare"]
    assert (absent["auroc"], absent["average_precision"], absent["sensitivity"]) == (None, None, None)
    assert absent["specificity"] is not None
    assert (rare["threshold"], rare["tp"], rare["specificity"]) == (None, None, None)
    assert rare["auroc"] is not None
    assert rare["auroc_interval"] is None  # one patient has it
    gaps = {(gap["label"], gap["score"]): gap["reason"] for gap in found["undefined"]}
    assert gaps["absent", "auroc"] == gaps["absent", "sensitivity"] == "no positive case"
    assert gaps["rare", "auroc_interval"].startswith("only 1")
    assert gaps["rare", "sensitivity, specificity, predictive values"] == "no threshold was chosen"
    assert found["summary"]["macro_auroc_labels"] == ["any", "rare", "<b>odd</b>"]
    mean = np.mean([rows[name]["auroc"] for name in ("any", "rare", "<b>odd</b>")])
    assert found["summary"]["macro_auroc"] == pytest.approx(mean, abs=1e-8)


def test_cases_have_label_probability_and_decision(written: Path) -> None:
    rows, (probs, labels) = table(written / "cases.csv"), arrays()
    assert [row["case"] for row in rows] == [f"series{k:02d}" for k in range(60)]
    for k, row in enumerate(rows):
        assert (row["patient"], row["study"]) == (f"p{k // 2}", f"s{k // 2}")
        assert int(row["any_label"]) == labels[k, 0]
        assert float(row["any_probability"]) == pytest.approx(probs[k, 0], abs=1e-6)
        assert int(row["any_decision"]) == (probs[k, 0] >= 0.5)
        assert row["rare_decision"] == ""


def test_the_page_answers_a_readers_questions(written: Path) -> None:
    page = Reader(written)
    for said in (
        "It is no medical device",
        "Thresholds come from the validation part; the cases of this page had no say in them.",
        "No threshold was chosen for: rare.",
        "rare: only 1 positive case; its intervals are wide",
        "absent: no positive case, so nothing tells how well it is recognised.",
        "60 cases are of 30 patients.",
        "(no interval)",
        "Without a curve, for reasons that are below: absent.",
        "patients were drawn anew 200 times, as many as there are, each with all cases",
        "any: 20 (33.3 %)",
        "PPV at this prevalence",
        "Brier score",
    ):
        assert said in page.text, said


def test_errors_are_listed_by_case_the_surest_first(written: Path) -> None:
    probs, labels = arrays()
    text = Reader(written).text
    part = text[text.index("missed (false negatives)") : text.index("absent: 0 missed")]
    missed, alarms = part.split("false alarms (false positives)")
    positive, called = labels[:, 0] == 1, probs[:, 0] >= 0.5
    for listed, wrong, order in ((missed, positive & ~called, probs), (alarms, ~positive & called, -probs)):
        wanted = [f"series{k:02d}" for k in np.argsort(order[:, 0]) if wrong[k]]
        assert wanted
        assert [cell.strip() for cell in listed.split("|") if cell.strip().startswith("series")] == wanted


def test_the_page_stands_alone_and_names_stay_names(tmp_path: Path, written: Path) -> None:
    page = Reader(written)
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.tags.isdisjoint({"script", "link", "a", "iframe"})
    assert "<b>odd</b>" in page.text
    hostile = case(0) | {"case": "<script>alert(1)</script>", "patient": '=1+"<img src=x onerror=y>'}
    report = ClassificationReport(tmp_path, NAMES, {"bundle": "<script>"}, thresholds=[0.99] * 4)
    report.add_case(hostile)
    report.write()
    page = Reader(tmp_path)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert page.sources == [source for source in page.sources if source.startswith("data:")]
    assert table(tmp_path / "cases.csv")[0]["patient"].startswith("'=")


def test_without_thresholds_there_are_no_decisions(tmp_path: Path) -> None:
    report_on(tmp_path, thresholds=None)
    assert "No threshold was chosen for: any, rare, absent, <b>odd</b>." in Reader(tmp_path).text
    assert metrics_of(tmp_path)["about"]["threshold_source"] is None
    assert {row["any_decision"] for row in table(tmp_path / "cases.csv")} == {""}


def test_thresholds_that_were_chosen_on_these_cases_are_warned_of(tmp_path: Path) -> None:
    report_on(tmp_path, range(12), about={"part": "validation"}, case_word="series")
    text = Reader(tmp_path).text
    assert "validation part, on which the best weights, thresholds and calibration were chosen" in text
    assert "had no say" not in text
    assert "12series" in text
    report_on(tmp_path, range(12), about={"part": "validation"}, threshold_source="the configuration")
    assert "validation part, on which the best weights were chosen" in Reader(tmp_path).text
    report_on(tmp_path, range(12), about={"part": "all"})
    assert "those that were trained on" in Reader(tmp_path).text
    report_on(tmp_path, range(12), about={"part": "test", "warnings": ["3 of 12 <were> trained on"]})
    text = Reader(tmp_path).text
    assert text.index("3 of 12 <were> trained on") < text.index("AUROC (95 % CI)")
    assert "had no say" not in text
    assert metrics_of(tmp_path)["warnings"][0] == "3 of 12 <were> trained on"


def test_one_case_and_one_class_make_a_report(tmp_path: Path) -> None:
    report_on(tmp_path, [0])
    found = metrics_of(tmp_path)
    assert {row["auroc"] for row in found["labels"]} == {None}
    assert found["summary"]["macro_auroc"] is None
    assert "Undefined for every label" in Reader(tmp_path).text
    classes_on(tmp_path / "classes", [0])
    found = metrics_of(tmp_path / "classes")
    assert found["summary"]["auroc"] is None
    assert found["summary"]["accuracy"] in (0.0, 1.0)
    Reader(tmp_path / "classes")


def test_classes_are_scored_as_scikit_learn_does(written_classes: Path) -> None:
    cases = [picture(index) for index in range(40)]
    probs, labels = np.stack([each["species"] for each in cases]), np.array([int(each["truth"]) for each in cases])
    found, called = metrics_of(written_classes), probs.argmax(1)
    whole = found["summary"]
    assert whole["accuracy"] == whole["top1"] == pytest.approx(sk.accuracy_score(labels, called), abs=1e-8)
    assert whole["top5"] == 1.0
    assert whole["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, called), abs=1e-8)
    assert whole["f1"] == pytest.approx(sk.f1_score(labels, called, average="macro"), abs=1e-8)
    wanted = np.mean([sk.roc_auc_score(labels == k, probs[:, k]) for k in range(3)])
    assert whole["auroc"] == pytest.approx(wanted, abs=1e-8)
    assert whole["accuracy_interval"][0] < whole["accuracy"] < whole["accuracy_interval"][1]
    assert found["confusion"] == sk.confusion_matrix(labels, called).tolist()
    assert [row["recall"] for row in found["classes"]] == pytest.approx(
        sk.recall_score(labels, called, average=None).tolist(), abs=1e-8
    )
    rows = {row["case"]: row for row in table(written_classes / "cases.csv")}
    assert rows["picture5.jpg"]["label"] == "owl"
    assert rows["picture5.jpg"]["decision"] == CLASSES[called[5]]
    assert float(rows["picture5.jpg"]["dog_probability"]) == pytest.approx(probs[5, 1], abs=1e-6)


def test_every_score_of_the_whole_has_an_interval_and_says_how_it_was_made(written_classes: Path) -> None:
    whole = metrics_of(written_classes)["summary"]
    for name in ("accuracy", "top1", "balanced_accuracy", "precision", "recall", "f1", "auroc"):
        low, high = whole[f"{name}_interval"]
        assert low < whole[name] < high, name
        assert whole[f"{name}_interval_method"] == "bootstrap of patients"
    assert whole["precision_interval"] != whole["recall_interval"]
    assert "the interval is" in Reader(written_classes).text


def test_perfect_scores_have_an_honest_interval_or_none(tmp_path: Path) -> None:
    report = ClassificationReport(tmp_path, CLASSES, kind="multiclass", bootstrap_repeats=50)
    for index in range(24):  # two pictures of each of 12 patients
        report.add_case(
            {
                "pred": np.eye(3)[index % 3] * 0.7 + 0.1,
                "label": index % 3,
                "case": str(index),
                "patient": str(index // 2),
            }
        )
    report.write()
    found = metrics_of(tmp_path)
    whole, gaps = found["summary"], {gap["score"]: gap["reason"] for gap in found["undefined"]}
    assert whole["accuracy"] == 1.0
    assert whole["accuracy_interval"] == pytest.approx(list(wilson_interval(12, 12) or ()), abs=1e-8)
    assert whole["accuracy_interval_method"] == "Wilson, 12 patients as independent cases"
    for name in ("top5", "f1", "precision", "auroc"):  # of three classes top-5 is always right
        assert whole[f"{name}_interval"] is None
        assert gaps[f"{name}_interval"].startswith("it is 1 in every draw")
    text = Reader(tmp_path).text
    assert "Wilson, 12 patients" in text
    assert "1.000 (no interval)" in text


def test_the_page_of_classes_shows_matrix_and_worst_errors(written_classes: Path) -> None:
    page = Reader(written_classes)
    assert len(page.sources) == 3
    assert "top-3" in page.text
    assert "The data names no patients." in page.text
    rows = [row for row in table(written_classes / "cases.csv") if row["right"] == "0"]
    surest = max(rows, key=lambda row: float(row["probability"]))
    part = page.text[page.text.index("those with the highest probability come first") :]
    assert part.index(surest["case"]) == min(part.index(row["case"]) for row in rows)


def test_a_class_without_cases_is_left_out_and_said(tmp_path: Path) -> None:
    classes_on(tmp_path, [k for k in range(40) if k % 3 != 2])
    found = metrics_of(tmp_path)
    assert found["classes"][2]["recall"] is None
    assert {"label": "owl", "score": "precision, recall, f1, auroc", "reason": "no positive case"} in found["undefined"]
    assert "Means over classes are over the 2 of 3 classes that cases have." in Reader(tmp_path).text


def test_patients_that_are_not_named_are_warned_of(tmp_path: Path) -> None:
    report = ClassificationReport(tmp_path, NAMES, bootstrap_repeats=50)
    for index in range(20):
        report.add_case(case(index) | {"patient": None if index else "p0"})
    report.write()
    found = metrics_of(tmp_path)
    assert found["counts"] == {"cases": 20, "studies": 10, "patients": None}
    assert found["warnings"][0].startswith(
        "The data names the patients of some cases only. Where none is named each study"
    )
    assert found["about"]["bootstrap"]["unit"] == "study"


def test_weights_are_named_with_their_checksum(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"abc")
    report_on(tmp_path / "report", range(8), weights_path=tmp_path / "model.pt")
    checksum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert metrics_of(tmp_path / "report")["about"]["weights_sha256"] == checksum
    assert checksum in Reader(tmp_path / "report").text


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    report = ClassificationReport(tmp_path, NAMES)
    for change, message in (
        ({"pred": torch.tensor([0.1, math.nan, 0.2, 0.3])}, r"series00: its probabilities are \[0\.1, nan"),
        ({"pred": torch.tensor([0.1, 2.5, 0.2, 0.3])}, "series00: .* are no probabilities; put a sigmoid"),
        ({"pred": torch.rand(3)}, "series00: 3 probabilities do not fit 4 label_names"),
        ({"label": torch.tensor([0, 1, 2, 0])}, "series00: its label is .* give 0 or 1 for each of 4"),
        ({"label": torch.tensor(1)}, "series00: its label is"),
        ({"case": None}, "an evaluated item has no case"),
    ):
        with pytest.raises(InputError, match=message):
            report.add_case(case(0) | change)
    classes = ClassificationReport(tmp_path, CLASSES, kind="multiclass", pred_key="species", label_key="truth")
    with pytest.raises(InputError, match=r"add up to 1\.500, not to 1"):
        classes.add_case(picture(0) | {"species": torch.tensor([0.5, 0.5, 0.5])})
    with pytest.raises(InputError, match="number of a class, 0 to 2"):
        classes.add_case(picture(0) | {"truth": torch.tensor(3)})
    with pytest.raises(InputError, match="no pred and no label"):
        ClassificationReport(tmp_path, CLASSES).add_case(picture(0))
    for settings, message in (
        ({"label_names": ["a", "a"]}, "different names"),
        ({"kind": "both"}, "kind must be one of"),
        ({"thresholds": {"other": 0.5}}, "thresholds name other"),
        ({"thresholds": [0.5]}, "4 labels need as many thresholds"),
        ({"thresholds": 1.5}, "the threshold of any is 1.5"),
        ({"kind": "multiclass", "thresholds": 0.5}, "no thresholds"),
        ({"bootstrap_repeats": 0}, "bootstrap_repeats"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassificationReport(**{"folder": tmp_path, "label_names": NAMES, **settings})


def test_two_cases_of_one_name_are_an_error_and_one_case_twice_is_none(tmp_path: Path) -> None:
    report_on(tmp_path / "once", range(8))
    report_on(tmp_path / "twice", [*range(8), 3, 3])
    for name in FILES:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    report = ClassificationReport(tmp_path, NAMES)
    report.add_case(case(0))
    report.add_case(case(1) | {"case": "series00"})
    with pytest.raises(InputError, match="two different cases are called series00"):
        report.write()


def test_no_case_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no case was evaluated"):
        report_on(tmp_path / "report", [])
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="output_dir"):
        report_on(tmp_path / "file", range(4))


def test_an_engine_feeds_the_report_and_a_second_run_forgets_the_first(tmp_path: Path) -> None:
    report = ClassificationReport(tmp_path, NAMES, bootstrap_repeats=20)
    engine = Engine(lambda engine, batch: [case(index) for index in batch])
    report.attach(engine)
    engine.run([[4, 5], [6]])
    engine.run([[1, 2], [3]])
    report.write()
    assert [row["case"] for row in table(tmp_path / "cases.csv")] == ["series01", "series02", "series03"]


def in_a_process(folder: str) -> None:
    """As a sampler does that gives all processes equally many: of 61 places the first case fills two."""
    rank = distributed.get_rank()
    report_on(Path(folder) / "two", [k % 60 for k in range(rank, 62, 2)])
    classes_on(Path(folder) / "two_classes", range(40) if rank else [])


def test_two_processes_write_the_bytes_of_one(tmp_path: Path, written: Path, written_classes: Path) -> None:
    run_together(in_a_process, tmp_path, str(tmp_path))
    for one, two in ((written, tmp_path / "two"), (written_classes, tmp_path / "two_classes")):
        for name in FILES:
            assert (two / name).read_bytes() == (one / name).read_bytes(), name
