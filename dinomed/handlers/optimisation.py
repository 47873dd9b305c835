"""What happens around an optimiser step: accumulation, clipping, the learning-rate schedule, the epoch of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn

from dinomed.errors import InputError
from dinomed.handlers.divergence import batch_files, diverged
from dinomed.handlers.processes import gathered


class EpochAware(Protocol):
    """A dataset or sampler whose items depend on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""


def optimiser_steps(max_epochs: int, steps_per_epoch: int, accumulation_steps: int = 1) -> int:
    """Count the optimiser steps of a whole training; batches left over at an epoch's end make a step of their own.

    Args:
        max_epochs: epochs.
        steps_per_epoch: batches in an epoch.
        accumulation_steps: batches that make one optimiser step.

    Raises:
        InputError: if one is no whole number from 1 on.
    """
    given = {"max_epochs": max_epochs, "steps_per_epoch": steps_per_epoch, "accumulation_steps": accumulation_steps}
    for name, value in given.items():
        if type(value) is not int or value < 1:
            raise InputError(f"{name} is {value!r}; give a whole number from 1 on")
    return max_epochs * -(-steps_per_epoch // accumulation_steps)


def warmup_polynomial(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, power: float = 0.9
) -> WarmupSchedule:
    """Learning rate that rises linearly, then falls to zero as (1 - progress)^power, counted in optimiser steps.

    Args:
        optimizer: whose groups' learning rates are the peak.
        warmup_steps: steps until the peak.
        total_steps: step at which the rate reaches zero.
        power: exponent of the decay.

    Raises:
        ValueError: if the warm-up is not shorter than the whole.
    """
    return WarmupSchedule(
        optimizer, f"polynomial {power}", warmup_steps, total_steps, lambda progress: (1 - progress) ** power
    )


def warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, final_factor: float = 0.0
) -> WarmupSchedule:
    """Learning rate that rises linearly, then falls along half a cosine, counted in optimiser steps.

    Args:
        optimizer: whose groups' learning rates are the peak.
        warmup_steps: steps until the peak.
        total_steps: step at which the rate reaches its end.
        final_factor: the rate at the end, relative to the peak.

    Raises:
        ValueError: if the warm-up is not shorter than the whole.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5, with
        one period.
    """
    return WarmupSchedule(
        optimizer,
        f"cosine {final_factor}",
        warmup_steps,
        total_steps,
        lambda progress: final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2,
    )


class WarmupSchedule(torch.optim.lr_scheduler.LambdaLR):
    """Learning rate that rises linearly to the peak and then follows a decay, counted in optimiser steps.

    Args:
        optimizer: whose groups' learning rates are the peak.
        kind: name of the decay, by which a resumed run knows it again.
        warmup_steps: steps until the peak.
        total_steps: step at which the decay is complete.
        decay: maps the progress after the peak, from 0 to 1, to a factor of the peak.

    Raises:
        InputError: if the warm-up is no whole number.
        ValueError: if the warm-up is not shorter than the whole.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kind: str,
        warmup_steps: int,
        total_steps: int,
        decay: Callable[[float], float],
    ) -> None:
        if type(warmup_steps) is not int:
            raise InputError(f"warmup_steps is {warmup_steps!r}; give a whole number of optimiser steps, or 0 for none")
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"warmup_steps is {warmup_steps} and the whole training takes {total_steps} steps; shorten the warm-up"
            )
        self.kind = kind

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            return decay(min(1.0, (step - warmup_steps) / (total_steps - warmup_steps)))

        super().__init__(optimizer, factor)


def group_position(engine: Engine) -> tuple[int, int]:
    """Say which batch of its accumulation group the present one is, and how many the group has.

    The optimiser steps after the last of them. An epoch ends with a step, so its last group may be smaller; a
    checkpoint at the end of an epoch therefore never lies inside a group.

    Args:
        engine: a `SupervisedTrainer`, whose `accumulation_steps` decide.

    Returns:
        Position from 1 on, and size.
    """
    steps = int(getattr(engine, "accumulation_steps", 1))
    position = (engine.state.iteration - 1) % engine.state.epoch_length
    start = position - position % steps
    return position - start + 1, min(steps, engine.state.epoch_length - start)


class StepSchedule:
    """Advance a schedule after each optimiser step, however many batches make one step.

    Args:
        scheduler: the schedule.
    """

    def __init__(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        self.scheduler = scheduler

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Advance if this batch ended with an optimiser step."""
        position, size = group_position(engine)
        if position == size:
            self.scheduler.step()


class ClipGradients:
    """Make the gradients of an accumulation group ready for the optimiser: average them, check them, limit their norm.

    MONAI's trainer divides each batch's loss by `accumulation_steps`, in a smaller last group too; here the gradients
    of such a group become the mean over the batches that it has. With a loss scaler (float16) they are unscaled first.
    Gradients that are no numbers stop the training before the weights change, except that a loss scaler leaves out
    such a step by itself.

    Args:
        network: whose gradients.
        max_norm: largest 2-norm; None leaves the norm alone.

    Raises:
        ValueError: if `max_norm` is no positive number.
    """

    def __init__(self, network: nn.Module, max_norm: float | None) -> None:
        number = isinstance(max_norm, (int, float)) and not isinstance(max_norm, bool)
        if max_norm is not None and not (number and max_norm > 0):
            raise ValueError(f"max_norm must be a positive number, not {max_norm!r}")
        self.network = network
        self.max_norm = math.inf if max_norm is None else float(max_norm)
        self._files: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Change the gradients in place, once for each optimiser step.

        Raises:
            DivergedError: if they are NaN or infinite.
            InputError: if a loss scaler meets sharded weights.
        """
        position, size = group_position(engine)
        self._files = batch_files(engine.state.batch) + (self._files if position > 1 else [])
        if position < size:
            return
        scaler: Any = getattr(engine, "scaler", None)
        scaled = scaler is not None and scaler.is_enabled()
        if scaled:
            scaler.unscale_(engine.optimizer)
        missing = getattr(engine, "accumulation_steps", 1) / size
        if missing != 1:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(missing)
        norm: Any = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        sharded = hasattr(norm, "full_tensor")
        if scaled and sharded:  # each process would look for overflow in its own part only, and step by itself
            raise InputError("sharded weights cannot be trained in float16; set precision to bfloat16")
        total = float(norm.full_tensor() if sharded else norm)
        # After the processes have averaged their gradients all of them see the same norm.
        if not math.isfinite(total) and not scaled:
            files = [name for names in gathered(self._files) for name in names]
            raise diverged(engine, f"the norm of the gradients became {total}", files)


class EpochOfData:
    """Tell a dataset or sampler which epoch begins.

    Args:
        target: anything with `set_epoch`.

    Raises:
        InputError: if it has none, as the name of a sampler that a config should refer to.
    """

    def __init__(self, target: EpochAware) -> None:
        if not callable(getattr(target, "set_epoch", None)):
            hint = f"write '@{target}' if the config has that id" if isinstance(target, str) else "take one of ours"
            raise InputError(f"{target!r} is no sampler or data set that can be told which epoch begins; {hint}")
        self.target = target

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the epoch."""
        self.target.set_epoch(engine.state.epoch)
