"""Checkpoints from which a killed run goes on as if nothing had happened."""

from __future__ import annotations

import logging
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from dinomed.errors import WeightsError

logger = logging.getLogger(__name__)


def save_atomically(content: Any, path: str | Path) -> None:
    """Write with `torch.save` to a temporary name, flush to disk, then rename: a crash leaves the old file whole.

    The temporary name is always the same, so that what a killed run left behind is overwritten by the next one.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def bare(network: nn.Module) -> nn.Module:
    """Return the network inside a distributed wrapper."""
    inner = network.module if hasattr(network, "module") else network
    return inner if isinstance(inner, nn.Module) else network


def random_states() -> dict[str, Any]:
    """Collect the random states of Python, NumPy and PyTorch in types that safe loading accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    python_version, python_words, python_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), has_gauss, cached],
        "python": [python_version, list(python_words), python_gauss],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo `random_states`."""
    torch.set_rng_state(states["torch"])
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))


class ResumableCheckpoint:
    """Save the whole state of a training run after each epoch, and continue from it at the next start.

    One file holds the network, the optimiser, the learning-rate schedule, the random states, epoch and step and the
    best score so far. It is replaced in one step, so that a kill at any moment leaves the last whole one. The handler
    goes last in the list, so that everything an epoch does is in its checkpoint.

    Args:
        path: the checkpoint's file.
        network: what is trained.
        optimizer: its optimiser.
        scheduler: its learning-rate schedule, or None.
        fingerprint: plain settings that must not change between the runs (seed, steps, batch size ...).
        every: epochs between two checkpoints.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        fingerprint: dict[str, Any] | None = None,
        every: int = 1,
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.fingerprint = dict(fingerprint or {})
        self.every = every

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self.save)

    def save(self, engine: Engine) -> None:
        """Write the checkpoint; in a distributed run the first process does."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        state = engine.state
        content = {
            "network": bare(self.network).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "random": random_states(),
            "fingerprint": self.fingerprint,
            "epoch": state.epoch,
            "iteration": state.iteration,
            "best_metric": float(state.best_metric),
            "best_metric_epoch": int(state.best_metric_epoch),
        }
        save_atomically(content, self.path)

    def load(self, engine: Engine) -> None:
        """Continue from the checkpoint if there is one.

        Raises:
            WeightsError: if it is damaged, or was written by a run with other settings or another network.
        """
        if not self.path.is_file():
            return
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            saved = content["fingerprint"]
            state = {name: content[name] for name in ("iteration", "epoch", "best_metric", "best_metric_epoch")}
            optimizer, scheduler, random_state = (content[name] for name in ("optimizer", "scheduler", "random"))
        except Exception as error:  # a damaged file makes torch.load raise almost anything
            raise WeightsError(
                f"{self.path}: the checkpoint is damaged ({type(error).__name__}); delete it to start anew"
            ) from error
        changed = sorted(
            f"{key} ({saved.get(key)!r} then, {self.fingerprint.get(key)!r} now)"
            for key in {*saved, *self.fingerprint}
            if saved.get(key) != self.fingerprint.get(key)
        )
        if changed:
            raise WeightsError(
                f"{self.path}: was written with other settings: {', '.join(changed)}; "
                "restore them, or choose another output_dir to start anew"
            )
        try:
            bare(self.network).load_state_dict(content["network"])
        except RuntimeError as error:
            raise WeightsError(
                f"{self.path}: was written by a run of another network; choose another output_dir to start anew"
            ) from error
        try:
            self.optimizer.load_state_dict(optimizer)
            if self.scheduler is not None:
                self.scheduler.load_state_dict(scheduler)
            restore_random_states(random_state)
        except Exception as error:  # what was saved by another optimiser or version fails in many ways
            raise WeightsError(
                f"{self.path}: the state of its optimiser, schedule or random numbers does not fit this run "
                f"({type(error).__name__}); choose another output_dir to start anew"
            ) from error
        for name, value in state.items():
            setattr(engine.state, name, value)
        logger.info("continuing from %s after epoch %d", self.path, content["epoch"])


class BestWeights:
    """Keep the network's weights of the best validation so far, as a plain state dict.

    Attach it to the evaluator; it compares the evaluator's key metric.

    Args:
        path: file of the state dict.
        network: what is evaluated.
    """

    def __init__(self, path: str | Path, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network
        self.trainer: Engine | None = None

    def follow(self, trainer: Engine) -> None:
        """Remember the best score in the trainer's state, where a resumed run finds it again."""
        self.trainer = trainer

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self.save_if_best)

    def save_if_best(self, engine: Engine) -> None:
        """Save when the key metric is higher than ever before; one that is no number never is."""
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if math.isnan(score):
            return
        state = engine.state if self.trainer is None else self.trainer.state
        if state.best_metric_epoch != -1 and score <= state.best_metric:
            return
        state.best_metric, state.best_metric_epoch = score, state.epoch
        if getattr(engine.state, "rank", 0) == 0:
            save_atomically(bare(self.network).state_dict(), self.path)
