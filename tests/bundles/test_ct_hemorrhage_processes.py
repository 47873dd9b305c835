"""Whole processes for the haemorrhage bundle: killed and started again, and two that train and evaluate together."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hemorrhage_bundle import ROOT, TINY, TINY_TRAINING, write_backbone, write_series

from dinomed.bundle.head_checkpoint import read_about

pytestmark = pytest.mark.slow

PATIENCE_S = 900.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT.parents[1]), "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_series(folder)
    write_backbone(folder / "backbone.pt")
    return folder


def command(run_id: str, files: list[str], launcher: tuple[str, ...] = (), **settings: Any) -> list[str]:
    configs = str([str(ROOT / "configs" / f"{name}.yaml") for name in files])
    given = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    start = [sys.executable, *launcher, "-m", "monai.bundle", "run", run_id, "--bundle_root", str(ROOT)]
    return [*start, "--config_file", configs, *given]


def settings_of(data: Path, output: Path, **more: Any) -> dict[str, Any]:
    places = {"table": data / "series.csv", "backbone_weights": data / "backbone.pt", "output_dir": output}
    return {**TINY_TRAINING, **places, "cache_dir": output.parent / "cache", **more}


def finish(arguments: list[str], place: Path) -> None:
    done = subprocess.run(arguments, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["network"]


def test_a_training_that_was_killed_ends_with_the_same_head(data: Path, tmp_path: Path) -> None:
    long = {"max_epochs": 60, "patience": None}
    whole = command("training", ["train"], **settings_of(data, tmp_path / "whole", **long))
    finish(whole, tmp_path)
    killed = command("training", ["train"], **settings_of(data, tmp_path / "killed", **long))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(killed, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log)
        rows = tmp_path / "killed" / "validation.csv"
        deadline = time.monotonic() + PATIENCE_S
        while not (rows.is_file() and rows.read_text().count("\n") > 4):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert rows.read_text().count("\n") < 60
    finish(killed, tmp_path)
    for name in ("checkpoint.pt", "best.pt"):
        one, other = state(tmp_path / "whole" / name), state(tmp_path / "killed" / name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_about(tmp_path / "whole" / "best.pt") == read_about(tmp_path / "killed" / "best.pt")


def test_two_processes_train_and_evaluate_together(data: Path, tmp_path: Path) -> None:
    train = settings_of(data, tmp_path / "out", batch_size=4)
    finish(command("training", ["train", "multi_gpu_train"], TORCHRUN, **train), tmp_path)
    about = read_about(tmp_path / "out" / "best.pt")
    assert about.validation["any"] is not None
    evaluate = {
        **TINY,
        "table": tmp_path / "out" / "split.csv",
        "backbone_weights": data / "backbone.pt",
        "cache_dir": tmp_path / "cache",
        "ckpt_path": tmp_path / "out" / "best.pt",
        "bootstrap_repeats": 10,
    }
    names = ["inference", "evaluate"]
    finish(command("evaluating", names, output_dir=tmp_path / "one", **evaluate), tmp_path)
    together = command("evaluating", [*names, "multi_gpu_evaluate"], TORCHRUN, output_dir=tmp_path / "two", **evaluate)
    finish(together, tmp_path)
    one, two = (list(csv.DictReader((tmp_path / name / "cases.csv").open())) for name in ("one", "two"))
    assert [row["case"] for row in one] == [row["case"] for row in two]
    for row, other in zip(one, two, strict=True):
        assert float(row["any_probability"]) == pytest.approx(float(other["any_probability"]), abs=1e-4)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["counts"]["cases"] == len(one) == 6
