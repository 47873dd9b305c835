"""Ending a training that has stopped getting better."""

from __future__ import annotations

import logging
import math
from typing import Any

from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class EarlyStopping:
    """End the training when the key metric has not risen for a number of validations.

    Attach it to the evaluator. `ResumableCheckpoint` keeps what it knows (`parts`) and that the run has ended, so that
    the same command does not train on.

    Args:
        patience: validations without progress after which the training ends; None never ends it.
        min_delta: by how much a score must beat the best one to count as progress.

    Raises:
        ValueError: if the patience is no whole number from 1 on.
    """

    def __init__(self, patience: int | None, min_delta: float = 0.0) -> None:
        if patience is not None and (type(patience) is not int or patience < 1):
            raise ValueError(f"patience must be a number of validations from 1 on, or null, not {patience!r}")
        self.patience = patience
        self.min_delta = float(min_delta)
        self.best = -math.inf
        self.without_progress = 0
        self.trainer: Engine | None = None

    def follow(self, trainer: Engine) -> None:
        """Take the trainer that is ended."""
        self.trainer = trainer

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        if self.patience is not None:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare the key metric; one that is no number is no progress."""
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if score > self.best + self.min_delta:
            self.best, self.without_progress = score, 0
            return
        self.without_progress += 1
        if self.patience is not None and self.without_progress >= self.patience and self.trainer is not None:
            logger.info("no progress in %d validations, the best score is %.4f: the training ends", *self._facts())
            self.trainer.terminate()

    def _facts(self) -> tuple[int, float]:
        return self.without_progress, self.best

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, for a checkpoint."""
        return {"best": self.best, "without_progress": self.without_progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.best, self.without_progress = float(state["best"]), int(state["without_progress"])
