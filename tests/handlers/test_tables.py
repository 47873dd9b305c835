from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from dinomed.handlers.tables import DiceTable

NAMES = ["background", "shell", "core", "rare"]


def case(name: str, predicted: list[int], reference: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    output = {"pred": torch.tensor(predicted)[None], "label": torch.tensor(reference)[None]}
    return output, {"image": MetaTensor(torch.zeros(1, 2), meta={"filename_or_obj": f"/data/{name}.nii.gz"})}


CASES = [
    case("a", [0, 1, 1, 2, 2, 2], [0, 1, 2, 2, 2, 2]),  # shell 2/3, core 6/7, brain 1
    case("b", [0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]),  # shell 2/3, core in neither
]


def run(table: DiceTable, cases: list[Any] = CASES, times: int = 1) -> None:
    def step(engine: Engine, batch: Any) -> Any:
        output, engine.state.batch = [batch[0]], [batch[1]]
        return output

    engine = Engine(step)
    table.attach(engine)
    for _ in range(times):
        engine.run(cases)


def test_every_case_has_a_row_and_the_mean_comes_last(tmp_path: Path) -> None:
    run(DiceTable(tmp_path / "eval", NAMES, 4, region_groups={"inside": [1, 2]}))
    with (tmp_path / "eval" / "dice.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["a.nii.gz", "b.nii.gz", "mean"]
    assert rows[0] == {"case": "a.nii.gz", "shell": "0.6667", "core": "0.8571", "rare": "", "inside": "1.0"}
    assert rows[1]["core"] == rows[1]["rare"] == ""
    assert rows[2] == {"case": "mean", "shell": "0.6667", "core": "0.8571", "rare": "", "inside": "0.8333"}


def test_json_is_strict_and_absent_labels_are_null(tmp_path: Path) -> None:
    run(DiceTable(tmp_path, NAMES, 4))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "dice.json").read_text(), parse_constant=refuse)
    assert content["mean"] == {"shell": 0.6667, "core": 0.8571, "rare": None}
    assert content["cases"][1] == {"case": "b.nii.gz", "shell": 0.6667, "core": None, "rare": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dice.csv", "dice.json"]


def test_groups_score_labels_of_the_prediction_against_classes_of_the_reference() -> None:
    table = DiceTable("unused", ["background", "brain"], 4, class_groups=[[0, 3], [1, 2]], region_groups={"x": [1]})
    predicted, reference = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 1, 2, 3, 3])
    assert table.score(predicted, reference) == {"brain": pytest.approx(0.8)}


def test_second_run_forgets_the_first(tmp_path: Path) -> None:
    run(DiceTable(tmp_path, NAMES, 4), times=2)
    assert len(json.loads((tmp_path / "dice.json").read_text())["cases"]) == 2


def test_nothing_is_written_without_cases(tmp_path: Path) -> None:
    table = DiceTable(tmp_path / "eval", NAMES, 4)
    table.write(Engine(lambda engine, batch: None))
    assert not (tmp_path / "eval").exists()


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        DiceTable("unused", NAMES, 4).score(torch.zeros(3), torch.zeros(4))
