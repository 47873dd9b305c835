"""Two processes against one: data, losses, weights, metrics, checkpoints and errors."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn
from two_processes import run_together

from dinomed.bundle.distribution import distribute, process_count, process_rank
from dinomed.bundle.training import parameter_groups, prepare_run, start_network
from dinomed.data.sampling import EpochSampler, ShareSampler
from dinomed.handlers.averaging import WeightAverage
from dinomed.handlers.divergence import DivergedError, StopAtNaN
from dinomed.handlers.logs import TrainingLog
from dinomed.handlers.optimisation import ClipGradients, EpochOfData, StepSchedule, warmup_cosine
from dinomed.handlers.resume import BestWeights, ResumableCheckpoint
from dinomed.metrics.overlap import LabelDice
from dinomed.networks import Segmenter, create_backbone
from dinomed.networks.decoders import LinearDecoder

CPU = torch.device("cpu")


class KilledError(Exception):
    """Stands for whatever ends a run."""


class Pictures(torch.utils.data.Dataset[dict[str, Any]]):
    """Twelve tiny pictures with label maps; one may be broken."""

    def __init__(self, count: int = 12, broken: int = -1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, 32, 32, generator=generator)
        self.labels = (self.images.mean(1, keepdim=True) > 0).long()
        if broken >= 0:
            self.images[broken] = float("nan")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        meta = {"filename_or_obj": f"{index}.png"}
        return {"image": MetaTensor(self.images[index], meta=meta), "label": self.labels[index]}


def pixel_loss(logits: Any, labels: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(torch.as_tensor(logits), torch.as_tensor(labels)[:, 0])


class NoisyNetwork(nn.Module):
    """Batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.rest = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 2, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.rest(self.backbone(image))


def small_network(noise: bool, frozen: bool = False, normed: bool = False) -> nn.Module:
    """Without noise nothing but the items and their order decides; with it there are dropout and batch norm.

    Normed it is as a bundle builds it, with a batch norm in the linear decoder.
    """
    if noise:
        return NoisyNetwork()
    # Fresh layer scales of 1e-5 would hide the blocks.
    options = {"init_values": 0.5, "embed_dim": 32, "depth": 4, "num_heads": 2}
    backbone = create_backbone("dinov3_vit_tiny16", frozen=frozen, **options)
    norm_layer = nn.BatchNorm2d if normed else nn.Identity
    return Segmenter(backbone, LinearDecoder(backbone.channels, backbone.strides, norm_layer=norm_layer), 2)


def train(
    folder: Path,
    wrap: str = "",
    noise: bool = False,
    frozen: bool = False,
    broken: int = -1,
    kill_at: int = -1,
    total_batch: int = 4,
    accumulation_steps: int = 2,
    normed: bool = False,
) -> dict[str, Any]:
    """Train for three epochs of three batches (of all processes together), as a bundle does."""
    prepare_run(0)
    world_size, rank = process_count(), process_rank()
    network = start_network(small_network(noise, frozen, normed), None, "cpu")
    if wrap:
        network = distribute(network, CPU, sharded=wrap == "shard")
    items = Pictures(broken=broken)
    sampler = EpochSampler(items, seed=1, rank=rank, world_size=world_size)
    optimizer = torch.optim.SGD(parameter_groups(network, 0.5, 0.25), momentum=0.9)
    schedule = warmup_cosine(optimizer, 1, 6)
    average = WeightAverage(network, None if wrap == "shard" else 0.5)
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=3,
        train_data_loader=DataLoader(items, batch_size=total_batch // world_size, sampler=sampler),
        network=network,
        optimizer=optimizer,
        loss_function=pixel_loss,
        accumulation_steps=accumulation_steps,
        decollate=False,
        train_handlers=[
            EpochOfData(sampler),
            StopAtNaN(),
            ClipGradients(network, 0.5),
            TrainingLog(folder, optimizer, every=1, tensorboard=False),
            StepSchedule(schedule),
            average,
            ResumableCheckpoint(folder / "checkpoint.pt", network, optimizer, schedule, parts={"average": average}),
        ],
    )
    best = BestWeights(folder / "best.pt", average.network)
    best.follow(trainer)
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics, evaluator.state.key_metric_name, evaluator.state.rank = {"dice": 0.5}, "dice", rank
    trainer.add_event_handler(Events.COMPLETED, lambda: best.save_if_best(evaluator))
    if kill_at > 0:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=kill_at), kill)
    message = ""
    try:
        trainer.run()
    except (KilledError, DivergedError) as error:
        message = str(error)
    buffers = {key: value.clone() for key, value in average.network.named_buffers()}
    return {"message": message, "buffers": buffers, "draw": float(torch.rand(())), "step": trainer.state.iteration}


def kill() -> None:
    raise KilledError


def validate(count: int = 5) -> float:
    """Dice over pictures that the processes share unevenly."""
    torch.manual_seed(0)
    items = Pictures(count)
    sampler = ShareSampler(items, process_rank(), process_count())
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=DataLoader(items, batch_size=1, sampler=sampler),
        network=small_network(noise=True),
        key_val_metric={"dice": LabelDice(2, output_transform=pair)},
        decollate=False,
    )
    evaluator.run()
    return float(evaluator.state.metrics["dice"])


def pair(output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return output["pred"].argmax(1, keepdim=True), output["label"]


def all_together(folder: str) -> dict[str, Any]:
    """Everything that the tests look at, since starting processes takes long."""
    place = Path(folder)
    found: dict[str, Any] = {"dice": validate()}
    found["plain"] = train(place / "plain", "distribute")
    found["noisy"] = train(place / "noisy", "distribute", noise=True)
    found["killed"] = train(place / "killed", "distribute", noise=True, kill_at=4)
    found["resumed"] = train(place / "killed", "distribute", noise=True)
    for wrap in ("distribute", "shard"):
        found[f"normed {wrap}"] = train(place / f"normed_{wrap}", wrap, normed=True)
    found["broken"] = train(place / "broken", "distribute", broken=5)
    found["sharded"] = train(place / "sharded", "shard")
    found["sharded killed"] = train(place / "sharded_killed", "shard", kill_at=5)
    found["sharded resumed"] = train(place / "sharded_killed", "shard")
    for _ in range(2):  # the second one finds itself at the end
        found["frozen"] = train(place / "frozen", "shard", frozen=True)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def together(place: Path) -> list[dict[str, Any]]:
    return run_together(all_together, place, str(place))


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of the same training in a single process."""
    folder = tmp_path_factory.mktemp("alone")
    yield folder, train(folder)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def equal(one: Any, other: Any) -> bool:
    """Compare what a checkpoint holds, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_two_processes_train_as_one_with_the_larger_batch(place: Path, together: Any, alone: Any, kind: str) -> None:
    one, two = load(alone[0] / "checkpoint.pt"), load(place / kind / "checkpoint.pt")
    assert one["network"].keys() == two["network"].keys()
    torch.testing.assert_close(two["network"], one["network"], rtol=1e-4, atol=1e-5)
    moved = load(alone[0] / "checkpoint.pt")["network"]["head.weight"] - start()["head.weight"]
    assert float(moved.abs().max()) > 0.01
    logged = [[float(row["loss"]) for row in rows(folder)] for folder in (alone[0], place / kind)]
    assert len(logged[0]) == 9
    assert logged[1] == pytest.approx(logged[0], abs=2e-5)


@pytest.mark.parametrize("wrap", ["distribute", "shard"])
def test_batch_norm_of_two_processes_is_that_of_one(place: Path, together: Any, tmp_path: Path, wrap: str) -> None:
    alone = train(tmp_path, normed=True)
    one, two = load(tmp_path / "checkpoint.pt"), load(place / f"normed_{wrap}" / "checkpoint.pt")
    assert one["network"].keys() == two["network"].keys()
    assert int(one["network"]["decoder.norm.num_batches_tracked"]) == 9
    torch.testing.assert_close(two["network"], one["network"], rtol=1e-4, atol=1e-5)
    for result in together:
        torch.testing.assert_close(result[f"normed {wrap}"]["buffers"], alone["buffers"], rtol=1e-4, atol=1e-5)
    logged = [[float(row["loss"]) for row in rows(folder)] for folder in (tmp_path, place / f"normed_{wrap}")]
    assert logged[1] == pytest.approx(logged[0], abs=2e-5)
    start_network(small_network(noise=False, normed=True), place / f"normed_{wrap}" / "best.pt", "cpu")


def test_frozen_backbone_is_shared_out_and_stays_as_it_is(place: Path, together: Any) -> None:
    before, after = start(), load(place / "frozen" / "checkpoint.pt")["network"]
    unchanged = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert {key for key in before if key.startswith("backbone.")} <= unchanged
    assert "head.weight" not in unchanged


def start() -> Any:
    prepare_run(0)
    return small_network(noise=False).state_dict()


def test_average_of_two_processes_is_that_of_one(place: Path, together: Any, alone: Any) -> None:
    one, two = (load(folder / "checkpoint.pt")["parts"]["average"] for folder in (alone[0], place / "plain"))
    assert one["updates"] == two["updates"] == 6
    torch.testing.assert_close(two["network"], one["network"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_whole_weights_are_loaded_by_a_plain_process(place: Path, together: Any, kind: str) -> None:
    network = small_network(noise=False)
    network.load_state_dict(load(place / kind / "checkpoint.pt")["network"])
    network = start_network(small_network(noise=False), place / kind / "best.pt", "cpu")
    assert bool(network(torch.zeros(1, 3, 32, 32)).isfinite().all())


@pytest.mark.parametrize(("unbroken", "broken"), [("noisy", "killed"), ("sharded", "sharded_killed")])
def test_killed_processes_end_as_those_never_killed(place: Path, together: Any, unbroken: str, broken: str) -> None:
    """With dropout, whose random numbers each process draws for itself."""
    name = broken.split("_")[0]
    resumed = "resumed" if name == "killed" else "sharded resumed"
    for result in together:
        assert result[name if name == "killed" else "sharded killed"]["step"] < result[resumed]["step"] == 9
        assert result[resumed]["draw"] == result[unbroken]["draw"]
    ends = [load(place / folder / "checkpoint.pt") for folder in (unbroken, broken)]
    torch.testing.assert_close(ends[1]["network"], ends[0]["network"], rtol=0, atol=0)
    assert equal(ends[0]["optimizer"], ends[1]["optimizer"])
    assert len(ends[0]["random"]) == 2


def test_processes_draw_different_random_numbers(together: Any) -> None:
    assert together[0]["noisy"]["draw"] != together[1]["noisy"]["draw"]


def test_all_processes_validate_with_the_same_statistics(together: Any) -> None:
    first, second = (result["noisy"]["buffers"] for result in together)
    assert first
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_metric_of_two_processes_is_that_of_one(together: Any) -> None:
    assert together[0]["dice"] == together[1]["dice"] == pytest.approx(validate(), abs=1e-12)


def test_all_processes_stop_at_one_broken_file_and_name_it(place: Path, together: Any) -> None:
    messages = {result["broken"]["message"] for result in together}
    (message,) = messages
    assert message.startswith("the loss became nan at step ")
    assert "5.png" in message
    epoch = int(message.split("(epoch ")[1].split(")")[0])
    assert epoch == 1
    assert not (place / "broken" / "checkpoint.pt").exists()


def test_one_process_writes(place: Path, together: Any) -> None:
    names = {path.name for path in (place / "plain").iterdir()}
    assert names == {"checkpoint.pt", "best.pt", "log.csv", "log.jsonl"}
    assert len(rows(place / "plain")) == 9
