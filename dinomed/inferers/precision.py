"""The caller's choice of arithmetic, made in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

PRECISIONS = ("auto", "float32", "bfloat16")
TRAINING_PRECISIONS = (*PRECISIONS, "float16")
"""Training may use float16 too, whose gradients then need scaling (`dinomed.handlers.scaling.LossScaling`)."""


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices itself, faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Turn "auto", "float32" or "bfloat16" into a dtype for `device`.

    Raises:
        ValueError: if the name is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    if precision == "auto":
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


class AutocastInferer(SimpleInferer):
    """Run the network under autocast and hand out float32, for training; parameters stay float32.

    Args:
        precision: "auto", "float32", "bfloat16" or "float16".
    """

    def __init__(self, precision: str = "auto") -> None:
        super().__init__()
        if precision not in TRAINING_PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; choose from {', '.join(TRAINING_PRECISIONS)}")
        self.precision = precision

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return float32 logits for inputs (B, C, H, W): a tensor, or a dictionary of them as the network gives it."""
        half = self.precision == "float16"
        dtype = torch.float16 if half else resolve_precision(self.precision, inputs.device)
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = network(inputs, *args, **kwargs)
        if isinstance(logits, dict):
            return {name: each.float() for name, each in logits.items()}
        return logits.float()
