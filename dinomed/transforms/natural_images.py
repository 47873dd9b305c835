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
from numpy.typing import NDArray
from torch.nn import functional

from dinomed.errors import InputError
from dinomed.transforms.image_reading import (
    FORMATS,
    IGNORE_INDEX,
    PathLike,
    image_size,
    read_image,
    read_label_map,
    read_pixels,
    renumber,
    size_difference,
)
from dinomed.transforms.volume_folders import is_volume_path

__all__ = [
    "IGNORE_INDEX",
    "FitShorterSided",
    "LoadImageRGBd",
    "LoadLabelMapd",
    "fitted_size",
    "image_size",
    "read_image",
    "read_label_map",
    "read_pixels",
    "refuse_scan",
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
            try:
                image = read_image(loaded[key])
            except InputError:
                refuse_scan(loaded[key])
                raise
            loaded[key] = _meta_tensor(torch.from_numpy(image), loaded[key])
        return loaded


def refuse_scan(path: PathLike) -> None:
    """Say of a scan, which no bundle for pictures can use, what it is.

    Raises:
        InputError: If the path is a NIfTI, NRRD, MetaImage, MGH or DICOM file, or a folder of DICOM files.
    """
    if is_volume_path(path):
        raise InputError(
            f"{path} is a scan, and this bundle reads pictures ({', '.join(FORMATS)}); take one for scans, such as "
            "mri_head_segmentation (see `dinomed bundle list`)"
        )


class FitShorterSided(MapTransform):
    """Resize pictures so that the shorter side has a given length, unless the longer one then exceeds its limit.

    Linear, with a filter where the picture shrinks. The meta data stay those of the picture as it was loaded, so that
    `LabelsAtImageSized` brings the result back to its size.

    Args:
        keys: Pictures (C, H, W), floating point.
        shorter: Pixels of the shorter side; None leaves the size but for `longest`.
        longest: Most pixels of the longer side; None for no limit.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        ValueError: If a length is no positive number.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        shorter: int | None = 512,
        longest: int | None = 2048,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        for name, length in (("shorter", shorter), ("longest", longest)):
            if length is not None and (not isinstance(length, int) or length < 1):
                raise ValueError(f"{name} must be a number of pixels or null, not {length!r}")
        self.shorter = shorter
        self.longest = longest

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy of `data` with the pictures resized."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            height, width = image.shape[-2:]
            size = fitted_size(height, width, self.shorter, self.longest)
            if size != (height, width):
                plain = image.as_tensor() if isinstance(image, MetaTensor) else image
                resized = functional.interpolate(
                    plain[None], size, mode="bilinear", align_corners=False, antialias=size[0] < height
                )[0]
                out[key] = MetaTensor(resized, meta=image.meta) if isinstance(image, MetaTensor) else resized
        return out


def fitted_size(height: int, width: int, shorter: int | None, longest: int | None) -> tuple[int, int]:
    """Return height and width after `FitShorterSided`; a side never vanishes."""
    scale = 1.0 if shorter is None else shorter / min(height, width)
    if longest is not None:
        scale = min(scale, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class LoadLabelMapd(MapTransform):
    """Replace paths of label maps by `MetaTensor` (1, H, W) int64, as `read_label_map` gives them.

    Args:
        keys: Entries that hold a path each.
        reduce_zero_label: Whether 0 becomes `ignore_index` and each other number one less (ADE20K).
        label_values: Numbers to replace first, such as {255: 1} for masks in black and white.
        ignore_index: Number of the pixels that count nowhere.
        image_key: Entry with the loaded picture, whose size is compared; absent is fine.
        num_classes: Labels must lie below this, or be `ignore_index`; None for any.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        InputError: As `read_label_map`, and if picture and label map differ in size or a label is none. MONAI's
            `Compose` hides it as the `__cause__` of a `RuntimeError`.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        reduce_zero_label: bool = False,
        label_values: Mapping[int, int] | None = None,
        ignore_index: int = IGNORE_INDEX,
        image_key: str = "image",
        allow_missing_keys: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
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
            self._check_range(path, labels)
            loaded[key] = _meta_tensor(torch.from_numpy(labels.astype(np.int64))[None], path)
        return loaded

    def _check_range(self, path: PathLike, labels: NDArray[np.int32]) -> None:
        if self.num_classes is None:
            return
        wrong = labels[((labels < 0) | (labels >= self.num_classes)) & (labels != self.ignore_index)]
        if wrong.size:
            raise InputError(
                f"{path} holds the label {int(wrong[0])}, but the classes are 0 to {self.num_classes - 1} (after "
                f"reduce_zero_label={str(self.reduce_zero_label).lower()}); correct the file or label_names, see "
                "`dinomed data check`"
            )


def _meta_tensor(tensor: torch.Tensor, path: PathLike) -> MetaTensor:
    shape = torch.tensor(tensor.shape[-2:], dtype=torch.int64)
    return MetaTensor(tensor, meta={"filename_or_obj": str(Path(path)), "spatial_shape": shape})
