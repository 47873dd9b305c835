"""A running average of the weights, which is evaluated and kept in the place of the last weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from dinomed.handlers.optimisation import group_position
from dinomed.handlers.processes import bare, share_buffers


class WeightAverage:
    """Keep the exponential moving average of a network's weights, updated after each optimiser step.

    `network` of this handler is what an evaluator runs and what `BestWeights` keeps. After n steps the decay is
    min(decay, (1 + n) / (10 + n)), so that the average soon forgets the random start. Buffers (statistics of batch
    norm) are copied. Frozen weights are shared with the network and take no memory.

    In the list of handlers it comes before the validation. Of several processes all have the same average; before the
    validation they also get the same buffers, should a layer collect statistics in each process by itself.

    Args:
        network: what is trained, perhaps in a distributed wrapper.
        decay: of the average in a step, such as 0.999; None keeps no average, and `network` is the one that is trained.

    Attributes:
        network: the network with averaged weights, in evaluation mode; or the trained one, out of its wrapper.

    Raises:
        ValueError: if the decay is not below 1, or the weights are sharded.
    """

    def __init__(self, network: nn.Module, decay: float | None = 0.999) -> None:
        number = isinstance(decay, (int, float)) and not isinstance(decay, bool)
        if decay is not None and not (number and 0 <= decay < 1):
            raise ValueError(f"the decay of the average must lie in [0, 1), or be null for no average, not {decay!r}")
        self.trained = bare(network)
        self.decay = decay
        self.updates = 0
        self.network = self.trained if decay is None else _averaging_copy(self.trained)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.decay is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)

    @torch.no_grad()
    def update(self, engine: Engine) -> None:
        """Take the new weights in if this batch ended with an optimiser step."""
        position, size = group_position(engine)
        if position < size or self.decay is None:
            return
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = zip(self.network.parameters(), self.trained.parameters(), strict=True)
        trained = [(mean, latest) for mean, latest in pairs if mean is not latest]
        if trained:
            means, latest = zip(*trained, strict=True)
            torch._foreach_lerp_(means, latest, weight)
        for mean, buffer in zip(self.network.buffers(), self.trained.buffers(), strict=True):
            mean.copy_(buffer)

    def end_epoch(self) -> None:
        """Give all processes the same buffers."""
        share_buffers(self.trained)
        if self.decay is not None:
            share_buffers(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Return average and count, for a checkpoint."""
        return {} if self.decay is None else {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's average."""
        if self.decay is not None:
            self.updates = int(state["updates"])
            self.network.load_state_dict(state["network"])


def _averaging_copy(network: nn.Module) -> nn.Module:
    if any(hasattr(parameter, "to_local") for parameter in network.parameters()):
        raise ValueError("no average can be kept of sharded weights; set ema_decay to null, or train without sharding")
    frozen = {id(parameter): parameter for parameter in network.parameters() if not parameter.requires_grad}
    return copy.deepcopy(network, frozen).requires_grad_(False).eval()
