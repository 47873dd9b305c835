"""Checkpoints from which a killed run goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch import nn

from dinomed.errors import InputError, OutputError, WeightsError
from dinomed.handlers.divergence import SPOILT, batch_files, diverged, finite
from dinomed.handlers.processes import gathered, rank
from dinomed.handlers.random_states import random_states, restore_random_states
from dinomed.handlers.sharded_state import (
    is_sharded,
    load_network_state,
    load_optimizer_state,
    network_state,
    optimizer_state,
)

logger = logging.getLogger(__name__)

FORMAT = 2
"""Changes whenever an older version could not go on from the file, or this one not from an older file."""
ENTRIES = (
    *("network", "optimizer", "scheduler", "parts", "random", "fingerprint"),
    *("epoch", "iteration", "best_metric", "best_metric_epoch", "ended"),
)


def save_atomically(content: Any, path: str | Path) -> None:
    """Write with `torch.save` to a temporary name, flush to disk, then rename: a crash leaves the old file whole.

    The temporary name is always the same, so that what a killed run left behind is overwritten by the next one.

    Raises:
        OutputError: If that fails, as on a full disk.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:  # torch.save speaks of positions where a disk is full
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or cause
        raise OutputError(f"{target} cannot be written ({reason}); make room on the disk, or choose another") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class Stateful(Protocol):
    """What the checkpoint keeps beside network, optimiser and schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and texts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Continue from them."""
        ...


class ResumableCheckpoint:
    """Save the whole state of a training run after each epoch, and continue from it at the next start.

    One file holds the network, the optimiser, the learning-rate schedule, the parts, the random states of all
    processes, epoch and step, the best score so far and whether the run was ended early. It is replaced in one step, so
    that a kill at any moment leaves the last whole one. The handler goes last in the list, so that everything an epoch
    does is in its checkpoint. Weights that are no numbers are never saved.

    Args:
        path: the checkpoint's file, which all processes must see.
        network: what is trained.
        optimizer: its optimiser.
        scheduler: its learning-rate schedule, or None.
        fingerprint: plain settings that must not change between the runs (seed, steps, batch size ...).
        every: epochs between two checkpoints.
        parts: what else has a state, by name: `WeightAverage`, `EarlyStopping`, `LossScaling` ...
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        fingerprint: dict[str, Any] | None = None,
        every: int = 1,
        parts: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.fingerprint = dict(fingerprint or {})
        self.every = every
        self.parts = dict(parts or {})

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self.save)

    def save(self, engine: Engine) -> None:
        """Write the checkpoint; in a distributed run the first process does.

        Raises:
            DivergedError: if the weights are no numbers; the file then stays as it is.
        """
        if not finite(self.network):
            raise diverged(engine, SPOILT, batch_files(engine.state.batch))
        state = engine.state
        content = {
            "format": FORMAT,
            "network": network_state(self.network),
            "optimizer": optimizer_state(self.network, self.optimizer),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "random": gathered(random_states()),
            "fingerprint": self.fingerprint,
            "epoch": state.epoch,
            "iteration": state.iteration,
            "best_metric": float(state.best_metric),
            "best_metric_epoch": int(state.best_metric_epoch),
            "ended": bool(engine.should_terminate),
        }
        if getattr(state, "rank", 0) == 0:
            save_atomically(content, self.path)

    def load(self, engine: Engine) -> None:
        """Continue from the checkpoint if there is one.

        Raises:
            InputError: if epochs are not as long as the data loader, which would make a resumed run see other data.
            WeightsError: if it is damaged, or was written by a run with other settings, another network or another
                version of this package, or if only some processes see it.
        """
        _check_length(engine)
        here = self.path.is_file()
        if any(seen != here for seen in gathered(here)):
            raise WeightsError(
                f"{self.path}: some processes see this checkpoint and some do not; choose an output_dir on a disk that "
                "all of them share"
            )
        if not here:
            return
        content = self._read()
        self._compare(content["fingerprint"], content["parts"])
        self._restore(content)
        for name in ("iteration", "epoch", "best_metric", "best_metric_epoch"):
            setattr(engine.state, name, content[name])
        logger.info("continuing from %s after epoch %d", self.path, content["epoch"])
        if content["ended"]:
            logger.info("the run was ended early and is complete; choose another output_dir to start anew")
            engine.terminate()

    def _read(self) -> dict[str, Any]:
        """Read the file, with all entries in their place."""
        try:
            # Where each process takes its part of large weights, none reads the whole file into its memory.
            mapped = is_sharded(self.network)
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
            version = content.get("format", 1)
        except Exception as error:  # a damaged file makes torch.load raise almost anything
            raise WeightsError(
                f"{self.path}: the checkpoint is damaged ({type(error).__name__}); delete it to start anew"
            ) from error
        if version != FORMAT:
            raise WeightsError(
                f"{self.path}: was written by another version of dinomed (format {version}, this one goes on from "
                f"format {FORMAT}); finish that run with the version that began it, or choose another output_dir to "
                "start anew"
            )
        if missing := [name for name in ENTRIES if name not in content]:
            raise WeightsError(
                f"{self.path}: the checkpoint is damaged ({', '.join(missing)} missing); delete it to start anew"
            )
        return dict(content)

    def _compare(self, saved: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings."""
        now = {**self.fingerprint, "parts": sorted(self.parts)}
        then = {**saved, "parts": sorted(parts)}
        changed = sorted(
            f"{key} ({then.get(key)!r} then, {now.get(key)!r} now)"
            for key in {*then, *now}
            if then.get(key) != now.get(key)
        )
        if changed:
            raise WeightsError(
                f"{self.path}: was written with other settings: {', '.join(changed)}; "
                "restore them, or choose another output_dir to start anew"
            )

    def _restore(self, content: Mapping[str, Any]) -> None:
        """Put every state in place."""
        try:
            load_network_state(self.network, content["network"])
        except RuntimeError as error:
            raise WeightsError(
                f"{self.path}: was written by a run of another network; choose another output_dir to start anew"
            ) from error
        try:
            load_optimizer_state(self.network, self.optimizer, content["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(content["scheduler"])
            for name, part in self.parts.items():
                part.load_state_dict(content["parts"][name])
            restore_random_states(content["random"][rank()])
        except Exception as error:  # what was saved by another optimiser or version fails in many ways
            raise WeightsError(
                f"{self.path}: the state of its optimiser, schedule, parts or random numbers does not fit this run "
                f"({type(error).__name__}); choose another output_dir to start anew"
            ) from error


def _check_length(engine: Engine) -> None:
    """Refuse epochs that end within the data: Ignite goes on there, but a new process begins at the beginning."""
    try:
        length = len(engine.state.dataloader)
    except TypeError:  # a stream
        return
    if length != engine.state.epoch_length:
        raise InputError(
            f"an epoch has {engine.state.epoch_length} batches, but the data loader gives {length}, so that a "
            "resumed run would see other data; make them equal, for example by samples_per_epoch of an EpochSampler"
        )


class BestWeights:
    """Keep the network's weights of the best validation so far, as a plain state dict.

    Attach it to the evaluator; it compares the evaluator's key metric.

    Args:
        path: file of the state dict.
        network: what is evaluated.
        about: what the weights belong to, plain values such as the names of the classes; the file then holds
            `{"network": state dict, "about": about}`. None for the state dict alone.
    """

    def __init__(self, path: str | Path, network: nn.Module, about: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.network = network
        self.about = None if about is None else dict(about)
        self.trainer: Engine | None = None

    def follow(self, trainer: Engine) -> None:
        """Remember the best score in the trainer's state, where a resumed run finds it again."""
        self.trainer = trainer

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self.save_if_best)

    def save_if_best(self, engine: Engine) -> None:
        """Save when the key metric is higher than ever before; one that is no number never is.

        Raises:
            DivergedError: if the weights are no numbers; the file then stays as it is.
        """
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if math.isnan(score):
            logger.warning("the validation's %s is no number (does any label occur?)", engine.state.key_metric_name)
            return
        state = engine.state if self.trainer is None else self.trainer.state
        if state.best_metric_epoch != -1 and score <= state.best_metric:
            return
        if not finite(self.network):
            trainer = engine if self.trainer is None else self.trainer
            raise diverged(trainer, SPOILT, batch_files(trainer.state.batch))
        state.best_metric, state.best_metric_epoch = score, state.epoch
        weights = network_state(self.network)
        if getattr(engine.state, "rank", 0) == 0:
            save_atomically(weights if self.about is None else {"network": weights, "about": self.about}, self.path)
