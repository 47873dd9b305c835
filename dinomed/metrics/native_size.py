"""Label maps from logits at an image's own size, strip by strip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

STRIP_NUMBERS = 1 << 24  # logits held at once at the label map's size, 64 MB in float32
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def labels_at_size(
    logits: Tensor, size: Sequence[int], num_classes: int | None = None, strip_numbers: int = STRIP_NUMBERS
) -> Tensor:
    """Resize logits to a size and decide each pixel's label there.

    The rule: linear interpolation of the logits (or probabilities) with `align_corners=False` and no filter, then the
    largest; among equals the first. This is done for strips of the first axis, so that no more than `strip_numbers`
    numbers are held at the new size, whatever the number of classes. One channel is the logit of label 1 against label
    0: label 1 where it is above 0.

    Args:
        logits: (C, ...) of any floating type, with one to three spatial axes.
        size: of the label map, one number for each spatial axis.
        num_classes: classes that the channels must stand for; None for any number.
        strip_numbers: what is held at once; at least one row is.

    Returns:
        (1, *size) int64, on the device of the logits.

    Raises:
        ValueError: if the axes or the number of channels do not fit.
    """
    if logits.ndim - 1 not in _MODES or len(size) != logits.ndim - 1 or 0 in logits.shape or 0 in tuple(size):
        raise ValueError(f"logits must be (C, ...) with the axes of {tuple(size)}, not {tuple(logits.shape)}")
    channels = logits.shape[0]
    if num_classes is not None and channels != num_classes and (channels, num_classes) != (1, 2):
        raise ValueError(f"logits have {channels} channels; {num_classes} classes need {num_classes}")
    rest = list(size[1:])
    numbers_per_row = channels
    for length in rest:
        numbers_per_row *= length
    rows = max(1, strip_numbers // numbers_per_row)
    labels = torch.empty(1, *size, dtype=torch.int64, device=logits.device)
    for start in range(0, size[0], rows):
        strip = _rows_at_size(logits, start, min(start + rows, size[0]), size[0])
        if list(strip.shape[2:]) != rest:
            mode = _MODES[logits.ndim - 1]
            # The first axis already has its length, so that the interpolation leaves it as it is.
            strip = functional.interpolate(strip[None], (strip.shape[1], *rest), mode=mode, align_corners=False)[0]
        labels[0, start : start + rows] = strip[0] > 0 if channels == 1 and num_classes != 1 else strip.argmax(dim=0)
    return labels


def _rows_at_size(logits: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Rows start to stop of the logits interpolated along their first spatial axis to `length` rows, in float32."""
    given = logits.shape[1]
    if given == length:
        return _full(logits[:, start:stop])
    position = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (given / length) - 0.5
    position = position.clamp(min=0)
    lower = position.long().clamp(max=given - 1)
    upper = (lower + 1).clamp(max=given - 1)
    share = (position - lower).to(logits.device).view(1, -1, *[1] * (logits.ndim - 2))
    low, high = (_full(logits.index_select(1, index.to(logits.device))) for index in (lower, upper))
    return torch.lerp(low, high, share.to(low))


def _full(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
