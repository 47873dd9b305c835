"""Whole processes for the classification bundle: MONAI's own command from both places, and two that train together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from class_pictures import make_folders
from test_imagenette_classification import BUNDLE, TINY_NETWORK, TINY_TRAINING
from test_photograph_processes import TORCHRUN, monai_run

pytestmark = pytest.mark.slow

ROOT = f"bundles/{BUNDLE.name}"
TRAINING = {**TINY_TRAINING, "class_names": "$None"}  # MONAI's command leaves out what is None


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_monais_command_trains_from_the_root_and_classifies_from_inside_the_bundle(tmp_path: Path) -> None:
    data, output = make_folders(tmp_path / "data", 8, 4), tmp_path / "out"
    training = {**TRAINING, "num_workers": 1, "dataset_dir": data, "output_dir": output}
    monai_run("training", ROOT, [f"{ROOT}/configs/train.yaml"], BUNDLE.parents[1], **training)
    given = {**TINY_NETWORK, "ckpt_path": output / "best.pt"}
    picture = data / "val" / "blue"
    monai_run("inferring", ".", ["configs/inference.yaml"], BUNDLE, input=picture, output_dir=output, **given)
    assert len(rows(output / "predictions.csv")) == 4
    files = ["configs/inference.yaml", "configs/evaluate.yaml"]
    evaluation = {**given, "dataset_dir": data, "num_workers": 0, "bootstrap_repeats": 20}
    monai_run("evaluating", ".", files, BUNDLE, output_dir=tmp_path / "one", **evaluation)
    several = [*files, "configs/multi_gpu_evaluate.yaml"]
    monai_run("evaluating", ".", several, BUNDLE, launcher=TORCHRUN, output_dir=tmp_path / "both", **evaluation)
    one, both = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "both"))
    numbers = {key: value for key, value in one["summary"].items() if isinstance(value, float)}
    assert {key: both["summary"][key] for key in numbers} == pytest.approx(numbers, abs=1e-6)  # batches differ
    assert both["confusion"] == one["confusion"]


def test_two_processes_train_together_as_one(tmp_path: Path) -> None:
    """Two processes with half the pictures each make the steps of one process."""
    data = make_folders(tmp_path / "data", 8, 3)
    shared = {**TRAINING, "dataset_dir": data, "steps_per_epoch": 4}
    files = [f"{ROOT}/configs/train.yaml"]
    monai_run("training", ROOT, files, BUNDLE.parents[1], **shared, output_dir=tmp_path / "one")
    both = {**shared, "pictures_per_batch": 3, "output_dir": tmp_path / "two"}
    several = [*files, f"{ROOT}/configs/multi_gpu_train.yaml"]
    monai_run("training", ROOT, several, BUNDLE.parents[1], launcher=TORCHRUN, **both)
    states = [torch.load(tmp_path / name / "best.pt", weights_only=True)["network"] for name in ("one", "two")]
    for key, weights in states[0].items():
        torch.testing.assert_close(states[1][key], weights, rtol=0, atol=1e-3)
    assert [row["step"] for row in rows(tmp_path / "two" / "validation.csv")] == ["4", "8"]
