"""Inferers: from a volume to slices and back."""
