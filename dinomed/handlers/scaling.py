"""Scaling the loss so that float16 gradients do not vanish."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events


class LossScaling:
    """Scale the loss where the network runs in float16, and do nothing elsewhere.

    MONAI's trainer then scales, steps and adjusts the scale; a step whose gradients overflow is left out. The network's
    own arithmetic is the inferer's business, so the trainer's autocast around network and loss is turned off. The scale
    belongs into the checkpoint (`parts` of `ResumableCheckpoint`).

    Args:
        precision: the training's; "float16" turns scaling on.
        device: where the training runs.
    """

    def __init__(self, precision: str, device: torch.device | str) -> None:
        self.enabled = precision == "float16"
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=self.enabled)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.enabled:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Put the scaler in the place of MONAI's, which is made for CUDA only and anew in each run."""
        engine.amp, engine.scaler, engine.amp_kwargs = True, self.scaler, {"enabled": False}

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and its history, for a checkpoint."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's scale."""
        if self.enabled:
            self.scaler.load_state_dict(state)
