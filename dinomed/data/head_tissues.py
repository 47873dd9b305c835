"""Tissues of the head by FreeSurfer number: which share their intensities, and which label each becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# FreeSurfer numbers that share one intensity distribution (left and right together), by tissue. Numbers 502 to 530 are
# tissue outside the brain as the SynthSeg training maps use them.
CSF = ((4, 43), (5, 44), (14, 72), (15,), (24, 136, 137, 163, 164))
GREY_MATTER = ((3, 42), (8, 47), (17, 53), (18, 54))
DEEP_GREY_MATTER = ((10, 49), (11, 50), (12, 51), (13, 52), (26, 58), (28, 60))
WHITE_MATTER = ((2, 41), (7, 46), (16,), (25, 57), (30, 62), (85,))
OUTSIDE_BRAIN = ((502,), (506,), (507,), (508,), (509,), (511,), (512,), (514,), (515,), (516,), (530,))
INTENSITY_GROUPS = (*CSF, *GREY_MATTER, *DEEP_GREY_MATTER, *WHITE_MATTER, *OUTSIDE_BRAIN)
EXTERNAL_CSF_CLASS = 1 + CSF.index((24, 136, 137, 163, 164))
FIRST_OUTSIDE_CLASS = 1 + len(INTENSITY_GROUPS) - len(OUTSIDE_BRAIN)
NUM_CLASSES = 1 + len(INTENSITY_GROUPS)
_UNKNOWN = 255


def intensity_classes(labels: Tensor) -> Tensor:
    """Replace FreeSurfer numbers by intensity classes.

    Args:
        labels: integer tensor of any shape.

    Returns:
        uint8 tensor of the same shape: 0 background, then one class per entry of `INTENSITY_GROUPS`.

    Raises:
        ValueError: if a label belongs to no group.
    """
    last = max(max(group) for group in INTENSITY_GROUPS)
    table = torch.full((last + 2,), _UNKNOWN, dtype=torch.uint8)
    table[0] = 0
    for index, group in enumerate(INTENSITY_GROUPS):
        table[list(group)] = index + 1
    # One place behind the last number stands for all numbers out of range.
    places = torch.where((labels < 0) | (labels > last), last + 1, labels.long())
    classes = table.to(labels.device)[places]
    strange = classes == _UNKNOWN
    if bool(strange.any()):
        numbers = labels[strange].unique().tolist()
        listed = ", ".join(str(number) for number in numbers[:10]) + (" and more" if len(numbers) > 10 else "")
        raise ValueError(f"labels {listed} are no FreeSurfer or head tissue numbers; map them to known ones")
    return classes


def class_targets(label_sources: Mapping[int, Sequence[int]]) -> Tensor:
    """Build the table from intensity class to target label.

    Args:
        label_sources: for each target label the FreeSurfer numbers that it takes; what is named nowhere becomes 0.

    Returns:
        (classes,) uint8 table.

    Raises:
        ValueError: if a number is unknown or named twice, or numbers that share an intensity class are sent to
            different targets.
    """
    target_of: dict[int, int] = {}
    known = {number for group in INTENSITY_GROUPS for number in group}
    for target, numbers in label_sources.items():
        for number in numbers:
            if number not in known:
                raise ValueError(f"label {target} takes number {number}, which is no FreeSurfer or head tissue number")
            if number in target_of:
                raise ValueError(f"labels {target_of[number]} and {target} both take number {number}; name it once")
            target_of[number] = target
    table = torch.zeros(NUM_CLASSES, dtype=torch.uint8)
    for index, group in enumerate(INTENSITY_GROUPS):
        targets = {target_of.get(number, 0) for number in group}
        if len(targets) > 1:
            raise ValueError(
                f"numbers {group} share their intensities; send them to one label, not to {sorted(targets)}"
            )
        table[index + 1] = targets.pop()
    return table
