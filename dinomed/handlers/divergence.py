"""Stopping a training that diverges, by name: which step, and which files its batch came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import nn

from dinomed.errors import DinomedError
from dinomed.handlers.processes import any_of, gathered
from dinomed.handlers.sharded_state import is_sharded

NAMED = 16
STATISTICS = ("running_mean", "running_var")
SOURCE_KEYS = ("source", "name", "case", "path", "filename")
LARGEST = 1e18
"""Weights beyond this have squares that float32 does not hold: the next step's loss would be no number."""
SPOILT = "the weights became nan, infinite or absurdly large"
WAY_OUT = (
    "no checkpoint was written from it, what was saved before is whole: look at these files, or train on from best.pt, "
    "where there is one (initial_weights), with a lower learning rate in another output_dir"
)


class DivergedError(DinomedError, FloatingPointError):
    """Loss, gradients or weights are no numbers any more."""


def batch_files(batch: Any) -> list[str]:
    """Name the files that a batch came from, in order and each once; none where the batch does not say.

    Looked at are the `filename_or_obj` that MONAI's readers leave in the meta data of tensors, paths that stand in the
    batch itself, and its entries "source", "name", "case", "path" or "filename". The meta data are complete where
    MONAI's data loader or its `list_data_collate` made the batch; PyTorch's own collating keeps those of one item.
    """
    items = batch if isinstance(batch, (list, tuple)) else [batch]
    found: list[str] = []
    for item in items:
        if isinstance(item, Mapping):
            found += _names_of_item(item)
    return list(dict.fromkeys(found))


def _names_of_item(item: Mapping[Any, Any]) -> list[str]:
    tensors = [value for value in item.values() if hasattr(value, "meta")]
    names = [name for value in tensors for name in _names(value.meta)]
    partial = any(value.ndim > 3 and len(value) > 1 and not getattr(value, "is_batch", True) for value in tensors)
    if names and not partial:
        return names
    others = [str(value) for value in _flat(item.values()) if isinstance(value, Path)]
    others = others or next((list(map(str, _flat([item[key]]))) for key in SOURCE_KEYS if key in item), [])
    return others or [f"{name} and what was collated with it" for name in names]


def _names(meta: Any) -> list[str]:
    if isinstance(meta, Mapping):
        return [str(name) for name in _flat([meta.get("filename_or_obj", [])])]
    return [name for each in meta for name in _names(each)] if isinstance(meta, Sequence) else []


def _flat(values: Iterable[Any]) -> list[Any]:
    """Open lists and tuples, which collating makes of what is no tensor."""
    return [inner for value in values for inner in (_flat(value) if isinstance(value, (list, tuple)) else [value])]


def diverged(engine: Engine, what: str, files: Sequence[str]) -> DivergedError:
    """Put into words what became no number and where.

    Args:
        engine: the trainer.
        what: for example "the loss became nan".
        files: the batch's, perhaps of several processes.
    """
    named = list(dict.fromkeys(files))
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    batch = f"in a batch of {', '.join(named[:NAMED])}{more}" if named else "in a batch that names no files"
    return DivergedError(f"{what} at step {engine.state.iteration} (epoch {engine.state.epoch}) {batch}; {WAY_OUT}")


def finite(network: nn.Module) -> bool:
    """Whether all weights and the statistics of batch norm are numbers, and not absurdly large ones.

    Of sharded weights those of all processes count.

    Other buffers are constants, and may hold infinities on purpose.
    """
    statistics = [value for name, value in network.named_buffers() if name.rpartition(".")[2] in STATISTICS]
    tensors = [*network.parameters(), *statistics]
    local = [getattr(value, "to_local", lambda value=value: value)() for value in tensors]
    sound = all(bool((value.abs() < LARGEST).all()) for value in local)  # what is no number is not smaller
    return not any_of(not sound, tensors[0].device) if is_sharded(network) else sound


class StopAtNaN:
    """Stop with a clear error when the loss is no number, before the weights change and a checkpoint is written.

    Of several processes all stop, and the error names the files of those whose loss is no number.
    """

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss.

        Raises:
            DivergedError: if it is NaN or infinite.
        """
        loss = engine.state.output["loss"].detach()
        value = float(loss)
        if not any_of(not math.isfinite(value), loss.device):
            return
        bad = [
            (other, names)
            for other, names in gathered((value, batch_files(engine.state.batch)))
            if not math.isfinite(other)
        ]
        raise diverged(engine, f"the loss became {bad[0][0]}", [name for _, names in bad for name in names])
