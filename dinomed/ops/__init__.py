"""Operators with a compiled kernel and a plain-PyTorch reference."""

from dinomed.ops.ms_deform_attn import ms_deform_attn

__all__ = ["ms_deform_attn"]
