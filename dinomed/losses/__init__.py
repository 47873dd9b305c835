"""Losses: pure functions with thin modules around them.

Every loss takes logits (B, C, ...) and labels (B, 1, ...), in two or three dimensions; in a bundle it is named by its
class, as in `_target_: dinomed.losses.DiceCrossEntropyLoss`.
"""

from dinomed.losses.cross_entropy import CrossEntropyLoss, FocalLoss
from dinomed.losses.dice import DiceCrossEntropyLoss, DiceFocalLoss, DiceLoss
from dinomed.losses.grouped import GroupedLoss
from dinomed.losses.lovasz import LovaszSoftmaxLoss

__all__ = [
    "CrossEntropyLoss",
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GroupedLoss",
    "LovaszSoftmaxLoss",
]
