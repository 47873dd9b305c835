"""Training data: synthesis from label maps, splits and datasets."""
