"""Label maps of pictures: decided at the picture's own size from probabilities at the network's.

Probabilities are resized linearly, strip by strip, and then the most probable class is taken, so that all classes never
exist at the size of a large photograph.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

STRIP_NUMBERS = 1 << 23
"""Probabilities that are held at once at the picture's size, 32 MB."""

MOST_8_BIT_CLASSES = 255
"""With more classes the label map has 16 bits; the label 255 is free in 8 bits: it means "ignored" in data sets."""


@dataclass(frozen=True)
class ImageLabels:
    """A picture's label map and what its pixels say about each class.

    Attributes:
        labels: (H, W) uint8, or int32 with more than 255 classes.
        mean_confidence: (classes,) float64, mean probability of the winning class over its pixels; NaN where absent.
        pixel_counts: (classes,) int64.
    """

    labels: NDArray[Any]
    mean_confidence: NDArray[np.float64]
    pixel_counts: NDArray[np.int64]


def decide_image_labels(probs: Tensor, height: int, width: int, strip_numbers: int = STRIP_NUMBERS) -> ImageLabels:
    """Resize probabilities linearly, edge to edge, and take the most probable class; of equal ones the first.

    Args:
        probs: (C, h, w) floating point.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        strip_numbers: Probabilities held at once; at least one row is.

    Raises:
        ValueError: If `probs` has another shape or type.
    """
    if probs.ndim != 3 or 0 in probs.shape or not probs.is_floating_point():
        raise ValueError(f"probabilities must be floating point (C, h, w), not {probs.dtype} of {tuple(probs.shape)}")
    classes = probs.shape[0]
    labels = np.empty((height, width), dtype=np.uint8 if classes <= MOST_8_BIT_CLASSES else np.int32)
    counts, sums = np.zeros(classes, dtype=np.int64), np.zeros(classes, dtype=np.float64)
    rows = max(1, strip_numbers // (classes * width))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        best, found = _decide_strip(probs, start, stop, height, width)
        labels[start:stop] = found
        counts += np.bincount(found.ravel(), minlength=classes)
        sums += np.bincount(found.ravel(), weights=best.ravel(), minlength=classes)
    confidence = np.full(classes, np.nan)
    np.divide(sums, counts, out=confidence, where=counts > 0)
    return ImageLabels(labels, np.minimum(confidence, 1.0), counts)


def _decide_strip(
    probs: Tensor, start: int, stop: int, height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the winning probability and class of the rows `start` to `stop` of the label map."""
    given = probs.shape[1]
    centres = (torch.arange(start, stop, dtype=torch.float64, device=probs.device) + 0.5) * (given / height) - 0.5
    centres = centres.clamp(0, given - 1)
    above = centres.floor().long()
    below = (above + 1).clamp(max=given - 1)
    first, last = int(above[0]), int(below[-1])
    source = probs[:, first : last + 1]
    # A pixel's winner has at least the mean over the classes, and interpolation stays within what it is made of. So a
    # class that is nowhere above the least mean cannot win; of 150 most are not.
    possible = torch.nonzero(source.amax(dim=(1, 2)) >= source.mean(dim=0).min())[:, 0]
    strip = source[possible]
    share = (centres - above).to(probs.dtype)[None, :, None]
    strip = torch.lerp(strip[:, above - first], strip[:, below - first], share)
    if strip.shape[2] != width:
        # The rows are as many as before, so that only the columns are resized.
        strip = functional.interpolate(strip[None], (stop - start, width), mode="bilinear", align_corners=False)[0]
    best, index = strip.max(dim=0)
    return best.double().cpu().numpy(), possible[index].cpu().numpy()


class LabelsAtImageSized(MapTransform):
    """Turn probabilities of a picture into its label map at its own size.

    The label map (1, H, W) is a MetaTensor; its meta data hold `mean_confidence` (float64 by class, NaN where absent)
    and `pixel_counts` (int64 by class).

    Args:
        keys: Probabilities (C, h, w).
        image_key: The picture, whose meta data say its own size.
        allow_missing_keys: Whether entries may be absent.
    """

    def __init__(
        self, keys: KeysCollection = "pred", image_key: str = "image", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy of `data` with label maps in place of probabilities.

        Raises:
            ValueError: If the picture was not loaded by `LoadImageRGBd`, or there are no probabilities.
        """
        out = dict(data)
        image = out[self.image_key]
        if not isinstance(image, MetaTensor) or "spatial_shape" not in image.meta:
            raise ValueError(f"{self.image_key!r} does not say its own size; load it with LoadImageRGBd")
        height, width = (int(side) for side in image.meta["spatial_shape"])
        for key in self.key_iterator(out):
            probs = out[key]
            decided = decide_image_labels(probs.as_tensor() if isinstance(probs, MetaTensor) else probs, height, width)
            meta = {
                "filename_or_obj": image.meta.get("filename_or_obj", ""),
                "mean_confidence": torch.from_numpy(decided.mean_confidence),
                "pixel_counts": torch.from_numpy(decided.pixel_counts),
            }
            out[key] = MetaTensor(torch.from_numpy(decided.labels)[None], meta=meta)
        return out
