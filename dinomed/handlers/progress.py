"""A progress bar of a training on the terminal."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dinomed.handlers.ending import when_ended
from dinomed.handlers.logs import last_loss


class Progress:
    """Show how far a training is, with epoch, loss, learning rate and the time left.

    The bar counts the batches of the whole run; one that goes on from a checkpoint begins there, and its time left is
    reckoned from its own pace. Log lines are written above it. It is off where stderr is no terminal, and in all but
    the first process. The loss is that of the last batch, in a distributed run of the first process's.

    Args:
        optimizer: whose first group's learning rate is shown.
        stream: where the bar goes, by default stderr.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, stream: Any = None) -> None:
        self.optimizer = optimizer
        self.stream = stream
        self._bar: tqdm[Any] | None = None
        self._cleanup = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        stream = sys.stderr if self.stream is None else self.stream
        if getattr(engine.state, "rank", 0) != 0 or not stream.isatty():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start, stream)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        when_ended(engine, self._finish)

    def _start(self, engine: Engine, stream: Any) -> None:
        """Begin with an epoch: only then is it known at which step a resumed run goes on."""
        if self._bar is None:
            total = engine.state.max_epochs * engine.state.epoch_length
            self._bar = tqdm(total=total, initial=engine.state.iteration, desc="training", unit="batch", file=stream)
            self._cleanup.enter_context(logging_redirect_tqdm())

    def _step(self, engine: Engine) -> None:
        if self._bar is None:
            return
        self._bar.set_postfix_str(
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {float(last_loss(engine)):.4f}, "
            f"rate {self.optimizer.param_groups[0]['lr']:.2e}",
            refresh=False,
        )
        self._bar.update()

    def _finish(self) -> None:
        self._cleanup.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
