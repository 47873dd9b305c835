"""A folder of pictures and a folder of label maps with the same names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dinomed.data.datasets.image_dataset import ImageDataset, LabelReading
from dinomed.data.datasets.image_files import pair_by_name
from dinomed.transforms.image_reading import IGNORE_INDEX


class ImageMaskFolder(ImageDataset):
    """Pictures and label maps that are matched by their names, endings aside, in folders of any depth.

    Args:
        image_dir: Folder of the pictures.
        mask_dir: Folder of the label maps; may be `image_dir`, if `mask_suffix` tells them apart.
        image_suffix: What names of pictures have before their ending and label maps have not.
        mask_suffix: What names of label maps have before their ending and pictures have not, such as `_mask`.
        class_names: Names of the classes 0, 1, ...
        num_classes: Number of classes; by default that of the names, or unknown.
        reduce_zero_label: Whether 0 in the files means no class, so that 1 becomes class 0.
        label_values: Numbers to replace, such as {255: 1} for masks in black and white.
        ignore_index: Number of the pixels that count nowhere.
        split: Name of this part, for reports.
        strict: Whether pictures without label maps, or the reverse, are an error; otherwise they are left out.

    Raises:
        InputError: If a folder is missing or, with `strict`, a partner.
    """

    layout = "image-mask"

    def __init__(
        self,
        image_dir: str | os.PathLike[str],
        mask_dir: str | os.PathLike[str],
        image_suffix: str = "",
        mask_suffix: str = "",
        class_names: Sequence[str] = (),
        num_classes: int | None = None,
        reduce_zero_label: bool = False,
        label_values: Mapping[int, int] | None = None,
        ignore_index: int = IGNORE_INDEX,
        split: str = "",
        strict: bool = True,
    ) -> None:
        items, problems = pair_by_name(Path(image_dir), Path(mask_dir), image_suffix, mask_suffix)
        super().__init__(
            source=str(image_dir),
            items=items,
            task="segmentation",
            split=split,
            class_names=class_names,
            num_classes=num_classes,
            reading=LabelReading(reduce_zero_label, label_values, ignore_index),
            problems=problems,
            strict=strict,
        )
