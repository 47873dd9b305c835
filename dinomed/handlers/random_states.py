"""The random states of Python, NumPy and PyTorch, in types that safe loading accepts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Collect the random states of this process, on a GPU those of its own device."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    python_version, python_words, python_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), has_gauss, cached],
        "python": [python_version, list(python_words), python_gauss],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo `random_states`."""
    torch.set_rng_state(states["torch"])
    for state in states["cuda"] if torch.cuda.is_available() else []:
        torch.cuda.set_rng_state(state)
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
