"""Training a network that is too large for one device: each process holds a part of the weights (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import distributed, nn

from dinomed.errors import InputError
from dinomed.handlers.processes import gathered
from dinomed.networks.backbones import TimmBackbone


def shard(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Share a network's weights, gradients and optimiser state out to all processes.

    Each block of the backbone is a unit of its own, whose weights come together only while it computes; what is left is
    one more unit. The processes have met already. Build the optimiser afterwards.

    Args:
        network: a `Segmenter` or any other network, the same in all processes, and on the CPU still, so that no device
            need hold it whole.
        device: of this process.

    Returns:
        The same network, which trains like any other. All processes take part in every forward pass, in validation
        too: let each of them see all items there.

    Raises:
        InputError: if the processes have built different networks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = torch.device(device).type
    network = network.to(memory_format=torch.contiguous_format)  # only such weights can be cut
    starts = gathered([float(parameter.detach().double().sum()) for parameter in network.parameters()])
    if any(start != starts[0] for start in starts):
        raise InputError("the processes start from different weights; give them the same seed and the same files")
    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    for block in list(_blocks(network)):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Give what is large, comes often and is called as a module: a transformer's blocks, the stages of a ConvNeXt."""
    for module in network.modules():
        if isinstance(module, TimmBackbone):
            yield from module.model.blocks if hasattr(module.model, "blocks") else module.model.stages
