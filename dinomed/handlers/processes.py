"""What the processes of one training tell each other; in a single process nothing is sent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


def joined() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0 for the first."""
    return distributed.get_rank() if joined() else 0


def sums(values: Tensor) -> Tensor:
    """Add the values of all processes, each of which must call this."""
    if joined():
        values = values.clone()
        distributed.all_reduce(values)
    return values


def any_of(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set in any process, each of which must call this.

    Args:
        flag: of this process.
        device: where the processes exchange tensors: with NCCL, this process's GPU.
    """
    if not joined():
        return flag
    return bool(sums(torch.tensor(float(flag), device=device)))


def gathered(value: Any) -> list[Any]:
    """Collect a small picklable value of each process, in order; each must call this."""
    if not joined():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Give every process the first one's buffers, such as statistics that each collects by itself."""
    if joined():
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def bare(network: nn.Module) -> nn.Module:
    """Return the network inside a distributed wrapper."""
    inner = network.module if hasattr(network, "module") else network
    return inner if isinstance(inner, nn.Module) else network
