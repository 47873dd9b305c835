"""States of networks and optimisers as plain dictionaries, of sharded weights (FSDP2) too.

For sharded weights every process must call these functions; the whole tensors come together in the first one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dinomed.handlers.processes import bare


def is_sharded(network: nn.Module) -> bool:
    """Whether each process holds only a part of the weights."""
    return any(hasattr(parameter, "to_local") for parameter in network.parameters())


def network_state(network: nn.Module) -> dict[str, Any]:
    """Return the state dict of the network inside its wrapper; empty in all but the first process where sharded."""
    inner = bare(network)
    if not is_sharded(inner):
        return inner.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(inner, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_network_state(network: nn.Module, state: dict[str, Any]) -> None:
    """Undo `network_state`, with the same state in every process.

    Raises:
        RuntimeError: if names or shapes differ.
    """
    inner = bare(network)
    if not is_sharded(inner):
        inner.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(inner, state, options=StateDictOptions(full_state_dict=True))


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict of the optimiser; where the weights are sharded, whole and by the weights' names."""
    inner = bare(network)
    if not is_sharded(inner):
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(inner, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Undo `optimizer_state`, with the same state in every process."""
    inner = bare(network)
    if not is_sharded(inner):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(inner, optimizer, state, options=StateDictOptions(full_state_dict=True))
