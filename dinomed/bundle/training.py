"""What a training configuration needs beyond single expressions."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from torch import nn

from dinomed.bundle.checkpoint import load_network
from dinomed.bundle.distribution import (
    distribute,
    join_processes,
    leave_processes,
    process_count,
    process_device,
    process_rank,
)
from dinomed.errors import InputError, WeightsError
from dinomed.handlers.processes import bare
from dinomed.networks.weight_files import read_weights

__all__ = [
    "check_device",
    "connect",
    "distribute",
    "join_processes",
    "leave_processes",
    "parameter_groups",
    "prepare_run",
    "process_count",
    "process_device",
    "process_rank",
    "start_network",
]


def prepare_run(seed: int, deterministic: bool = True) -> None:
    """Seed Python, NumPy and PyTorch, and ask for reproducible kernels; call it before the network is built.

    Numbers too small for normal floating point are taken as zero: on CPUs they make the optimiser many times slower.

    Args:
        seed: the seed.
        deterministic: use deterministic kernels; those that have none warn.

    Raises:
        InputError: if the seed is no whole number or `deterministic` neither true nor false.
    """
    if type(seed) is not int:
        raise InputError(f"seed is {seed!r}; give a whole number")
    if not isinstance(deterministic, bool):
        raise InputError(f"deterministic is {deterministic!r}; give true or false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS has no reproducible kernels
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # A debugging aid that costs time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.set_flush_denormal(True)


def start_network(
    network: nn.Module,
    initial_weights: str | Path | None,
    device: torch.device | str,
    labels: Sequence[str] | None = None,
) -> nn.Module:
    """Move a network to its device, with weights from a file if one is named.

    Args:
        network: the network as the configuration builds it.
        initial_weights: file of a state dict of the whole network, or None.
        device: where to train.
        labels: of the network's answers; a file that names others is refused.

    Raises:
        InputError: if there is no such device here.
        WeightsError: if the file is missing or belongs to another network.
    """
    check_device(device)
    if initial_weights is not None:
        network = load_network(network, initial_weights, device)
        about = None if labels is None else read_weights(Path(initial_weights)).get("about")
        if labels is not None and isinstance(about, Mapping) and list(about.get("labels", labels)) != list(labels):
            raise WeightsError(
                f"{initial_weights} was trained for the labels {', '.join(map(str, about['labels']))}, and the "
                f"configuration has {', '.join(labels)}; set labels to the former, or initial_weights to another file"
            )
    return network.to(device).to(memory_format=torch.channels_last)


def check_device(device: torch.device | str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        InputError: if tensors cannot be made on it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # each of PyTorch's builds has its own kind
        said = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise InputError(f"device is '{device}', which cannot be used here ({said}); set device to cpu") from error


def parameter_groups(network: nn.Module, learning_rate: float, backbone_learning_rate: float) -> list[dict[str, Any]]:
    """Sort trainable parameters into groups: backbone or rest, with weight decay or without.

    Norms, biases and other vectors are not decayed. A frozen backbone has no group.

    Args:
        network: a `Segmenter`, perhaps with an adapter around its backbone, or a `SegFormer`, whose encoder counts as
            the backbone.
        learning_rate: of everything that is not the backbone.
        backbone_learning_rate: of the backbone.

    Returns:
        Groups for a PyTorch optimiser; the first one is decayed and not of the backbone.

    Raises:
        InputError: if a learning rate is no number from 0 on.
        ValueError: if the network has neither.
    """
    for name, value in (("learning_rate", learning_rate), ("backbone_learning_rate", backbone_learning_rate)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0 <= value < math.inf):
            raise InputError(f"{name} is {value!r}; give a number from 0 on, such as 1.0e-4 (YAML takes 1e-4 for text)")
    inside = {id(parameter) for parameter in _backbone_parameters(bare(network))}
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


def _backbone_parameters(network: Any) -> Iterable[nn.Parameter]:
    if hasattr(network, "backbone"):
        return getattr(network.backbone, "backbone", network.backbone).parameters()
    if hasattr(network, "parameter_groups"):
        return next(group["params"] for group in network.parameter_groups(1.0) if group["name"] == "encoder")
    raise ValueError(
        f"a {type(network).__name__} has no backbone whose learning rate could be set; take a Segmenter or a SegFormer"
    )


def connect(trainer: Engine, handlers: list[Any]) -> None:
    """Tell the evaluator's handlers that want to know which trainer they belong to."""
    for handler in handlers:
        if hasattr(handler, "follow"):
            handler.follow(trainer)
