"""Running a classifier in the arithmetic that the caller chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

from dinomed.inferers.precision import TRAINING_PRECISIONS, resolve_precision


class ClassifierInferer(SimpleInferer):
    """Run a classifier under autocast and hand out float32 logits, of several tasks by task.

    Args:
        precision: "auto", "float32", "bfloat16" or, for training, "float16".

    Raises:
        ValueError: If the precision is unknown.
    """

    def __init__(self, precision: str = "auto") -> None:
        super().__init__()
        if precision not in TRAINING_PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; choose from {', '.join(TRAINING_PRECISIONS)}")
        self.precision = precision

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return logits (B, K), or those of each task by its name, for pictures (B, 3, H, W)."""
        half = self.precision == "float16"
        dtype = torch.float16 if half else resolve_precision(self.precision, inputs.device)
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = network(inputs, *args, **kwargs)
        if isinstance(logits, Mapping):
            return {task: each.float() for task, each in logits.items()}
        return logits.float()
