from __future__ import annotations

import csv
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dinomed.errors import InputError
from dinomed.handlers.logs import TrainingLog, ValidationLog, coloured_side_by_side, side_by_side


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def steps(path: Path) -> list[int]:
    return [int(row["step"]) for row in read(path)]


def train(folder: Path, epochs: int, start: int = 0, stop_at: int = -1, every: int = 2, rank: int = 0) -> Engine:
    """A run of five steps an epoch whose loss is the number of the step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(float(engine.state.iteration))})
    engine.state.rank = rank
    TrainingLog(folder, optimizer, every).attach(engine)

    @engine.on(Events.STARTED)
    def resume() -> None:
        engine.state.epoch, engine.state.iteration = start, 5 * start

    @engine.on(Events.ITERATION_COMPLETED)
    def stop() -> None:
        if engine.state.iteration == stop_at:
            raise KeyboardInterrupt

    engine.run(range(5), max_epochs=epochs)
    return engine


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_row_every_few_steps_and_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    train(tmp_path, 2)
    rows = read(tmp_path / "log.csv")
    assert [(int(row["epoch"]), int(row["step"]), float(row["loss"])) for row in rows] == [
        (1, 2, 1.5),
        (1, 4, 3.5),
        (1, 5, 5.0),
        (2, 6, 6.0),
        (2, 8, 7.5),
        (2, 10, 9.5),
    ]
    assert all(float(row["learning_rate"]) == 0.5 for row in rows)
    assert scalars(tmp_path, "train/loss") == [(2, 1.5), (4, 3.5), (5, 5.0), (6, 6.0), (8, 7.5), (10, 9.5)]


def test_short_run_is_logged_too(tmp_path: Path) -> None:
    train(tmp_path, 1, every=1000)
    assert steps(tmp_path / "log.csv") == [5]


def test_resumed_run_repeats_no_row_and_no_event(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", 3, stop_at=9)  # the checkpoint is that of step 5
    assert steps(tmp_path / "broken" / "log.csv") == [2, 4, 5, 6, 8]
    train(tmp_path / "broken", 3, start=1)
    train(tmp_path / "unbroken", 3)
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds_per_step"} for row in read(folder / "log.csv")]
        for folder in (tmp_path / "broken", tmp_path / "unbroken")
    ]
    assert timeless[0] == timeless[1]
    assert scalars(tmp_path / "broken", "train/loss") == scalars(tmp_path / "unbroken", "train/loss")


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    train(tmp_path / "out", 1, rank=1)
    assert not (tmp_path / "out").exists()


def test_error_of_the_run_is_passed_on(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: 1 / 0)
    TrainingLog(tmp_path, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)).attach(engine)
    with pytest.raises(ZeroDivisionError):
        engine.run([1])


def validate(log: ValidationLog, score: float, epoch: int) -> None:
    def step(engine: Engine, batch: int) -> list[dict[str, torch.Tensor]]:
        return [{"image": torch.rand(3, 6, 5), "label": torch.ones(1, 6, 5), "pred": torch.ones(1, 6, 5)}] * 2

    evaluator, trainer = Engine(step), Engine(lambda engine, batch: None)
    trainer.state.epoch, trainer.state.iteration = epoch, 10 * epoch
    log.follow(trainer)
    log.attach(evaluator)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.state.metrics.update(dice=score, table={}))
    evaluator.run([0])


def test_validation_has_a_row_and_events_at_the_trainers_step(tmp_path: Path) -> None:
    validate(ValidationLog(tmp_path, num_pictures=1), 0.25, epoch=3)
    assert read(tmp_path / "validation.csv") == [{"epoch": "3", "step": "30", "dice": "0.25"}]
    assert scalars(tmp_path / "validation", "validation/dice") == [(30, 0.25)]
    events = EventAccumulator(str(tmp_path / "validation"))
    events.Reload()
    assert events.Tags()["images"] == ["validation/slice_0"]
    assert (events.Images("validation/slice_0")[0].width, events.Images("validation/slice_0")[0].height) == (15, 6)


def test_repeated_validation_of_a_resumed_run_replaces_the_first(tmp_path: Path) -> None:
    killed, resumed = ValidationLog(tmp_path), ValidationLog(tmp_path)
    for epoch in (1, 2):
        validate(killed, 0.1 * epoch, epoch)
    time.sleep(1.1)  # event files are told apart by the second in which they were opened
    for epoch in (2, 3):
        validate(resumed, 0.1 * epoch, epoch)
    assert steps(tmp_path / "validation.csv") == [10, 20, 30]
    assert [step for step, _ in scalars(tmp_path / "validation", "validation/dice")] == [10, 20, 30]


def test_picture_shows_middle_channel_reference_and_prediction() -> None:
    image = torch.zeros(3, 2, 2)
    image[1, 0, 0] = 4.0
    label, pred = torch.tensor([[[0, 4], [0, 0]]]), torch.tensor([[[2, 0], [0, 0]]])
    picture = side_by_side({"image": image, "label": label, "pred": pred})
    assert picture.shape == (1, 2, 6)
    assert picture[0].tolist() == [[1, 0, 0, 1, 0.5, 0], [0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_picture_of_nothing_is_dark(value: float) -> None:
    empty: dict[str, Any] = {
        "image": torch.full((3, 2, 2), value),
        "label": torch.zeros(1, 2, 2),
        "pred": torch.zeros(1, 2, 2),
    }
    assert not side_by_side(empty).any()


def test_colour_picture_shows_labels_in_the_voc_colours() -> None:
    image = torch.zeros(3, 1, 2)
    image[0, 0, 1] = 2.0
    label, pred = torch.tensor([[[1, 255]]]), torch.tensor([[[4, 0]]], dtype=torch.uint8)
    picture = coloured_side_by_side({"image": image, "label": label, "pred": pred})
    assert picture.shape == (3, 1, 6)
    colours = (picture[:, 0].T * 255).round().int().tolist()
    assert colours == [[0, 0, 0], [255, 0, 0], [128, 0, 0], [224, 224, 192], [0, 0, 128], [0, 0, 0]]


def test_rows_are_there_as_json_lines_too(tmp_path: Path) -> None:
    train(tmp_path, 1)
    validate(ValidationLog(tmp_path), float("nan"), epoch=1)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"], row["loss"]) for row in logged] == [(1, 2, 1.5), (1, 4, 3.5), (1, 5, 5.0)]
    assert json.loads((tmp_path / "validation.jsonl").read_text()) == {"epoch": 1, "step": 10, "dice": None}


def test_without_tensorboard_the_files_remain(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(1.0)})
    TrainingLog(tmp_path, optimizer, tensorboard=False).attach(engine)
    engine.run(range(2))
    validate(ValidationLog(tmp_path, tensorboard=False), 0.5, epoch=1)
    names = {"log.csv", "log.jsonl", "validation.csv", "validation.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_missing_tensorboard_is_said_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    for build in (lambda: TrainingLog(tmp_path, optimizer), lambda: ValidationLog(tmp_path)):
        with pytest.raises(InputError, match=r"pip install tensorboard, or set tensorboard to false"):
            build()
