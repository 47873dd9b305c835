"""DINOv3 for CT and MRI: MONAI bundles, networks, transforms and inferers; from a scan to labels on its own grid."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinomed.predictor import Predictor as Predictor

try:
    __version__ = version("dinomed")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.1.0"

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Predictor` on first use, so that `import dinomed` stays quick."""
    if name == "Predictor":
        return import_module("dinomed.predictor").Predictor
    raise AttributeError(f"module 'dinomed' has no attribute {name!r}")
