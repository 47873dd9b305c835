"""Whole processes: killed at any moment and started again, several at once, and what a user sees on stderr."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from head_bundle import BUNDLE, TINY_TRAINING, as_arguments

pytestmark = pytest.mark.slow

PATIENCE_S = 1800.0
CONFIGS = BUNDLE / "configs"
Moment = Callable[[Path], bool]


def command(maps: Path, output: Path, *arguments: str, **settings: Any) -> list[str]:
    given = {**TINY_TRAINING, "num_workers": 1, "dataset_dir": maps, "output_dir": output, **settings}
    return [
        *("-m", "monai.bundle", "run", "training", "--bundle_root", str(BUNDLE)),
        *(arguments or ("--config_file", str(CONFIGS / "train.yaml"))),
        *as_arguments(given),
    ]


def start(arguments: list[str], log: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(BUNDLE.parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    with log.open("ab") as stream:
        return subprocess.Popen([sys.executable, *launcher, *arguments], stdout=stream, stderr=stream, env=environment)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(PATIENCE_S) == 0, log.read_text()[-3000:]


def kill_when(process: subprocess.Popen[bytes], output: Path, moment: Moment) -> bool:
    """Kill the process at the moment; False if it ended before."""
    deadline = time.monotonic() + PATIENCE_S
    while not moment(output):
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def after(epoch: int) -> Moment:
    """The moment when the log tells of a step in this epoch."""

    def check(output: Path) -> bool:
        log = output / "log.csv"
        return log.exists() and any(line.startswith(f"{epoch},") for line in log.read_text().splitlines())

    return check


def writing(name: str) -> Moment:
    """The moment when a file of this name is half written."""
    return lambda output: (output / f".{name}.tmp").exists()


def replaced(name: str) -> Moment:
    """The moment when a file of this name has just been put in place anew."""
    seen: list[int | None] = []

    def check(output: Path) -> bool:
        path = output / name
        seen.append(path.stat().st_mtime_ns if path.exists() else None)
        return seen[-1] is not None and seen[-1] != seen[0]

    return check


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return [
            {key: value for key, value in row.items() if key != "seconds_per_step"} for row in csv.DictReader(stream)
        ]


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def test_killed_run_ends_bit_for_bit_as_one_never_killed(maps: Path, tmp_path: Path) -> None:
    unbroken, broken, log = tmp_path / "unbroken", tmp_path / "broken", tmp_path / "log.txt"
    finish(start(command(maps, unbroken), log), log)
    moments = [
        writing("best.pt"),
        writing("checkpoint.pt"),
        replaced("checkpoint.pt"),
        after(3),
        writing("checkpoint.pt"),
    ]
    kills = 0
    for moment in moments:
        kills += kill_when(start(command(maps, broken), log), broken, moment)
    assert kills >= 4
    finish(start(command(maps, broken), log), log)
    one, other = load(unbroken / "checkpoint.pt"), load(broken / "checkpoint.pt")
    for key in one:
        assert equal(one[key], other[key]), key
    assert equal(load(unbroken / "best.pt"), load(broken / "best.pt"))
    assert rows(unbroken / "log.csv") == rows(broken / "log.csv")
    assert rows(unbroken / "validation.csv") == rows(broken / "validation.csv")
    assert not list(broken.glob(".*.tmp"))


def test_killed_run_with_every_option_ends_as_one_never_killed(maps: Path, tmp_path: Path) -> None:
    """Killed within accumulation groups, with averaged weights, a loss scale and stochastic depth."""
    options = {
        "optimizer": "@sgd",
        "lr_scheduler": "@cosine",
        "loss_scaling#precision": "float16",  # the network itself is slow in float16 on CPUs
        "accumulation_steps": 3,
        "ema_decay": 0.5,
        "patience": 3,
        "adapter_drop_path": 0.2,
        "backbone#drop_path_rate": 0.2,
        "tensorboard": False,
    }
    unbroken, broken, log = tmp_path / "unbroken", tmp_path / "broken", tmp_path / "log.txt"
    finish(start(command(maps, unbroken, **options), log), log)
    kills = 0
    for moment in (after(1), replaced("checkpoint.pt"), writing("checkpoint.pt"), after(3)):
        kills += kill_when(start(command(maps, broken, **options), log), broken, moment)
    assert kills >= 3
    finish(start(command(maps, broken, **options), log), log)
    one, other = load(unbroken / "checkpoint.pt"), load(broken / "checkpoint.pt")
    for key in one:
        assert equal(one[key], other[key]), key
    assert equal(load(unbroken / "best.pt"), load(broken / "best.pt"))
    assert rows(unbroken / "log.csv") == rows(broken / "log.csv")


def test_two_processes_train_together_and_one_writes(maps: Path, tmp_path: Path) -> None:
    log, output = tmp_path / "log.txt", tmp_path / "out"
    files = f"['{CONFIGS / 'train.yaml'}','{CONFIGS / 'multi_gpu_train.yaml'}']"
    arguments = command(maps, output, "--config_file", files, max_epochs=2, validation_items=3)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    finish(start(arguments, log, launcher), log)
    assert [row["step"] for row in rows(output / "log.csv")] == ["5", "10"]
    assert len(rows(output / "validation.csv")) == 2
    assert len(list(output.glob("events.*"))) == 1
    checkpoint = load(output / "checkpoint.pt")
    assert checkpoint["epoch"] == 2
    assert checkpoint["fingerprint"]["world_size"] == 2
    assert not [name for name in checkpoint["network"] if name.startswith("module.")]
    # The same command goes on where it ended, which is at once at the end.
    before = (output / "checkpoint.pt").read_bytes()
    finish(start(arguments, log, launcher), log)
    assert (output / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("sharded", [False, True])
def test_two_killed_processes_go_on_as_if_nothing_had_happened(maps: Path, tmp_path: Path, sharded: bool) -> None:
    log = tmp_path / "log.txt"
    files = f"['{CONFIGS / 'train.yaml'}','{CONFIGS / 'multi_gpu_train.yaml'}']"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    ends = []
    for name, moment in (("unbroken", None), ("broken", after(2))):
        output = tmp_path / name
        options = {"max_epochs": 2, "adapter_drop_path": 0.2, "sharded": sharded}
        arguments = command(maps, output, "--config_file", files, **options)
        if moment is not None:
            process = start(arguments, log, launcher)
            while not moment(output):
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.01)
            process.terminate()  # torchrun then ends its processes
            process.wait(PATIENCE_S)
        finish(start(arguments, log, launcher), log)
        ends.append(load(output / "checkpoint.pt"))
    for key in ends[0]:
        assert equal(ends[0][key], ends[1][key]), key


def test_user_reads_one_sentence_on_stderr(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, *command(tmp_path / "absent", tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BUNDLE.parents[1])},
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"dinomed: {tmp_path / 'absent'}: there is no such folder")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
