from __future__ import annotations

import csv
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from dinomed.errors import InputError, OutputError
from dinomed.handlers.report import EvaluationReport
from dinomed.metrics import SegmentationScores, VolumeScores

NAMES = ["background", "shell", "core & <b>more</b>", "rare"]
AFFINE = torch.diag(torch.tensor([2.0, 1.0, 1.5, 1.0], dtype=torch.float64))
WORKER = """
import sys
sys.path[:0] = {paths}
import torch
from torch import distributed
from test_report import report_on
torch.set_num_threads(1)
rank = int(sys.argv[1])
distributed.init_process_group("gloo", "file://" + sys.argv[2], rank=rank, world_size=2)
# As a sampler does that gives all processes equally many: the first case is seen twice where they are odd.
report_on(sys.argv[3] + "/two/5", [k % 5 for k in range(rank, 6, 2)])
report_on(sys.argv[3] + "/two/1", [0][rank:])
distributed.destroy_process_group()
"""


def volume(index: int, name: str | None = None) -> dict[str, Any]:
    """A scan whose prediction is the worse the larger the index; `rare` is in case 2 alone, where it is missed."""
    reference = torch.zeros(1, 16, 14, 12, dtype=torch.uint8)
    reference[:, 2:13, 2:12, 2:10] = 1
    reference[:, 4:9, 4:9, 4:8] = 2
    predicted = reference.roll(index, 1)
    if index == 2:
        reference[0, 0, 0, 0] = 3
    image = torch.rand(1, 16, 14, 12, generator=torch.Generator().manual_seed(index))
    meta = {"filename_or_obj": name or f"/data/case{index}.nii.gz"}
    return {
        "image": MetaTensor(image, affine=AFFINE, meta=meta),
        "label": MetaTensor(reference, affine=AFFINE),
        "pred": MetaTensor(predicted, affine=AFFINE),
    }


def picture(index: int) -> dict[str, Any]:
    reference = torch.zeros(1, 20, 30, dtype=torch.int64)
    reference[:, 3:12, 4:20] = 2
    predicted = reference.roll(index, 2)
    reference[:, :2] = 255
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(index))
    return {
        "image": MetaTensor(image, meta={"filename_or_obj": f"p{index}.jpg"}),
        "label": reference,
        "pred": predicted,
    }


def report_on(folder: str | Path, indices: list[int], **settings: Any) -> EvaluationReport:
    """Evaluate the volumes of some indices and write the report."""
    report = EvaluationReport(folder, NAMES, **{"about": {"bundle": "tiny", "seed": 7}, "num_pictures": 1, **settings})
    for index in indices:
        report.add_case(volume(index))
    report.write()
    return report


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


class Reader(HTMLParser):
    """Collects what a page holds, and checks that its tags close."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "eval"
    report_on(folder, list(range(5)), region_groups={"box": [1, 2]}, num_pictures=2)
    return folder


def test_all_files_are_written_and_nothing_half(written: Path) -> None:
    tables = ["cases.csv", "classes.csv", "confusion.csv", "scores.csv"]
    pictures = ["best_1.png", "best_2.png", "confusion.png", "worst_1.png", "worst_2.png"]
    wanted = sorted([*tables, *pictures, "evaluation.json", "report.html"])
    assert sorted(path.name for path in written.iterdir()) == wanted
    assert all((written / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_tables_hold_the_scores_of_the_metric(written: Path) -> None:
    metric = VolumeScores(4, 2.0, class_names=NAMES, missed_mm=0.0)
    for index in range(5):
        case = volume(index)
        metric.update((case["pred"], case["label"]))
    scores = metric.compute()
    rows = {row["name"]: row for row in table(written / "classes.csv")}
    assert list(rows) == [*NAMES[1:], "box"]
    for name in NAMES[1:3]:
        for kind in ("dice", "hd95_mm", "nsd"):
            assert float(rows[name][f"{kind}_mean"]) == pytest.approx(scores[f"{kind}/{name}"], abs=6e-5)
    content = strict(written / "evaluation.json")
    assert content["summary"]["mean_dice"] == pytest.approx(scores["mean_dice"], abs=1e-6)
    assert content["summary"]["mean_nsd"] == pytest.approx(scores["mean_nsd"], abs=1e-6)
    assert content["summary"]["cases"] == 5


def test_an_absent_class_is_left_out_and_a_missed_one_counted(written: Path) -> None:
    rare = table(written / "classes.csv")[2]
    assert (rare["cases"], rare["missed"], rare["dice_mean"], rare["hd95_mm_mean"]) == ("1", "1", "0.0", "")
    cases = strict(written / "evaluation.json")["cases"]
    found = [[row["dice"] for row in case["labels"] if row["name"] == "rare"] for case in cases]
    assert found == [[], [], [0.0], [], []]
    assert table(written / "classes.csv")[2]["name"] == "rare"
    by_case = [row["case"] for row in table(written / "scores.csv") if row["name"] == "rare"]
    assert by_case == ["case2.nii.gz"]
    # The mean of case 0, which is perfect in all that it has, is not pulled down by what it does not have.
    assert table(written / "cases.csv")[0]["mean_dice"] == "1.0"


def test_confusion_matrix_counts_all_voxels(written: Path) -> None:
    with (written / "confusion.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0][1:] == [row[0] for row in rows[1:]] == NAMES
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows[1:]])
    wanted = np.zeros((4, 4), dtype=int)
    for index in range(5):
        case = volume(index)
        np.add.at(wanted, (case["label"].numpy().ravel(), case["pred"].numpy().ravel()), 1)
    assert np.array_equal(counts, wanted)


def test_the_page_stands_alone_and_escapes_names(written: Path) -> None:
    page = Reader((written / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "a", "iframe", "object", "b&gt;"})
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in (written / "report.html").read_text().replace("http-equiv", "")
    for said in ("tiny", "seed", "7", "core & <b>more</b>", "case4.nii.gz", "tolerance", "Not a medical device"):
        assert said in page.text, said
    assert "<b>more" not in (written / "report.html").read_text()


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path, NAMES, about={"data": "<script>alert(1)</script>", "bundle": "=1+1"})
    report.add_case(volume(1, name='=cmd|x "<img src=q onerror=a>'))
    report.write()
    page = Reader((tmp_path / "report.html").read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert "<script>alert(1)</script>" in page.text
    assert table(tmp_path / "cases.csv")[0]["case"].startswith("'=")  # no formula for a spreadsheet


def test_worst_and_best_are_what_their_names_say(written: Path) -> None:
    text = (written / "report.html").read_text()
    captions = [part.split("</figcaption>")[0] for part in text.split("<figcaption>")[1:]]
    assert [caption.split(":")[0] for caption in captions] == [
        *("case4.nii.gz", "case2.nii.gz"),  # a missed label makes case 2 worse than case 3
        *("case0.nii.gz", "case1.nii.gz"),
    ]


def test_one_case_makes_a_report(tmp_path: Path) -> None:
    report_on(tmp_path, [3])
    assert (tmp_path / "worst_1.png").is_file()
    assert not (tmp_path / "best_1.png").exists()
    assert len(table(tmp_path / "cases.csv")) == 1
    Reader((tmp_path / "report.html").read_text())


def test_no_case_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no case was evaluated"):
        report_on(tmp_path / "eval", [])
    assert not (tmp_path / "eval").exists()


def test_a_case_without_any_label_has_no_score_and_no_rank(tmp_path: Path) -> None:
    case = volume(0)
    case["label"] = MetaTensor(torch.zeros_like(case["label"]), affine=AFFINE)
    case["pred"] = MetaTensor(torch.zeros_like(case["pred"]), affine=AFFINE)
    report = EvaluationReport(tmp_path, NAMES)
    report.add_case(case)
    report.write()
    assert table(tmp_path / "cases.csv")[0]["mean_dice"] == ""
    assert strict(tmp_path / "evaluation.json")["summary"]["mean_dice"] is None
    assert not list(tmp_path.glob("worst_*"))


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    report_on(tmp_path, list(range(6)))
    report_on(tmp_path, [1])
    assert sorted(path.name for path in tmp_path.glob("*st_*.png")) == ["worst_1.png"]


def test_only_the_pictures_at_the_ends_are_kept(tmp_path: Path) -> None:
    report = report_on(tmp_path, [3, 1, 4, 0, 5, 2], num_pictures=1)
    assert [entry.png is not None for entry in report.entries] == [False, False, False, True, True, False]


def test_pictures_are_scored_over_all_their_pixels(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path, NAMES, ignore_index=255)
    metric = SegmentationScores(4, ignore_index=255)
    for index in (0, 3, 6):
        case = picture(index)
        report.add_case(case)
        metric.update((case["pred"], case["label"]))
    report.write()
    scores = metric.compute()
    summary = strict(tmp_path / "evaluation.json")["summary"]
    for name in ("mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy"):
        assert summary[name] == pytest.approx(scores[name], abs=1e-6)
    rows = table(tmp_path / "classes.csv")
    assert float(rows[2]["iou"]) == pytest.approx(scores["iou/2"], abs=6e-5)
    assert (rows[1]["iou"], rows[3]["iou"]) == ("", "")
    Reader((tmp_path / "report.html").read_text())


def test_logits_are_decided_at_the_size_of_the_reference(tmp_path: Path) -> None:
    case = picture(0)
    logits = torch.nn.functional.one_hot(case["pred"][0], 4).permute(2, 0, 1).float()
    case["pred"] = torch.nn.functional.interpolate(logits[None], scale_factor=2.0, mode="nearest")[0]
    report = EvaluationReport(tmp_path, NAMES, ignore_index=255, from_logits=True)
    report.add_case(case)
    assert report.entries[0].scores.summary["mean_iou"] == pytest.approx(1.0)


def test_groups_bring_the_classes_of_the_reference_to_labels(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path, ["rest", "box"], class_groups=[[0, 3], [1, 2]], region_groups={"x": [1]})
    case = volume(1)
    case["pred"] = (case["pred"] > 0).to(torch.uint8)
    report.add_case(case)
    inside = [(case[key] > 0) for key in ("pred", "label")]
    dice = 2 * (inside[0] & inside[1]).sum() / (inside[0].sum() + inside[1].sum())
    assert report.entries[0].scores.summary["mean_dice"] == pytest.approx(float(dice))
    assert report.entries[0].scores.regions == []
    case["label"][0, 0, 0, 0] = 9
    with pytest.raises(InputError, match=r"case1\.nii\.gz: reference classes run to 9"):
        report.add_case(case)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path, NAMES)
    case = volume(1)
    with pytest.raises(InputError, match=r"case1\.nii\.gz: .*shape"):
        report.add_case({**case, "pred": case["pred"][:, 1:]})
    report.add_case(case)
    with pytest.raises(InputError, match=r"p1\.jpg: scans and pictures"):
        report.add_case(picture(1))
    with pytest.raises(ValueError, match="class_groups"):
        EvaluationReport(tmp_path, NAMES, class_groups=[[0], [1]])
    with pytest.raises(ValueError, match="exactly once"):
        EvaluationReport(tmp_path, NAMES[:2], class_groups=[[0], [0]])
    with pytest.raises(ValueError, match="label_names"):
        EvaluationReport(tmp_path, {0: "a", 2: "b"})


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="output_dir"):
        report_on(tmp_path / "file", [1])


def test_an_engine_feeds_the_report_and_a_second_run_forgets_the_first(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path, NAMES)
    engine = Engine(lambda engine, batch: [volume(batch)])
    report.attach(engine)
    for _ in range(2):
        engine.run([1, 2])
    report.write()
    assert [row["case"] for row in table(tmp_path / "cases.csv")] == ["case1.nii.gz", "case2.nii.gz"]


def test_two_processes_write_the_tables_of_one(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]
    script = WORKER.format(paths=paths)
    arguments = [str(tmp_path / "meeting"), str(tmp_path)]
    commands = [[sys.executable, "-c", script, str(rank), *arguments] for rank in (0, 1)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    for cases in (5, 1):
        one, two = tmp_path / "one" / str(cases), tmp_path / "two" / str(cases)
        report_on(one, list(range(cases)))
        for name in ("cases.csv", "classes.csv", "scores.csv", "confusion.csv", "worst_1.png"):
            assert (two / name).read_bytes() == (one / name).read_bytes(), name
        contents = [strict(folder / "evaluation.json") for folder in (one, two)]
        assert [content["about"].pop("processes") for content in contents] == [1, 2]
        for content in contents:
            del content["about"]["finished"]
        assert contents[0] == contents[1]
