"""What the configuration of a fine-tuning needs beyond single expressions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.transforms import Compose, Transform
from torch import nn

from dinomed.bundle.training import start_network
from dinomed.errors import BundleError
from dinomed.handlers.logs import last_loss
from dinomed.handlers.whole_files import write_file
from dinomed.inferers.planes import PLANE_AXES
from dinomed.networks.backbones import TimmBackbone
from dinomed.transforms.intensity import NormaliseIntensityd

PATCH = 16


def start(network: nn.Module, weights: str | Path, device: torch.device | str) -> nn.Module:
    """Load a bundle's network with its backbone frozen.

    Raises:
        BundleError: If it has none.
        WeightsError: If the weights are not the network's.
    """
    network = start_network(network, weights, device)
    backbone: Any = getattr(network, "backbone", None)
    backbone = getattr(backbone, "backbone", backbone)
    if not isinstance(backbone, TimmBackbone):
        raise BundleError(f"a {type(network).__name__} has no DINOv3 backbone to keep; train it with `dinomed train`")
    backbone.set_frozen(True)
    return network


def split_preprocessing(preprocessing: Compose) -> tuple[Compose, Transform | None]:
    """Part the normalisation at the end, after which 0 is no longer air, from what goes before.

    Slices are changed and laid in windows between the two.
    """
    steps = list(preprocessing.transforms)
    if isinstance(steps[-1], NormaliseIntensityd):
        return Compose(steps[:-1]), steps[-1]
    return Compose(steps), None


def window_side(scans: Sequence[Mapping[str, Any]], planes: Sequence[str], largest: int) -> int:
    """Choose the side of the square that slices are cut to: the longest of all scans, as far as it is allowed.

    Returns:
        Voxels of the network's grid, a multiple of 16.
    """
    across = {axis for plane in planes for axis in range(3) if axis != PLANE_AXES[plane]}
    longest = max(scan["image"].shape[1 + axis] for scan in scans for axis in across)
    return max(PATCH, PATCH * min(-(-longest // PATCH), largest // PATCH))


class Stats:
    """Write how far a training is, for whoever asks the server: a JSON file, renewed with every batch.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._first_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, behind the checkpoint."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write, within_epoch=1)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write, within_epoch=0)

    def _begin(self, engine: Engine) -> None:
        self._first_epoch = engine.state.epoch

    def _write(self, engine: Engine, within_epoch: int) -> None:
        state = engine.state
        rated = state.best_metric_epoch != -1
        facts = {
            "epoch": state.epoch - within_epoch,  # those that have a checkpoint
            "total_epochs": state.max_epochs,
            "step": state.iteration,
            "total_steps": state.max_epochs * state.epoch_length,
            "loss": round(float(last_loss(engine)), 5),
            "best_metric": round(float(state.best_metric), 5) if rated else 0.0,
            "resumed_after_epoch": self._first_epoch,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_file(self.path, json.dumps(facts))
