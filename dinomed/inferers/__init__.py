"""Inferers: from a volume to slices and back."""

from __future__ import annotations

from dinomed.inferers.slices import slice_inputs, slices_along

__all__ = ["slice_inputs", "slices_along"]
