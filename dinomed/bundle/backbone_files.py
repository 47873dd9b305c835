"""A backbone out of a trained network, and into a file of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dinomed.errors import WeightsError
from dinomed.handlers.resume import save_atomically
from dinomed.networks.weight_files import read_weights


def start_backbone(backbone: nn.Module, trained: str | Path | None) -> nn.Module:
    """Fill a backbone with that of a trained network, wherever in the network's state dict it is.

    Args:
        backbone: As `create_backbone` gives it.
        trained: File with the state dict of a network that holds such a backbone; None leaves the backbone as it is.

    Returns:
        The same backbone.

    Raises:
        WeightsError: If the file is absent or damaged, or holds no backbone of this form.
    """
    if trained is None:
        return backbone
    state = read_weights(Path(trained))
    wanted = backbone.state_dict()
    name = next(iter(wanted))
    for prefix in sorted((key.removesuffix(name) for key in state if key.endswith(name)), key=len):
        found = {key: state.get(prefix + key) for key in wanted}
        if all(isinstance(part, torch.Tensor) and part.shape == wanted[key].shape for key, part in found.items()):
            backbone.load_state_dict(found)
            return backbone
    raise WeightsError(f"{trained} holds no {type(backbone).__name__} of this form; build the backbone that it is of")


def save_best_backbone(backbone: nn.Module, folder: str | Path) -> None:
    """Write the parts of the `PatchClassifier` in FOLDER/best.pt to files of their own.

    FOLDER/backbone.pt is for `create_backbone`, its matrices in half precision; FOLDER/head.pt, the linear head of
    single images, can be the start (`initial_weights`) of a `BagHead` without hidden features.

    Args:
        backbone: One of the same form; it takes the weights on.
        folder: Output folder of a training.

    Raises:
        WeightsError: If the training has left no best weights.
    """
    start_backbone(backbone, Path(folder) / "best.pt")
    small = {key: value.half() if value.ndim > 1 else value for key, value in backbone.state_dict().items()}
    save_atomically(small, Path(folder) / "backbone.pt")
    state = read_weights(Path(folder) / "best.pt")
    head = {f"classify.0.{key.removeprefix('head.')}": part for key, part in state.items() if key.startswith("head.")}
    save_atomically(head, Path(folder) / "head.pt")
