"""What all data sets of flat pictures share: items, class names, and the problems that were met while listing them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dinomed.errors import InputError
from dinomed.transforms.image_reading import IGNORE_INDEX, read_label_map

Task = Literal["segmentation", "classification", "unlabelled"]
ProblemKind = Literal[
    "missing pair",
    "ambiguous pair",
    "unreadable file",
    "size mismatch",
    "label out of range",
    "broken annotation",
    "duplicate image",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Attributes:
        kind: What sort of thing.
        file: The file, or the annotation's file and number.
        reason: What is wrong and what to do.
    """

    kind: ProblemKind
    file: str
    reason: str


@dataclass(frozen=True)
class LabelReading:
    """How a data set's label maps are to be read; arguments of `read_label_map` and `LoadLabelMapd`."""

    reduce_zero_label: bool = False
    label_values: Mapping[int, int] | None = None
    ignore_index: int = IGNORE_INDEX


class ImageDataset(Sequence[dict[str, Any]]):
    """Items as dictionaries: "image" (a path), "label" (a path, or a class number) and "name".

    Hand it to `monai.data.Dataset` as its data.

    Args:
        source: Folder or file that the data set was made from, for messages.
        items: One dictionary per picture; unlabelled ones have no "label".
        task: What the labels are.
        split: Name of the part, such as "training"; empty where there are no parts.
        class_names: Name of each class by its number; empty where unknown.
        num_classes: Labels run from 0 to this minus 1; None where unknown.
        reading: How label maps are to be read.
        problems: What was met while listing.
        strict: Whether any problem is an error; otherwise what is affected was left out, and a warning says how much.

    Raises:
        InputError: If there are problems and `strict`, no item is left, or `ignore_index` is a class.
    """

    layout = ""

    def __init__(
        self,
        source: str,
        items: Sequence[dict[str, Any]],
        task: Task,
        split: str = "",
        class_names: Sequence[str] = (),
        num_classes: int | None = None,
        reading: LabelReading | None = None,
        problems: Sequence[Problem] = (),
        strict: bool = True,
    ) -> None:
        self.source = source
        self.items = list(items)
        self.task: Task = task
        self.split = split
        self.class_names = tuple(class_names)
        self.num_classes = num_classes if num_classes is not None else (len(self.class_names) or None)
        self.reading = reading or LabelReading()
        self.problems = tuple(problems)
        if task == "segmentation" and 0 <= self.ignore_index < (self.num_classes or 0):
            raise InputError(
                f"{source} has {self.num_classes} classes, so that label {self.ignore_index} is one of them and cannot "
                "mean ignored; choose another ignore_index, such as 65535"
            )
        if problems and strict:
            first = problems[0]
            others = f" and {len(problems) - 1} more problems" if len(problems) > 1 else ""
            raise InputError(
                f"{first.file} {first.reason}{others}; see `dinomed data check`, correct the data set, "
                "or pass strict=False to leave out what is affected"
            )
        if not self.items:
            reason = f"; {problems[0].file} {problems[0].reason}" if problems else ""
            raise InputError(f"{source} holds no picture that can be used{reason}")
        if problems:
            logger.warning("%s: %d problems, what they affect is left out", source, len(problems))

    @property
    def ignore_index(self) -> int:
        """Label of the pixels that count nowhere."""
        return self.reading.ignore_index

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | slice) -> Any:
        """Return a copy of one item, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return dict(self.items[index])

    def label_map(self, index: int) -> NDArray[Any]:
        """Read the label map of an item as training sees it, (H, W) integers.

        Raises:
            InputError: If it cannot be read, or the data set has no label maps.
        """
        if self.task != "segmentation":
            raise InputError(f"{self.source} has no label maps; it is for {self.task} pictures")
        label, reading = self.items[index]["label"], self.reading
        return read_label_map(label, reading.reduce_zero_label, reading.label_values, reading.ignore_index)

    def numbers(self, index: int) -> list[int]:
        """Number the classes of an item that is classified as a whole; several labels or tasks may have several."""
        return [self.items[index]["label"]]

    def class_name(self, label: int) -> str:
        """Name a class."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else f"class {label}"


def check_class_names(data: ImageDataset, label_names: Sequence[str]) -> None:
    """Refuse a configuration whose classes are not those of its data set.

    Args:
        data: The data set; one that does not name its classes fits any.
        label_names: Names of the classes 0, 1, ... in the configuration.

    Raises:
        InputError: If they differ.
    """
    if data.class_names and list(data.class_names) != [str(name) for name in label_names]:
        shown = ", ".join(data.class_names[:5]) + (", ..." if len(data.class_names) > 5 else "")
        raise InputError(
            f"{data.source} has {len(data.class_names)} classes ({shown}), but label_names lists {len(label_names)} "
            "others or in another order; set label_names to the classes of the data set, in training and inference"
        )


def counts_of(labels: NDArray[Any]) -> dict[int, int]:
    """Count the pixels of each label in a label map."""
    values, counts = np.unique(labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}
