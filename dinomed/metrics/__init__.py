"""Metrics: pure functions with thin modules around them.

In a bundle they are named by their class, as in `_target_: dinomed.metrics.SegmentationScores`.
"""

from dinomed.metrics.classification_scores import MacroAUROC, Top1
from dinomed.metrics.native_size import labels_at_size
from dinomed.metrics.overlap import (
    LabelDice,
    SegmentationScores,
    class_accuracies,
    confusion_matrix,
    dice_scores,
    group_confusion,
    iou_scores,
    pixel_accuracy,
    segmentation_scores,
)
from dinomed.metrics.surface import hausdorff_distances, surface_dice
from dinomed.metrics.volumes import VolumeScores, volume_scores

__all__ = [
    "LabelDice",
    "MacroAUROC",
    "SegmentationScores",
    "Top1",
    "VolumeScores",
    "class_accuracies",
    "confusion_matrix",
    "dice_scores",
    "group_confusion",
    "hausdorff_distances",
    "iou_scores",
    "labels_at_size",
    "pixel_accuracy",
    "segmentation_scores",
    "surface_dice",
    "volume_scores",
]
