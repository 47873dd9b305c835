"""Inferers: from a volume to slices and back."""

from __future__ import annotations

from dinomed.inferers.slices import SliceInferer, slice_inputs, slices_along

__all__ = ["SliceInferer", "slice_inputs", "slices_along"]
