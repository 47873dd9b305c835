"""Whole processes for the photograph bundles: MONAI's own command from both places, and two processes that train."""

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
from photo_bundles import BUNDLES, CLASSES, MAKERS, NAMES, TINY_NETWORK, TINY_TRAINING
from PIL import Image

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(BUNDLES.parent),
    "CUDA_VISIBLE_DEVICES": "",
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def as_arguments(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


def monai_run(
    run_id: str, root: str, files: list[str], place: Path, launcher: tuple[str, ...] = (), **settings: Any
) -> str:
    """Run MONAI's command in a folder and return what it wrote."""
    config = files[0] if len(files) == 1 else str(files)
    command = [sys.executable, *launcher, "-m", "monai.bundle", "run", run_id, "--bundle_root", root]
    result = subprocess.run(
        [*command, "--config_file", config, *as_arguments(settings)],
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def settings_of(bundle: str, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {"dataset_dir": str(folder / "data"), "label_names": CLASSES[bundle]}
    if bundle == "coco_segmentation":
        settings["cache_dir"] = str(folder / "cache")
    return settings


@pytest.mark.parametrize("bundle", NAMES)
def test_monais_command_trains_from_the_root_and_segments_from_inside_the_bundle(bundle: str, tmp_path: Path) -> None:
    data, output = MAKERS[bundle](tmp_path / "data"), tmp_path / "out"
    configs = f"bundles/{bundle}/configs"
    training = {**TINY_TRAINING, "num_workers": 1, **settings_of(bundle, tmp_path), "output_dir": output}
    monai_run("training", f"bundles/{bundle}", [f"{configs}/train.yaml"], BUNDLES.parent, **training)
    photo = next(path for path in sorted(data.rglob("*.jpg")))
    given = {**TINY_NETWORK, "label_names": CLASSES[bundle], "ckpt_path": output / "best.pt", "input": photo}
    monai_run("inferring", ".", ["configs/inference.yaml"], BUNDLES / bundle, output_dir=output, tta=True, **given)
    assert Image.open(output / f"{photo.stem}_seg.png").size == Image.open(photo).size
    files = ["configs/inference.yaml", "configs/evaluate.yaml"]
    evaluation = {**TINY_NETWORK, **settings_of(bundle, tmp_path), "ckpt_path": output / "best.pt", "num_workers": 0}
    monai_run("evaluating", ".", files, BUNDLES / bundle, output_dir=tmp_path / "eval", **evaluation)
    assert (tmp_path / "eval" / "report.html").is_file()
    several = [*files, "configs/multi_gpu_evaluate.yaml"]
    monai_run(
        "evaluating", ".", several, BUNDLES / bundle, launcher=TORCHRUN, output_dir=tmp_path / "both", **evaluation
    )
    one, both = (json.loads(next((tmp_path / name).glob("*.json")).read_text()) for name in ("eval", "both"))
    for key in ("summary", "classes"):
        assert both[key] == one[key], key


@pytest.mark.parametrize("bundle", NAMES)
def test_two_processes_train_together_and_score_as_one(bundle: str, tmp_path: Path) -> None:
    """Two processes with one picture each make the steps of one process with two: same data, same scores."""
    MAKERS[bundle](tmp_path / "data", training=5, validation=3)
    shared = {**TINY_TRAINING, **settings_of(bundle, tmp_path), "augmentation_preset": "medical-conservative"}
    root, one, two = f"bundles/{bundle}", tmp_path / "one", tmp_path / "two"
    files = [f"{root}/configs/train.yaml"]
    monai_run("training", root, files, BUNDLES.parent, **shared, output_dir=one)
    both = {**shared, "pictures_per_batch": 1, "output_dir": two}
    monai_run(
        "training", root, [*files, f"{root}/configs/multi_gpu_train.yaml"], BUNDLES.parent, launcher=TORCHRUN, **both
    )
    assert [row["step"] for row in rows(two / "log.csv")] == ["3", "6"]
    single, double = (rows(folder / "validation.csv") for folder in (one, two))
    assert len(single) == len(double) == 2
    checkpoints = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (one, two)]
    assert checkpoints[1]["fingerprint"]["world_size"] == 2
    assert not [name for name in checkpoints[1]["network"] if name.startswith("module.")]
    for key, weights in checkpoints[0]["network"].items():
        torch.testing.assert_close(checkpoints[1]["network"][key], weights, rtol=0, atol=2e-2)


def test_killed_training_ends_bit_for_bit_as_one_never_killed(tmp_path: Path) -> None:
    """With a worker that loads pictures ahead, random augmentation and an average of the weights."""
    bundle = "ade20k_segmentation"
    MAKERS[bundle](tmp_path / "data")
    settings = {**TINY_TRAINING, **settings_of(bundle, tmp_path), "num_workers": 1, "max_epochs": 4, "ema_decay": 0.9}
    root = f"bundles/{bundle}"
    files = [f"{root}/configs/train.yaml"]
    monai_run("training", root, files, BUNDLES.parent, **settings, output_dir=tmp_path / "unbroken")
    broken = {**settings, "output_dir": tmp_path / "broken"}
    command = ["-m", "monai.bundle", "run", "training", "--bundle_root", root, "--config_file", files[0]]
    process = subprocess.Popen(
        [sys.executable, *command, *as_arguments(broken)],
        cwd=BUNDLES.parent,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 900
    while not (tmp_path / "broken" / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["epoch"] < 4
    monai_run("training", root, files, BUNDLES.parent, **broken)
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("unbroken", "broken"))
    assert one["epoch"] == other["epoch"] == 4
    for key in ("network", "parts", "optimizer"):
        for left, right in zip(leaves(one[key]), leaves(other[key]), strict=True):
            assert torch.equal(torch.as_tensor(left), torch.as_tensor(right)), key


def leaves(value: Any) -> list[Any]:
    """Give the numbers and tensors inside dictionaries and lists, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in leaves(each)]
    return [] if value is None or isinstance(value, str) else [value]
