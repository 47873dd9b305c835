"""Operators with a compiled kernel and a plain-PyTorch reference."""

from dinomed.ops.kernels import kernel_status, load_kernels
from dinomed.ops.ms_deform_attn import ms_deform_attn
from dinomed.ops.ms_deform_attn_fused import ms_deform_attn_fused

load_kernels()  # after the operators' definitions

__all__ = ["kernel_status", "ms_deform_attn", "ms_deform_attn_fused"]
