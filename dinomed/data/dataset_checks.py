"""Checks data sets of flat pictures: every file is read once, in parallel, and none is kept in memory."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from dinomed.data.datasets.coco import CocoSegmentation
from dinomed.data.datasets.image_dataset import ImageDataset, Problem, counts_of
from dinomed.errors import InputError
from dinomed.transforms.image_reading import read_label_map, read_pixels, renumber, size_difference

MOST_NAMED = 5
LARGEST_SHARE = 0.9
"""A class with more of the pixels than this is worth a note."""


@dataclass
class ItemCheck:
    """What reading one item showed.

    Attributes:
        problems: What is wrong with it.
        digest: Of its pixels; empty where they could not be read.
        size: Height and width in pixels; None where they could not be read.
        counts: Pixels by label, ignored ones included; of a class, 1.
        invisible: Objects that cover no pixel.
    """

    problems: list[Problem] = field(default_factory=list)
    digest: bytes = b""
    size: tuple[int, int] | None = None
    counts: dict[int, int] = field(default_factory=dict)
    invisible: int = 0


@dataclass
class SplitCheck:
    """What checking one data set showed.

    Attributes:
        dataset: The data set.
        problems: What is wrong, in the order of its items.
        notes: What is worth knowing but not wrong.
        pixels: Pixels by label, ignored ones included; empty for classification.
        images: Pictures by label that occurs in them.
        sizes: Pictures by (height, width).
    """

    dataset: ImageDataset
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    invisible: int = 0


def check_datasets(
    datasets: Sequence[ImageDataset], workers: int | None = None, progress: Callable[[], None] | None = None
) -> list[SplitCheck]:
    """Read every item of the data sets, opened with `strict=False`, and say what is wrong.

    Pictures with the same pixels are found across all of them, since a picture in training and validation spoils both.

    Args:
        datasets: The splits of one data set.
        workers: Threads; by default one per processor, eight at most.
        progress: Called after each item.
    """
    checks = [SplitCheck(dataset, list(dataset.problems)) for dataset in datasets]
    first_seen: dict[bytes, tuple[SplitCheck, int]] = {}
    for check, index, item in _read_all(checks, workers or min(8, os.cpu_count() or 1)):
        check.problems += item.problems
        if item.digest in first_seen:
            check.problems.append(_duplicate(check, index, *first_seen[item.digest]))
        elif item.digest:
            first_seen[item.digest] = (check, index)
        if item.size is not None:
            check.sizes[item.size] += 1
        if check.dataset.task == "segmentation":
            check.pixels.update(item.counts)
        check.images.update(item.counts.keys())
        check.invisible += item.invisible
        if progress is not None:
            progress()
    for check in checks:
        _judge(check)
    return checks


def _read_all(checks: Sequence[SplitCheck], workers: int) -> Iterator[tuple[SplitCheck, int, ItemCheck]]:
    """Check all items in threads, in order, with few of them under way at a time."""
    waiting: deque[tuple[SplitCheck, int, Future[ItemCheck]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for check in checks:
            for index in range(len(check.dataset)):
                waiting.append((check, index, pool.submit(check_item, check.dataset, index)))
                if len(waiting) >= 4 * workers:
                    first = waiting.popleft()
                    yield first[0], first[1], first[2].result()
        while waiting:
            first = waiting.popleft()
            yield first[0], first[1], first[2].result()
    finally:
        pool.shutdown(cancel_futures=True)


def check_item(dataset: ImageDataset, index: int) -> ItemCheck:
    """Read one item and say what is wrong with it."""
    item, found = dataset.items[index], ItemCheck()
    try:
        pixels = read_pixels(item["image"])
        found.size = (pixels.shape[0], pixels.shape[1])
        found.digest = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes()).digest()
    except InputError as error:
        found.problems.append(_unreadable(item["image"], error))
    if dataset.task == "classification":
        found.counts = dict.fromkeys(dataset.numbers(index), 1)
    elif dataset.task == "segmentation":
        _check_label_map(dataset, index, found)
    unknown = [label for label in found.counts if not _is_known(dataset, label)]
    if unknown:
        own = _numbers_in_file(dataset, index)
        numbers = ", ".join(f"{label}{own.get(label, '')}" for label in sorted(unknown)[:MOST_NAMED])
        reason = f"has label {numbers}, but the {dataset.num_classes} classes are 0 to {(dataset.num_classes or 0) - 1}"
        file = item["label"] if dataset.task == "segmentation" else item["image"]
        found.problems.append(Problem("label out of range", file, f"{reason}; correct it or the number of classes"))
    return found


def _check_label_map(dataset: ImageDataset, index: int, found: ItemCheck) -> None:
    """Read or draw a label map, compare its size and count its labels."""
    item = dataset.items[index]
    if isinstance(dataset, CocoSegmentation):
        image = dataset.images[index]
        # The stated size may be anything, so it is compared before so much is drawn.
        if not _differs(found, (image.height, image.width), f"{dataset.source}: {item['name']}"):
            labels, areas = dataset.draw(index)
            found.counts, found.invisible = counts_of(labels), areas.count(0)
        return
    try:
        labels = dataset.label_map(index)
    except InputError as error:
        found.problems.append(_unreadable(item["label"], error))
        return
    _differs(found, labels.shape, item["label"])
    found.counts = counts_of(labels)


def _numbers_in_file(dataset: ImageDataset, index: int) -> dict[int, str]:
    """Say which number in the file a label of an item was, where it is another one."""
    reading = dataset.reading
    if dataset.task != "segmentation" or not (reading.reduce_zero_label or reading.label_values):
        return {}
    numbers = np.unique(read_label_map(dataset.items[index]["label"]))
    labels = renumber(numbers, reading.reduce_zero_label, reading.label_values, reading.ignore_index)
    pairs = zip(labels.tolist(), numbers.tolist(), strict=True)
    return {label: f" ({number} in the file)" for label, number in pairs if label != number}


def _differs(found: ItemCheck, shape: tuple[int, ...], file: str) -> bool:
    """Note it if a label map's size is not that of its picture."""
    if found.size is None or shape == found.size:
        return False
    found.problems.append(Problem("size mismatch", file, size_difference("", shape, found.size).strip()))
    return True


def _is_known(dataset: ImageDataset, label: int) -> bool:
    if dataset.task == "segmentation" and label == dataset.ignore_index:
        return True
    return label >= 0 and (dataset.num_classes is None or label < dataset.num_classes)


def _unreadable(file: str, error: InputError) -> Problem:
    """Take the file's name off the sentence that begins with it."""
    text = str(error).removeprefix(str(file)).strip()
    return Problem("unreadable file", str(file), text)


def _duplicate(check: SplitCheck, index: int, other: SplitCheck, other_index: int) -> Problem:
    item, first = check.dataset.items[index], other.dataset.items[other_index]
    where = f" in the split {other.dataset.split}" if other is not check else ""
    same_file = os.path.normpath(item["image"]) == os.path.normpath(first["image"])
    name = ""
    if check.dataset.task == other.dataset.task == "classification":
        there = other.dataset.numbers(other_index)
        if check.dataset.numbers(index) != there:
            name = ", ".join(map(other.dataset.class_name, there)) or "none"
    if same_file:
        again = f"is listed{where} too" if where else "is listed twice"
        classes = f", first as {name}" if name else ""
        return Problem("duplicate image", item["image"], f"{again}{classes}; keep one entry")
    classes = f", there as {name}" if name else ""
    return Problem(
        "duplicate image", item["image"], f"has the same pixels as {first['image']}{where}{classes}; keep one"
    )


def _judge(check: SplitCheck) -> None:
    """Look at the labels of a whole split."""
    dataset = check.dataset
    labels = {label: count for label, count in check.pixels.items() if label != dataset.ignore_index}
    ignored = check.pixels[dataset.ignore_index]
    if dataset.task == "segmentation" and ignored and set(labels) <= {0} and dataset.num_classes != 1:
        reason = f"has no labels but 0 and {dataset.ignore_index}, which is ignored"
        check.problems.append(
            Problem(
                "label out of range", dataset.source, f"{reason}; for masks in black and white give 255 the label 1"
            )
        )
    total = sum(labels.values())
    largest = max(labels, key=lambda label: labels[label], default=None)
    if largest is not None and total and labels[largest] > LARGEST_SHARE * total:
        share = 100 * labels[largest] / total
        check.notes.append(f"{dataset.class_name(largest)} has {share:.1f} % of the labelled pixels")
    if dataset.num_classes and check.images:
        absent = [dataset.class_name(label) for label in range(dataset.num_classes) if not check.images[label]]
        if absent:
            more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
            check.notes.append(f"{len(absent)} classes do not occur: {', '.join(absent[:MOST_NAMED])}{more}")
    if check.invisible:
        check.notes.append(f"{check.invisible} objects cover no pixel and were not drawn")
