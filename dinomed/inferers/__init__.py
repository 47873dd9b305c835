"""Inferers: from a volume to slices and back."""

from __future__ import annotations

from dinomed.inferers.planes import slice_inputs, slices_along
from dinomed.inferers.slices import SliceInferer

__all__ = ["SliceInferer", "slice_inputs", "slices_along"]
