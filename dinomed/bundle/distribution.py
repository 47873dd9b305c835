"""Several processes that train together: meeting, sharing a network, parting.

`torchrun` starts them. Whatever a configuration asks here has an answer in a single process too, so that the same
training configuration serves one process and, with an overlay of a few lines, several.
"""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import torch
from torch import distributed, nn

from dinomed.bundle.sharding import shard
from dinomed.errors import InputError
from dinomed.networks.synced_norm import synchronise_batch_norms


def process_count() -> int:
    """Number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Number of this process among them, 0 for the first."""
    return int(os.environ.get("RANK", "0"))


def process_device() -> torch.device:
    """Device of this process: its own GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join_processes() -> None:
    """Meet the other processes; through NCCL on GPUs, through Gloo on CPUs.

    Raises:
        InputError: if torchrun did not start this process.
    """
    if "RANK" not in os.environ:
        raise InputError(
            "multi_gpu_train.yaml needs torchrun; start it with torchrun --nproc_per_node N -m monai.bundle run ..."
        )
    if distributed.is_initialized():
        return
    device = process_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if distributed.get_rank() != 0:
        logging.getLogger().setLevel(logging.WARNING)


def leave_processes() -> None:
    """Part from the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def distribute(network: nn.Module, device: torch.device | str, sharded: bool = False) -> nn.Module:
    """Let all processes train a network together, beginning with the first one's weights.

    Batch norm is replaced by one that sees the batches of all processes: PyTorch's own on GPUs, and on CPUs, which that
    one does not serve, `dinomed.networks.synced_norm.SyncedBatchNorm2d` in the place of each `nn.BatchNorm2d`. The
    names in a state dict stay the same.

    Args:
        network: on the CPU or on its device.
        device: of this process.
        sharded: whether each process holds only a part of the weights, for networks that are too large for one device;
            see `dinomed.bundle.sharding.shard`.

    Returns:
        The network in a wrapper, or the same network where sharded.

    Raises:
        InputError: if torchrun did not start this process.
    """
    join_processes()
    device = torch.device(device)
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    else:
        network = synchronise_batch_norms(network)
    together: nn.Module
    if sharded:
        together = shard(network, device)
    else:
        devices = [device.index] if device.type == "cuda" else None
        together = nn.parallel.DistributedDataParallel(network.to(device), device_ids=devices)
    draw_apart()
    return together


def draw_apart() -> None:
    """Let each process draw random numbers of its own from here on, for dropout and the like."""
    seed = torch.initial_seed() + distributed.get_rank()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
