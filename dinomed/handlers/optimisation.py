"""What happens around an optimiser step: learning-rate schedule, clipping, the epoch of the data."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn


class EpochAware(Protocol):
    """A dataset or sampler whose items depend on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""


def warmup_polynomial(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, power: float = 0.9
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate that rises linearly, then falls to zero as (1 - progress)^power, counted in optimiser steps.

    Args:
        optimizer: whose groups' learning rates are the peak.
        warmup_steps: steps until the peak.
        total_steps: step at which the rate reaches zero.
        power: exponent of the decay.

    Raises:
        ValueError: if the warm-up is not shorter than the whole.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps} and the whole training takes {total_steps} steps; shorten the warm-up"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / (total_steps - warmup_steps)) ** power

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class StepSchedule:
    """Advance a schedule after each optimiser step, however many batches make one step.

    Args:
        scheduler: the schedule.
        accumulation_steps: batches that make one optimiser step, as the trainer has it.
    """

    def __init__(self, scheduler: torch.optim.lr_scheduler.LRScheduler, accumulation_steps: int = 1) -> None:
        self.scheduler = scheduler
        self.accumulation_steps = accumulation_steps

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Advance if this batch ended with an optimiser step."""
        position = (engine.state.iteration - 1) % engine.state.epoch_length + 1
        if position % self.accumulation_steps == 0 or position == engine.state.epoch_length:
            self.scheduler.step()


class ClipGradients:
    """Limit the norm of all gradients before the optimiser uses them.

    Args:
        network: whose gradients.
        max_norm: largest 2-norm.

    Raises:
        ValueError: if `max_norm` is no positive number.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        if isinstance(max_norm, str) or not max_norm > 0:
            raise ValueError(f"max_norm must be a positive number, not {max_norm!r}")
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip in place."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class EpochOfData:
    """Tell a dataset or sampler which epoch begins.

    Args:
        target: anything with `set_epoch`.
    """

    def __init__(self, target: EpochAware) -> None:
        self.target = target

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the epoch."""
        self.target.set_epoch(engine.state.epoch)


class StopAtNaN:
    """Stop with a clear error when the loss is no number, before the checkpoint of the epoch is written."""

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss.

        Raises:
            FloatingPointError: if it is NaN or infinite.
        """
        loss = float(engine.state.output["loss"].detach())
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} at step {engine.state.iteration} (epoch {engine.state.epoch}); "
                "the last checkpoint and best.pt are whole: train on from best.pt (initial_weights) with a lower "
                "learning rate in another output_dir"
            )
