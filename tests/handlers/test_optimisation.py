from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from dinomed.errors import InputError
from dinomed.handlers.divergence import StopAtNaN
from dinomed.handlers.optimisation import (
    ClipGradients,
    EpochOfData,
    StepSchedule,
    optimiser_steps,
    warmup_cosine,
    warmup_polynomial,
)
from dinomed.handlers.scaling import LossScaling


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


def test_cosine_rises_linearly_then_falls_along_half_a_wave() -> None:
    tool = optimizer()
    schedule = warmup_cosine(tool, 2, 10, final_factor=0.1)
    seen = []
    for _ in range(12):
        seen.append(tool.param_groups[0]["lr"] / 2)
        tool.step()
        schedule.step()
    wave = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert seen == pytest.approx([1 / 3, 2 / 3, *wave, 0.1])
    assert seen[6] == pytest.approx(0.55)
    assert (
        warmup_cosine(tool, 2, 10).kind != warmup_cosine(tool, 2, 10, 0.1).kind != warmup_polynomial(tool, 2, 10).kind
    )


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


def batches(sizes: list[int]) -> list[dict[str, torch.Tensor]]:
    """Batches of these sizes, cut from the same items."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 3, generator=generator), torch.randn(20, 1, generator=generator)
    parts = zip(images[: sum(sizes)].split(sizes), labels[: sum(sizes)].split(sizes), strict=True)
    return [{"image": image, "label": label} for image, label in parts]


def trained(sizes: list[int], kind: Any, accumulation_steps: int, **options: Any) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    tool = kind(network.parameters(), 0.1)
    schedule = warmup_polynomial(tool, 1, 10)
    engine = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=batches(sizes),
        network=network,
        optimizer=tool,
        loss_function=nn.MSELoss(),
        train_handlers=[
            LossScaling(options.get("precision", "float32"), "cpu"),
            ClipGradients(network, options.get("max_norm", 0.3)),
            StepSchedule(schedule),
        ],
        accumulation_steps=accumulation_steps,
        decollate=False,
    )
    engine.run()
    return network, schedule.last_epoch


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("max_norm", [None, 0.3])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(("small", "accumulation_steps", "large"), [([4] * 5, 2, [8, 8, 4]), ([2] * 8, 3, [6, 6, 4])])
def test_accumulated_batches_train_as_the_large_batch_does(
    kind: Any, max_norm: float | None, precision: str, small: list[int], accumulation_steps: int, large: list[int]
) -> None:
    """The last group of an epoch is smaller; float16 scales the loss (the network stays in float32 here)."""
    accumulated, steps = trained(small, kind, accumulation_steps, max_norm=max_norm, precision=precision)
    whole, _ = trained(large, kind, 1, max_norm=max_norm)
    assert steps == 6
    torch.testing.assert_close(accumulated.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)


def test_scaled_gradients_are_clipped_at_their_own_size() -> None:
    scaled, plain = trained([20], torch.optim.SGD, 1, precision="float16"), trained([20], torch.optim.SGD, 1)
    torch.testing.assert_close(scaled[0].state_dict(), plain[0].state_dict(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("accumulation_steps", "expected"), [(1, 10), (2, 6), (3, 4), (5, 2), (7, 2)])
def test_optimiser_steps_are_counted_in_advance(accumulation_steps: int, expected: int) -> None:
    assert optimiser_steps(2, 5, accumulation_steps) == expected


@pytest.mark.parametrize("value", [0, -1.0, "1", True])
def test_norm_that_is_no_positive_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="max_norm must be a positive number, not"):
        ClipGradients(nn.Linear(1, 1), value)


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


@pytest.mark.parametrize("name", ["max_epochs", "steps_per_epoch", "accumulation_steps"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, "a", True, None])
def test_steps_that_are_no_numbers_from_one_on_are_refused(name: str, wrong: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is {wrong!r}; give a whole number from 1 on"):
        optimiser_steps(**{"max_epochs": 2, "steps_per_epoch": 3, name: wrong})


def test_a_warm_up_that_is_no_number_of_steps_is_refused() -> None:
    with pytest.raises(InputError, match="warmup_steps is 'a'"):
        warmup_polynomial(optimizer(), "a", 10)  # type: ignore[arg-type]


def test_what_cannot_be_told_of_epochs_is_refused() -> None:
    with pytest.raises(InputError, match=r"'balanced' is no sampler .* write '@balanced'"):
        EpochOfData("balanced")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="take one of ours"):
        EpochOfData([1])  # type: ignore[arg-type]
