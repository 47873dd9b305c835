from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.engines import SupervisedTrainer
from torch import nn

from dinomed.errors import DinomedError
from dinomed.handlers.divergence import SPOILT, DivergedError, StopAtNaN, batch_files, diverged, finite
from dinomed.handlers.optimisation import ClipGradients
from dinomed.handlers.resume import BestWeights, ResumableCheckpoint


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """Six items from files of their own; the values of one are what a test says."""

    def __init__(self, bad: int = -1, value: float = float("nan")) -> None:
        self.bad, self.value = bad, value

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((1, 2, 2), self.value if index == self.bad else 1.0)
        meta = {"filename_or_obj": f"/data/{index}.png"}
        return {"image": MetaTensor(image, meta=meta), "label": torch.zeros(1), "name": f"item {index}"}


def train(handlers: list[Any], items: Items, network: nn.Module, **options: Any) -> Engine:
    given = {"optimizer": torch.optim.SGD(network.parameters(), 0.1), "max_epochs": 1, **options}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        train_data_loader=DataLoader(items, batch_size=2),
        network=network,
        loss_function=given.pop("loss", nn.MSELoss()),
        train_handlers=handlers,
        decollate=False,
        **given,
    )
    trainer.run()
    return trainer


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 1))


def test_loss_that_is_no_number_names_step_and_files_and_leaves_the_weights() -> None:
    net = network()
    with pytest.raises(DivergedError) as caught:
        train([StopAtNaN()], Items(bad=3), net)
    message = str(caught.value)
    assert message.startswith("the loss became nan at step 2 (epoch 1) in a batch of /data/2.png, /data/3.png; ")
    assert "no checkpoint was written from it, what was saved before is whole" in message
    assert isinstance(caught.value, (DinomedError, FloatingPointError))
    assert finite(net)


def test_infinite_gradient_names_the_files_of_its_whole_group() -> None:
    """The loss is finite, its gradient is not."""
    net = network()
    before = [parameter.clone() for parameter in net.parameters()]

    def loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.sqrt((pred * 0).abs()).mean()

    with pytest.raises(DivergedError, match=r"the norm of the gradients became nan at step 2 .*/data/2.png, .*/data/0"):
        train([ClipGradients(net, None)], Items(), net, loss=loss, accumulation_steps=2)
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    checkpoint = ResumableCheckpoint(tmp_path / "c.pt", net, optimizer)
    train([checkpoint], Items(), net, optimizer=optimizer)
    before = (tmp_path / "c.pt").read_bytes()

    class Overflow:
        def attach(self, engine: Engine) -> None:
            from ignite.engine import Events

            engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), lambda: net[1].weight.data.fill_(np.inf))

    again = ResumableCheckpoint(tmp_path / "c.pt", net, optimizer)
    with pytest.raises(DivergedError, match=rf"{SPOILT} at step 6 \(epoch 2\).*/data/5.png"):
        train([Overflow(), again], Items(), net, optimizer=optimizer, max_epochs=2)
    assert (tmp_path / "c.pt").read_bytes() == before

    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics, evaluator.state.key_metric_name = {"dice": 0.5}, "dice"
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1
    best = BestWeights(tmp_path / "best.pt", net)
    with pytest.raises(DivergedError, match=SPOILT):
        best.save_if_best(evaluator)
    assert not (tmp_path / "best.pt").exists()


def collated(items: list[dict[str, Any]]) -> Any:
    return next(iter(DataLoader(Dataset(items), batch_size=len(items))))


def test_files_are_found_in_meta_data_paths_and_names() -> None:
    tensor = torch.zeros(1, 2)
    with_meta = [{"image": MetaTensor(tensor, meta={"filename_or_obj": f"{k}.nii"}), "label": tensor} for k in "ab"]
    assert batch_files(collated(with_meta)) == ["a.nii", "b.nii"]
    assert batch_files(list_data_collate([with_meta])) == ["a.nii", "b.nii"]
    assert batch_files(with_meta) == ["a.nii", "b.nii"]
    assert batch_files({"image": tensor, "file": [Path("a.png"), Path("b.png")]}) == ["a.png", "b.png"]
    assert batch_files(collated([{"image": tensor, "name": "one"}, {"image": tensor, "name": "two"}])) == ["one", "two"]
    assert batch_files({"image": tensor, "source": "x", "name": "y"}) == ["x"]
    for nothing in (None, tensor, (tensor, tensor), {"image": tensor}):
        assert batch_files(nothing) == []


def test_plain_collating_that_keeps_one_name_is_said_or_made_good_by_names() -> None:
    stacked = torch.stack([MetaTensor(torch.zeros(3, 2, 2), meta={"filename_or_obj": f"{k}.png"}) for k in "ab"])
    assert batch_files({"image": stacked}) == ["a.png and what was collated with it"]
    assert batch_files({"image": stacked, "name": ["a", "b"]}) == ["a", "b"]


def test_batch_without_names_is_said_and_a_long_one_shortened() -> None:
    engine = Engine(lambda engine, batch: None)
    engine.state.iteration, engine.state.epoch = 7, 2
    assert "nan at step 7 (epoch 2) in a batch that names no files; " in str(diverged(engine, "nan", []))
    text = str(diverged(engine, "nan", [f"{k}.png" for k in range(20)]))
    assert "14.png, 15.png and 4 more; " in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_finite_looks_at_weights_and_statistics_but_not_at_constants(value: float) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net.register_buffer("mask", torch.tensor([value]))
    assert finite(net)
    net[1].running_var[1] = value
    assert not finite(net)


@pytest.mark.parametrize("value", [1e30, -1e30, float("inf"), float("nan")])
def test_weights_that_the_next_step_would_spoil_are_not_saved(value: float) -> None:
    net = nn.Linear(2, 2)
    assert finite(net)
    with torch.no_grad():
        net.weight[0, 1] = value
    assert not finite(net)
