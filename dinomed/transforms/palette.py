"""The colours of label values: PASCAL VOC's colour map, of which every colour is different.

Source: VOClabelcolormap of the PASCAL VOC development kit, Everingham et al., 2010: three bits of the label at a time
become the highest bits of red, green and blue that are still free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FULL_PALETTE = 256
"""Colours that an indexed PNG holds."""


def voc_colours(count: int = FULL_PALETTE) -> NDArray[np.uint8]:
    """Return the colours of the labels 0 to `count` - 1, uint8 (count, 3) as red, green, blue; 0 is black.

    They are all different up to 2^24 labels; neighbouring labels are far apart.
    """
    labels = np.arange(count, dtype=np.int64)
    colours = np.zeros((count, 3), dtype=np.uint8)
    for step in range(8):
        for channel in range(3):
            bit = labels >> (3 * step + channel) & 1
            colours[:, channel] |= (bit << (7 - step)).astype(np.uint8)
    return colours


def colour_labels(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Paint a label map.

    Args:
        labels: Label values from 0 on, of any shape.

    Returns:
        uint8 of the same shape and a last axis of red, green, blue.
    """
    largest = int(labels.max()) if labels.size else 0
    return voc_colours(largest + 1)[labels]
