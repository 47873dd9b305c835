"""ImageNette: ten easily told classes of ImageNet, in folders named by WordNet.

Source: https://github.com/fastai/imagenette
"""

from __future__ import annotations

IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Name of each class by its folder, in the order of the folders' names, which is that of their numbers."""
