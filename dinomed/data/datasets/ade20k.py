"""ADE20K's folder layout: images/training/*.jpg and annotations/training/*.png, the same for validation.

Source: the SceneParsing benchmark, http://sceneparsing.csail.mit.edu. Its label maps hold 1 to 150 and, for everything
that belongs to no class, 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dinomed.data.datasets.class_names import ADE20K_CLASSES
from dinomed.data.datasets.image_dataset import ImageDataset, LabelReading
from dinomed.data.datasets.image_files import pair_by_name
from dinomed.transforms.image_reading import IGNORE_INDEX


class ADE20KFolder(ImageDataset):
    """Pictures and label maps in ADE20K's layout; load the labels with `LoadLabelMapd(reduce_zero_label=True)`.

    Args:
        root: Folder that holds `images` and `annotations`.
        split: Folder below both.
        class_names: Names of the classes 0, 1, ...; by default ADE20K's 150.
        num_classes: Number of classes, for data sets of your own without names; by default that of the names.
        reduce_zero_label: Whether 0 in the files means no class, so that 1 becomes class 0. Data sets of your own in
            this layout whose 0 is a class need False.
        ignore_index: Number of the pixels that count nowhere.
        strict: Whether pictures without label maps, or the reverse, are an error; otherwise they are left out.

    Raises:
        InputError: If a folder is missing or, with `strict`, a partner.
    """

    layout = "ade20k"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "training",
        class_names: Sequence[str] = ADE20K_CLASSES,
        num_classes: int | None = None,
        reduce_zero_label: bool = True,
        ignore_index: int = IGNORE_INDEX,
        strict: bool = True,
    ) -> None:
        folder = Path(root)
        items, problems = pair_by_name(folder / "images" / split, folder / "annotations" / split)
        super().__init__(
            source=str(folder),
            items=items,
            task="segmentation",
            split=split,
            class_names=class_names if num_classes in (None, len(class_names)) else (),
            num_classes=num_classes,
            reading=LabelReading(reduce_zero_label=reduce_zero_label, ignore_index=ignore_index),
            problems=problems,
            strict=strict,
        )
