"""Reports of classifiers: one, or one for each of several tasks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from dinomed.handlers.task_reports import TaskReports

NAMES = {"colour": ["red", "blue"], "a/b shape": ["box", "disc", "star"]}


def items(count: int = 6) -> list[dict[str, Any]]:
    """Colours are all right, of the shapes every third is."""
    found = []
    for k in range(count):
        colour, shape = torch.eye(2)[k % 2] * 0.8 + 0.1, torch.tensor([0.7, 0.2, 0.1])
        label = {"colour": torch.tensor(k % 2), "a/b shape": torch.tensor(k % 3)}
        found.append({"pred": {"colour": colour, "a/b shape": shape}, "label": label, "case": f"c{k}", "patient": ""})
    return found


def run(report: TaskReports, output: list[dict[str, Any]]) -> None:
    engine = Engine(lambda engine, batch: output)
    report.attach(engine)
    engine.run([0])
    report.write()


def top1(folder: Path) -> float:
    with (folder / "cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    return float(json.loads((folder / "metrics.json").read_text())["summary"]["top1"])


def test_each_task_has_its_own_folder_and_scores(tmp_path: Path) -> None:
    report = TaskReports(tmp_path, NAMES, "multitask", {"bundle": "b"}, bootstrap_repeats=5)
    run(report, items())
    assert top1(tmp_path / "colour") == 1.0
    assert top1(tmp_path / "a_b_shape") == pytest.approx(1 / 3)
    run(report, items())  # anew, not added up
    assert top1(tmp_path / "colour") == 1.0


def test_pages_of_several_tasks_name_their_task(tmp_path: Path) -> None:
    run(TaskReports(tmp_path, NAMES, "multitask", {"bundle": "b", "part": "test"}, bootstrap_repeats=5), items())
    for folder, task in (("colour", "colour"), ("a_b_shape", "a/b shape")):
        page = (tmp_path / folder / "report.html").read_text()
        assert f"<title>Evaluation of b test, task {task}</title>" in page
        assert f"<h1>Evaluation of b test, task {task}</h1>" in page


def test_single_task_reports_into_the_folder_itself(tmp_path: Path) -> None:
    output = [{**item, "pred": item["pred"]["colour"], "label": item["label"]["colour"]} for item in items()]
    run(TaskReports(tmp_path, NAMES["colour"], bootstrap_repeats=5), output)
    assert top1(tmp_path) == 1.0


def test_labels_are_decided_by_the_configurations_threshold(tmp_path: Path) -> None:
    report = TaskReports(tmp_path, ["x", "y"], "multilabel", threshold=0.3, bootstrap_repeats=5).reports[""]
    assert list(report.thresholds) == [0.3, 0.3]
    assert report.threshold_source == "the configuration, not chosen on data"


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names by task belong to multitask"):
        TaskReports(tmp_path, NAMES, "multiclass")
    with pytest.raises(ValueError, match="would share a folder"):
        TaskReports(tmp_path, {"a/b": ["x", "y"], "a:b": ["x", "y"]}, "multitask")
