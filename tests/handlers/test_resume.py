from __future__ import annotations

import errno
import io
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import nn

from dinomed.data.sampling import EpochSampler, SeededDataset
from dinomed.errors import InputError, OutputError, WeightsError
from dinomed.handlers import resume
from dinomed.handlers.averaging import WeightAverage
from dinomed.handlers.optimisation import (
    ClipGradients,
    EpochOfData,
    StepSchedule,
    optimiser_steps,
    warmup_cosine,
    warmup_polynomial,
)
from dinomed.handlers.processes import bare
from dinomed.handlers.random_states import random_states, restore_random_states
from dinomed.handlers.resume import FORMAT, BestWeights, ResumableCheckpoint, save_atomically
from dinomed.handlers.scaling import LossScaling
from dinomed.handlers.stopping import EarlyStopping


class KilledError(Exception):
    """Stands for whatever ends a run."""


class NoisyItems(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Items that use the random states of NumPy and Python."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.make(index)

    @staticmethod
    def make(index: int) -> dict[str, torch.Tensor]:
        noise = float(np.random.rand()) + random.random()
        return {"image": torch.full((3,), index + noise), "label": torch.full((1,), float(index))}


def build(path: Path, epochs: int = 4, width: int = 6, **fingerprint: Any) -> tuple[SupervisedTrainer, nn.Module]:
    """A run that uses all random states: those of its items, dropout and shuffling."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 0.05)
    scheduler = warmup_polynomial(optimizer, 2, epochs * 3)

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=torch.utils.data.DataLoader(NoisyItems(), batch_size=4, shuffle=True),
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[
            StepSchedule(scheduler),
            ResumableCheckpoint(path, network, optimizer, scheduler, {"seed": 0, **fingerprint}),
        ],
        decollate=False,
    )
    return trainer, network


class Validate:
    """Stands for a validation at the end of each epoch, with these scores."""

    def __init__(self, stopping: EarlyStopping, scores: list[float]) -> None:
        self.stopping, self.scores = stopping, scores

    def attach(self, engine: Engine) -> None:
        self.stopping.follow(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state = SimpleNamespace(metrics={"dice": self.scores[engine.state.epoch - 1]}, key_metric_name="dice")
        evaluator: Any = SimpleNamespace(state=state)
        self.stopping(evaluator)


def build_all(path: Path, patience: int = 3, decay: float = 0.9) -> tuple[SupervisedTrainer, WeightAverage]:
    """A run with everything that has a state: accumulation, averaged weights, early stopping, a loss scale.

    An epoch has three batches in groups of two, so that the middle of a group and its early end both occur.
    """
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    scheduler = warmup_cosine(optimizer, 2, optimiser_steps(4, 3, 2))
    average, scaling, stopping = WeightAverage(network, decay), LossScaling("float16", "cpu"), EarlyStopping(patience)
    scaling.scaler.set_growth_interval(2)
    items = SeededDataset(range(12), NoisyItems().make, seed=5)
    sampler = EpochSampler(items, seed=3)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=4,
        train_data_loader=torch.utils.data.DataLoader(items, batch_size=4, sampler=sampler),
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[
            EpochOfData(items),
            EpochOfData(sampler),
            scaling,
            ClipGradients(network, 1.0),
            StepSchedule(scheduler),
            average,
            Validate(stopping, [0.3, 0.2, 0.2, 0.2]),
            ResumableCheckpoint(
                path,
                network,
                optimizer,
                scheduler,
                {"patience": patience},
                parts={"average": average, "scaling": scaling, "stopping": stopping},
            ),
        ],
        accumulation_steps=2,
        decollate=False,
    )
    return trainer, average


def kill_at(trainer: Engine, event: Any, count: int) -> None:
    """Let the run end with an error the count-th time that something happens."""
    seen = []

    def handler(engine: Engine) -> None:
        seen.append(1)
        if len(seen) == count:
            raise KilledError

    trainer.add_event_handler(event, handler)
    with pytest.raises(KilledError):
        trainer.run()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("event", "count"),
    [
        (Events.ITERATION_COMPLETED, 2),  # before the first checkpoint
        (Events.EPOCH_COMPLETED, 2),  # right after a checkpoint
        (Events.ITERATION_STARTED, 8),  # in the middle of the third epoch
    ],
)
def test_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, event: Any, count: int) -> None:
    trainer, unbroken = build(tmp_path / "unbroken.pt")
    trainer.run()
    kill_at(build(tmp_path / "broken.pt")[0], event, count)
    trainer, resumed = build(tmp_path / "broken.pt")
    if (tmp_path / "broken.pt").exists():
        torch.rand(7)  # what the new process drew before must not matter
    trainer.run()
    assert same(unbroken, resumed)
    assert trainer.state.epoch == 4
    assert trainer.state.iteration == 12
    ends = [torch.load(tmp_path / name, weights_only=True) for name in ("unbroken.pt", "broken.pt")]
    assert str(ends[0]["optimizer"]) == str(ends[1]["optimizer"])
    assert ends[0]["scheduler"]["last_epoch"] == ends[1]["scheduler"]["last_epoch"] == 12


def equal(one: Any, other: Any) -> bool:
    """Compare what a checkpoint holds, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize(
    ("event", "count"),
    [
        (Events.ITERATION_COMPLETED, 1),  # in the middle of a group, before the first checkpoint
        (Events.ITERATION_COMPLETED, 4),  # in the middle of the second epoch's first group
        (Events.ITERATION_STARTED, 8),  # likewise, between its two batches
        (Events.ITERATION_COMPLETED, 9),  # after the smaller last group, before the checkpoint
        (Events.EPOCH_STARTED, 4),
    ],
)
def test_every_state_survives_a_kill(tmp_path: Path, event: Any, count: int) -> None:
    trainer, unbroken = build_all(tmp_path / "unbroken.pt")
    trainer.run()
    kill_at(build_all(tmp_path / "broken.pt")[0], event, count)
    torch.rand(5)
    trainer, resumed = build_all(tmp_path / "broken.pt")
    trainer.run()
    assert trainer.state.iteration == 12
    assert same(unbroken.network, resumed.network)
    ends = [torch.load(tmp_path / name, weights_only=True) for name in ("unbroken.pt", "broken.pt")]
    assert equal(*ends)
    assert ends[0]["scheduler"]["last_epoch"] == ends[0]["parts"]["average"]["updates"] == 8
    assert ends[0]["parts"]["scaling"]["scale"] != 65536


def test_run_that_was_ended_early_is_complete(tmp_path: Path) -> None:
    trainer, average = build_all(tmp_path / "c.pt", patience=2)
    trainer.run()
    assert trainer.state.epoch == 3
    again, same_average = build_all(tmp_path / "c.pt", patience=2)
    steps: list[int] = []
    again.add_event_handler(Events.ITERATION_STARTED, lambda: steps.append(1))
    again.run()
    assert not steps
    assert same(average.network, same_average.network)


def test_patience_is_counted_across_a_kill(tmp_path: Path) -> None:
    kill_at(build_all(tmp_path / "c.pt", patience=2)[0], Events.ITERATION_STARTED, 7)  # after one without progress
    trainer, _ = build_all(tmp_path / "c.pt", patience=2)
    trainer.run()
    assert trainer.state.epoch == 3


def test_checkpoint_of_another_version_is_one_clear_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    build(path, epochs=1)[0].run()
    content = torch.load(path, weights_only=True)
    del content["format"]
    for version, change in ((1, {}), (FORMAT + 1, {"format": FORMAT + 1, "network": None, "fingerprint": {}})):
        torch.save({**content, **change}, path)
        with pytest.raises(WeightsError) as caught:
            build(path, epochs=1)[0].run()
        assert str(caught.value) == (
            f"{path}: was written by another version of dinomed (format {version}, this one goes on from format "
            f"{FORMAT}); finish that run with the version that began it, or choose another output_dir to start anew"
        )


def test_other_parts_are_named_and_refused(tmp_path: Path) -> None:
    build_all(tmp_path / "c.pt")[0].run()
    trainer, network = build(tmp_path / "d.pt")
    handler = ResumableCheckpoint(tmp_path / "c.pt", network, trainer.optimizer, None, {"patience": 3})
    handler.attach(trainer)
    with pytest.raises(
        WeightsError, match=r"other settings: parts \(\['average', 'scaling', 'stopping'\] then, \[\] now"
    ):
        trainer.run()


def test_epoch_that_ends_within_the_data_is_refused(tmp_path: Path) -> None:
    """Ignite would go on there in the next epoch, a resumed run could not."""
    network = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        epoch_length=2,
        train_data_loader=torch.utils.data.DataLoader(NoisyItems(), batch_size=4),
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[ResumableCheckpoint(tmp_path / "c.pt", network, optimizer)],
        decollate=False,
    )
    with pytest.raises(InputError, match="an epoch has 2 batches, but the data loader gives 3"):
        trainer.run()


def test_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    trainer, network = build(tmp_path / "c.pt")
    trainer.run()
    again, same_network = build(tmp_path / "c.pt")
    steps = []
    again.add_event_handler(Events.ITERATION_STARTED, lambda: steps.append(1))
    again.run()
    assert not steps
    assert same(network, same_network)


def test_checkpoint_comes_every_few_epochs_only(tmp_path: Path) -> None:
    trainer, network = build(tmp_path / "c.pt", epochs=3)
    handler = ResumableCheckpoint(tmp_path / "rare.pt", network, trainer.optimizer, every=2)
    handler.attach(trainer)
    trainer.run()
    assert torch.load(tmp_path / "rare.pt", weights_only=True)["epoch"] == 2


def test_changed_settings_are_named_and_refused(tmp_path: Path) -> None:
    build(tmp_path / "c.pt", rate=0.1, sizes=[1, 2])[0].run()
    build(tmp_path / "c.pt", rate=0.1, sizes=[1, 2])[0].run()
    with pytest.raises(WeightsError, match=r"c\.pt: was written with other settings: new \(None then, 3 now\), rate"):
        build(tmp_path / "c.pt", rate=0.2, sizes=[1, 2], new=3)[0].run()


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "c.pt")[0].run()
    with pytest.raises(WeightsError, match="by a run of another network; choose another output_dir"):
        build(tmp_path / "c.pt", width=7)[0].run()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_checkpoint_is_named_with_the_way_out(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.pt"
    if content is None:
        build(path)[0].run()
        content = path.read_bytes()[:-3000]
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"c\.pt: the checkpoint is damaged .*delete it to start anew"):
        build(path)[0].run()


def test_file_with_code_inside_is_not_run(tmp_path: Path) -> None:
    torch.save({"fingerprint": SimpleNamespace()}, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match="damaged"):
        build(tmp_path / "c.pt")[0].run()


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path / "c.pt", epochs=1)
    trainer.state.rank = 1
    trainer.run()
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "c.pt"
    save_atomically({"a": 1}, path)

    def half(content: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(resume.torch, "save", half)
    with pytest.raises(OutputError, match=r"c\.pt cannot be written \(disk full\)"):
        save_atomically({"a": 2}, path)
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["c.pt"]


def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with pytest.raises(OutputError, match="No space left on device"):
        save_atomically({"a": torch.zeros(100_000)}, tmp_path / "c.pt")


def test_file_is_whole_at_every_moment_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save_atomically({"a": 1}, path)
    seen = []
    original = torch.save

    def watched(content: Any, stream: Any) -> None:
        original(content, stream)
        seen.append(torch.load(path, weights_only=True))

    monkeypatch.setattr(resume.torch, "save", watched)
    save_atomically({"a": 2}, path)
    assert seen == [{"a": 1}]
    assert torch.load(path, weights_only=True) == {"a": 2}


def test_what_a_killed_run_left_half_written_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".c.pt.tmp").write_bytes(b"half")
    save_atomically({"a": 1}, tmp_path / "c.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]


def test_random_states_survive_safe_loading(tmp_path: Path) -> None:
    np.random.standard_normal()  # leaves a cached second value behind
    random.gauss(0, 1)
    torch.save(random_states(), tmp_path / "r.pt")

    def draw() -> list[float]:
        return [
            random.gauss(0, 1),
            random.random(),
            np.random.standard_normal(),
            np.random.rand(),
            float(torch.rand(())),
        ]

    expected = draw()
    assert draw() != expected
    restore_random_states(torch.load(tmp_path / "r.pt", weights_only=True))
    assert draw() == expected


def test_bare_is_the_network_inside_a_wrapper() -> None:
    network = nn.Linear(1, 1)
    wrapper = nn.Module()
    wrapper.module = network
    assert bare(wrapper) is network
    assert bare(network) is network


class Validation:
    """An evaluator and a trainer as far as BestWeights sees them."""

    def __init__(self, path: Path) -> None:
        self.network = nn.Linear(1, 1)
        self.handler = BestWeights(path, self.network)
        self.trainer: Any = SimpleNamespace(state=SimpleNamespace(best_metric=-1, best_metric_epoch=-1, epoch=0))
        self.handler.follow(self.trainer)

    def end(self, score: float, rank: int = 0) -> None:
        self.trainer.state.epoch += 1
        nn.init.constant_(self.network.weight, self.trainer.state.epoch)
        state = SimpleNamespace(metrics={"dice": score}, key_metric_name="dice", rank=rank)
        engine: Any = SimpleNamespace(state=state)
        self.handler.save_if_best(engine)


def weight(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["weight"])


def test_weights_of_the_best_validation_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    validation = Validation(path)
    kept = []
    for score in (0.0, 0.5, 0.4, 0.5, 0.6):
        validation.end(score)
        kept.append(weight(path))
    assert kept == [1, 2, 2, 2, 5]
    assert validation.trainer.state.best_metric == 0.6
    assert validation.trainer.state.best_metric_epoch == 5


def test_score_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    validation = Validation(path)
    validation.end(float("nan"))
    assert not path.exists()
    validation.end(0.3)
    validation.end(float("nan"))
    validation.end(0.2)
    assert weight(path) == 2


def test_other_processes_remember_the_best_score_without_writing(tmp_path: Path) -> None:
    validation = Validation(tmp_path / "best.pt")
    validation.end(0.3, rank=1)
    assert not (tmp_path / "best.pt").exists()
    assert validation.trainer.state.best_metric == 0.3


def test_best_score_is_known_after_resuming(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path / "c.pt", epochs=2)

    def score(engine: Engine) -> None:
        engine.state.best_metric, engine.state.best_metric_epoch = 0.7, engine.state.epoch

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), score)
    trainer.run()
    again, _ = build(tmp_path / "c.pt", epochs=2)
    again.run()
    assert again.state.best_metric == 0.7
    assert again.state.best_metric_epoch == 1


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "random"])
@pytest.mark.parametrize("content", [None, {}, "missing"])
def test_a_checkpoint_without_a_sound_state_is_one_sentence(tmp_path: Path, part: str, content: Any) -> None:
    path = tmp_path / "checkpoint.pt"
    build(path, epochs=1)[0].run()
    saved = torch.load(path, weights_only=True)
    if content == "missing":
        del saved[part]
    elif content is None or part != "scheduler":  # a schedule without entries loads as it is
        saved[part] = content
    else:
        saved[part] = 5
    torch.save(saved, path)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: .*to start anew"):
        build(path, epochs=1)[0].run()
