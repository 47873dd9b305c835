"""What a training configuration needs beyond single expressions."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from torch import distributed, nn

from dinomed.bundle.checkpoint import load_network
from dinomed.errors import InputError
from dinomed.handlers.logs import ValidationLog
from dinomed.handlers.resume import BestWeights

logger = logging.getLogger(__name__)


def prepare_run(seed: int, deterministic: bool = True) -> None:
    """Seed Python, NumPy and PyTorch, and ask for reproducible kernels; call it before the network is built.

    Numbers too small for normal floating point are taken as zero: on CPUs they make the optimiser many times slower.

    Args:
        seed: the seed.
        deterministic: use deterministic kernels; those that have none warn.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS has no reproducible kernels
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # A debugging aid that costs time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.set_flush_denormal(True)


def start_network(network: nn.Module, initial_weights: str | Path | None, device: torch.device | str) -> nn.Module:
    """Move a network to its device, with weights from a file if one is named.

    Args:
        network: the network as the configuration builds it.
        initial_weights: file of a state dict of the whole network, or None.
        device: where to train.

    Raises:
        WeightsError: if the file is missing or belongs to another network.
    """
    if initial_weights is not None:
        network = load_network(network, initial_weights, device)
    return network.to(device).to(memory_format=torch.channels_last)


def parameter_groups(network: nn.Module, learning_rate: float, backbone_learning_rate: float) -> list[dict[str, Any]]:
    """Sort trainable parameters into groups: backbone or rest, with weight decay or without.

    Norms, biases and other vectors are not decayed.

    Args:
        network: a `Segmenter`, perhaps with an adapter around its backbone.
        learning_rate: of everything that is not the backbone.
        backbone_learning_rate: of the backbone.

    Returns:
        Groups for a PyTorch optimiser; the first one is decayed and not of the backbone.
    """
    inner: Any = network.module if hasattr(network, "module") else network
    backbone = getattr(inner.backbone, "backbone", inner.backbone)
    inside = {id(parameter) for parameter in backbone.parameters()}
    groups = []
    for rate, of_backbone in ((learning_rate, False), (backbone_learning_rate, True)):
        for decayed in (True, False):
            members = [
                parameter
                for parameter in network.parameters()
                if parameter.requires_grad
                and (id(parameter) in inside) == of_backbone
                and (parameter.ndim > 1) == decayed
            ]
            if members:
                groups.append({"params": members, "lr": rate, **({} if decayed else {"weight_decay": 0.0})})
    return groups


def connect(trainer: Engine, handlers: list[Any]) -> None:
    """Tell the evaluator's handlers which trainer they belong to."""
    for handler in handlers:
        if isinstance(handler, BestWeights | ValidationLog):
            handler.follow(trainer)


def process_count() -> int:
    """Number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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


def distribute(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that all processes train it together.

    Batch norm sees the slices of all processes on GPUs; PyTorch has no such batch norm for CPUs, where each process
    normalises its own slices and the running statistics are those of the first.
    """
    join_processes()
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return nn.parallel.DistributedDataParallel(network, device_ids=[device.index])
    return nn.parallel.DistributedDataParallel(network)
