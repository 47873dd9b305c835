"""Operators with a compiled kernel and a plain-PyTorch reference."""
