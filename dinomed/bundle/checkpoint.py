"""The strict loader of a whole network's weights, for the predictor and for bundle configs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dinomed.errors import WeightsError
from dinomed.networks.weight_files import read_weights
from dinomed.networks.weight_layouts import unwrap

LISTED = 5
LFS_START = b"version https://git-lfs"


def load_network(
    network: nn.Module, path: str | os.PathLike[str], device: str | torch.device | None = None
) -> nn.Module:
    """Fill a network with the weights of a file, every tensor or none, and make it ready for inference.

    Nothing random is left: the file must hold exactly the network's parameters and buffers in their shapes, all
    finite. Half-precision tensors, which keep a file small, take on the network's own types.

    Args:
        network: The network, in any mode.
        path: A .pt, .pth or .safetensors file with a state dict, bare or within a training checkpoint.
        device: Where the network goes; None leaves it.

    Returns:
        The same network in eval mode.

    Raises:
        WeightsError: The file is absent, damaged or unsafe, or does not belong to the network; which is then as it was.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(
            f"{file}: there is no such weights file; download the weights or train the bundle, or name another file "
            "(--weights, or ckpt_path of the config)"
        )
    if _starts_with(file, LFS_START):
        raise WeightsError(
            f"{file} is only a pointer to the weights (Git LFS); fetch the file itself with `git lfs pull`"
        )
    state = _tensors(file)
    _check(file, network, state)
    network.load_state_dict(state)
    if device is not None:
        network.to(device)
    return network.eval()


def _starts_with(file: Path, start: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(start)) == start
    except OSError as error:
        raise WeightsError(f"{file} cannot be read ({error.strerror}); check its permissions") from error


def _tensors(file: Path) -> dict[str, Tensor]:
    """Read a state dict, out of a training checkpoint and off its data-parallel wrapping where need be."""
    content = unwrap(read_weights(file))
    for key in ("network", "net"):
        inner = content.get(key)
        if isinstance(inner, Mapping):
            content = inner
    strange = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strange or not content:
        what = f"holds entries other than tensors ({_listed(strange)})" if strange else "is empty"
        raise WeightsError(f"{file} {what}; save the network's state_dict alone")
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in state.items()}


def _check(file: Path, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    wanted: dict[str, Tensor] = network.state_dict()
    shared = wanted.keys() & state.keys()
    problems = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key}: {tuple(state[key].shape)} in the file, {tuple(wanted[key].shape)} in the network"
            for key in wanted
            if key in shared and state[key].shape != wanted[key].shape
        ],
        "not finite": [key for key, value in state.items() if not torch.isfinite(value).all()],
    }
    found = [f"{len(keys)} {what} ({_listed(keys)})" for what, keys in problems.items() if keys]
    if not found:
        return
    hint = "take the weights that belong to this bundle and version"
    if problems["not finite"] and len(found) == 1:
        hint = "the training that wrote them failed; take another file"
    raise WeightsError(f"{file} does not fit the {type(network).__name__} of the bundle: {'; '.join(found)}; {hint}")


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more
