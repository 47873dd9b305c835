from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from dinomed.handlers.optimisation import ClipGradients, EpochOfData, StepSchedule, StopAtNaN, warmup_polynomial


def optimizer(rate: float = 2.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], rate)


def rates(warmup_steps: int, total_steps: int, **options: float) -> list[float]:
    """Learning rate of every step."""
    tool = optimizer()
    schedule = warmup_polynomial(tool, warmup_steps, total_steps, **options)
    seen = []
    for _ in range(total_steps):
        seen.append(tool.param_groups[0]["lr"])
        tool.step()
        schedule.step()
    return [*seen, tool.param_groups[0]["lr"]]


def trainer(network: nn.Module, handlers: list[Any], batches: int = 5, **options: Any) -> SupervisedTrainer:
    items = [{"image": torch.full((1,), float(i + 1)), "label": torch.zeros(1)} for i in range(batches)]
    given = {"optimizer": torch.optim.SGD(network.parameters(), 0.1), "max_epochs": 1, "decollate": False, **options}
    return SupervisedTrainer(
        device=torch.device("cpu"),
        train_data_loader=torch.utils.data.DataLoader(items),
        network=network,
        loss_function=given.pop("loss_function", nn.MSELoss()),
        train_handlers=handlers,
        **given,
    )


def test_rate_rises_linearly_then_falls_to_zero() -> None:
    seen = rates(3, 10, power=1.0)
    assert seen[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert seen[4:] == pytest.approx([2 * (10 - step) / 7 for step in range(4, 11)])
    assert seen[-1] == 0


def test_power_bends_the_decay() -> None:
    assert rates(0, 4, power=2.0) == pytest.approx([2.0, 2 * 0.75**2, 2 * 0.5**2, 2 * 0.25**2, 0.0])


def test_rate_stays_zero_after_the_end() -> None:
    tool = optimizer()
    schedule = warmup_polynomial(tool, 0, 2)
    for _ in range(5):
        tool.step()
        schedule.step()
    assert tool.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("warmup_steps", [10, 11, -1])
def test_warmup_as_long_as_the_training_is_refused(warmup_steps: int) -> None:
    with pytest.raises(ValueError, match=f"warmup_steps is {warmup_steps} and the whole training takes 10 steps"):
        warmup_polynomial(optimizer(), warmup_steps, 10)


@pytest.mark.parametrize(("accumulation_steps", "expected"), [(1, 10), (2, 6), (3, 4), (5, 2)])
def test_schedule_counts_optimiser_steps(accumulation_steps: int, expected: int) -> None:
    """Five batches an epoch: the last, incomplete accumulation is a step as well."""
    network = nn.Linear(1, 1)
    tool = torch.optim.SGD(network.parameters(), 0.01)
    steps = []
    tool.register_step_post_hook(lambda *_: steps.append(1))
    schedule = warmup_polynomial(tool, 0, 100)
    handler = StepSchedule(schedule)
    trainer(network, [handler], optimizer=tool, max_epochs=2, accumulation_steps=accumulation_steps).run()
    assert schedule.last_epoch == len(steps) == expected


def test_gradients_are_clipped_before_the_step() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 100.0)
    engine = trainer(network, [ClipGradients(network, 0.5)], batches=1)
    engine.run()
    assert float(network.weight.detach()) == pytest.approx(100 - 0.1 * 0.5, rel=1e-5)


def test_data_learn_the_epoch_before_it_begins() -> None:
    told = []

    class Data:
        def set_epoch(self, epoch: int) -> None:
            told.append(("epoch", epoch))

    engine = trainer(nn.Linear(1, 1), [EpochOfData(Data())], batches=1, max_epochs=2)
    engine.add_event_handler(Events.GET_BATCH_STARTED, lambda: told.append(("batch", engine.state.epoch)))
    engine.run()
    assert told == [("epoch", 1), ("batch", 1), ("epoch", 2), ("batch", 2)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_loss_that_is_no_number_stops_before_the_weights_change(value: float) -> None:
    network = nn.Linear(1, 1)
    before = network.weight.clone()
    engine = trainer(network, [StopAtNaN()], loss_function=lambda pred, label: pred.mean() * 0 + value)
    with pytest.raises(FloatingPointError, match=r"the loss became .* at step 1 \(epoch 1\).*initial_weights"):
        engine.run()
    assert torch.equal(network.weight, before)


def test_finite_loss_goes_on() -> None:
    engine = trainer(nn.Linear(1, 1), [StopAtNaN()])
    engine.run()
    assert engine.state.iteration == 5
