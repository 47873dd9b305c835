"""Transforms of volumes, intensities and labels, one family per file."""
