"""Loads flat pictures and their label maps into MONAI pipelines; the reading itself is in `image_reading`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from dinomed.errors import InputError
from dinomed.transforms.image_reading import (
    IGNORE_INDEX,
    PathLike,
    image_size,
    read_image,
    read_label_map,
    read_pixels,
    renumber,
    size_difference,
)

__all__ = [
    "IGNORE_INDEX",
    "LoadImageRGBd",
    "LoadLabelMapd",
    "image_size",
    "read_image",
    "read_label_map",
    "read_pixels",
    "renumber",
    "size_difference",
]


class LoadImageRGBd(MapTransform):
    """Replace paths of pictures by `MetaTensor` (3, H, W) float32 in [0, 1], as `read_image` gives them.

    Meta: `filename_or_obj` and `spatial_shape`, the height and width (2,) int64 to which results are brought back.

    Args:
        keys: Entries that hold a path each.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        InputError: As `read_image`. MONAI's `Compose` hides it as the `__cause__` of a `RuntimeError`.
    """

    def __init__(self, keys: KeysCollection = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy of `data` with a picture under each key."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            loaded[key] = _meta_tensor(torch.from_numpy(read_image(loaded[key])), loaded[key])
        return loaded


class LoadLabelMapd(MapTransform):
    """Replace paths of label maps by `MetaTensor` (1, H, W) int64, as `read_label_map` gives them.

    Args:
        keys: Entries that hold a path each.
        reduce_zero_label: Whether 0 becomes `ignore_index` and each other number one less (ADE20K).
        label_values: Numbers to replace first, such as {255: 1} for masks in black and white.
        ignore_index: Number of the pixels that count nowhere.
        image_key: Entry with the loaded picture, whose size is compared; absent is fine.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        InputError: As `read_label_map`, and if picture and label map differ in size. MONAI's `Compose` hides it as
            the `__cause__` of a `RuntimeError`.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        reduce_zero_label: bool = False,
        label_values: Mapping[int, int] | None = None,
        ignore_index: int = IGNORE_INDEX,
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reduce_zero_label = reduce_zero_label
        self.label_values = {int(old): int(new) for old, new in (label_values or {}).items()}
        self.ignore_index = ignore_index
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy of `data` with a label map under each key."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            path = loaded[key]
            labels = read_label_map(path, self.reduce_zero_label, self.label_values, self.ignore_index)
            image = loaded.get(self.image_key)
            if isinstance(image, torch.Tensor) and tuple(image.shape[-2:]) != labels.shape:
                raise InputError(size_difference(str(path), labels.shape, tuple(image.shape[-2:])))
            loaded[key] = _meta_tensor(torch.from_numpy(labels.astype(np.int64))[None], path)
        return loaded


def _meta_tensor(tensor: torch.Tensor, path: PathLike) -> MetaTensor:
    shape = torch.tensor(tensor.shape[-2:], dtype=torch.int64)
    return MetaTensor(tensor, meta={"filename_or_obj": str(Path(path)), "spatial_shape": shape})
