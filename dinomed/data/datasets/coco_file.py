"""Reads COCO instance files and checks every entry before anything is drawn from it.

Format: https://cocodataset.org/#format-data. Run lengths count pixels down the columns, the first run outside.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinomed.data.datasets.image_dataset import Problem
from dinomed.errors import InputError

MOST_PIXELS = 10**9
"""Sizes beyond this are taken for mistakes."""


@dataclass(frozen=True)
class CocoObject:
    """One annotation; either `polygons` or `runs` says where it is.

    Attributes:
        category_id: As the file numbers categories.
        is_crowd: Whether it is a group whose members are not told apart.
        polygons: Parts of the object, each float64 (points, 2) as x, y; their union counts.
        runs: int64 (N,) run lengths down the columns, the first outside the object.
    """

    category_id: int
    is_crowd: bool
    polygons: tuple[NDArray[np.float64], ...] = ()
    runs: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class CocoImage:
    """One picture with its objects, in the order of the file."""

    id: int | str
    file_name: str
    height: int
    width: int
    objects: list[CocoObject] = field(default_factory=list)


@dataclass(frozen=True)
class CocoFile:
    """A whole file.

    Attributes:
        path: Where it lies.
        sha256: Of its bytes, 64 hexadecimal digits.
        images: In the order of the file.
        categories: Name by id.
        problems: Annotations that cannot be used and were left out.
    """

    path: Path
    sha256: str
    images: list[CocoImage]
    categories: dict[int, str]
    problems: list[Problem]


def read_coco_file(path: Path) -> CocoFile:
    """Read and check an instance file.

    Raises:
        InputError: If it cannot be read, or an image, annotation or category lacks a field or has a wrong one.
            Objects whose outline alone is wrong are `problems` instead.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and your rights") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON file ({error}); get it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no COCO file; it must hold an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f"{path} has no list `{key}`; a COCO instance file needs images, annotations, categories")
    categories = _categories(path, content["categories"])
    images = _images(path, content["images"])
    problems: list[Problem] = []
    for index, entry in enumerate(content["annotations"]):
        _add_object(path, f"annotation {_number(entry, index)}", entry, images, categories, problems)
    return CocoFile(path, hashlib.sha256(raw).hexdigest(), list(images.values()), categories, problems)


def _number(entry: Any, index: int) -> str:
    """Name an entry by its id, or by its place where it has none."""
    return f"{entry['id']}" if isinstance(entry, dict) and "id" in entry else f"at place {index}"


def _get(path: Path, where: str, entry: Any, key: str, kinds: tuple[type, ...]) -> Any:
    """Return a field that must be there."""
    if not isinstance(entry, dict):
        raise InputError(f"{path}: {where} is no object; correct the file")
    if key not in entry:
        raise InputError(f"{path}: {where} has no field `{key}`; add it")
    value = entry[key]
    if not isinstance(value, kinds) or isinstance(value, bool) or value == "":
        raise InputError(f"{path}: {where} has {key} {value!r}, which is no {kinds[0].__name__}; correct it")
    return value


def _categories(path: Path, entries: list[Any]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"category {_number(entry, index)}"
        number = _get(path, where, entry, "id", (int,))
        if number in categories:
            raise InputError(f"{path}: {where} occurs twice; give each category its own id")
        categories[number] = str(entry.get("name") or f"category {number}")
    if not categories:
        raise InputError(f"{path} has no categories; add them")
    return categories


def _images(path: Path, entries: list[Any]) -> dict[int | str, CocoImage]:
    images: dict[int | str, CocoImage] = {}
    for index, entry in enumerate(entries):
        where = f"image {_number(entry, index)}"
        number = _get(path, where, entry, "id", (int, str))
        if number in images:
            raise InputError(f"{path}: {where} occurs twice; give each image its own id")
        size = [_get(path, where, entry, key, (int,)) for key in ("height", "width")]
        if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
            raise InputError(f"{path}: {where} is {size[1]} x {size[0]} pixels; correct width and height")
        images[number] = CocoImage(number, _get(path, where, entry, "file_name", (str,)), *size)
    return images


def _add_object(
    path: Path,
    where: str,
    entry: Any,
    images: Mapping[int | str, CocoImage],
    categories: Mapping[int, str],
    problems: list[Problem],
) -> None:
    """Check an annotation and hang it on its image."""
    number = _get(path, where, entry, "image_id", (int, str))
    category = _get(path, where, entry, "category_id", (int,))
    file = f"{path}: {where}"
    if number not in images:
        problems.append(Problem("broken annotation", file, f"belongs to image {number}, which is not in the file"))
        return
    if category not in categories:
        reason = f"has category {category}, which is not among the file's {len(categories)} categories"
        problems.append(Problem("label out of range", file, reason))
        return
    image = images[number]
    try:
        polygons, runs = _outline(entry.get("segmentation"), image.height, image.width)
    except ValueError as error:
        problems.append(Problem("broken annotation", file, f"of {image.file_name} {error}"))
        return
    image.objects.append(CocoObject(category, bool(entry.get("iscrowd", 0)), polygons, runs))


def _outline(
    segmentation: Any, height: int, width: int
) -> tuple[tuple[NDArray[np.float64], ...], NDArray[np.int64] | None]:
    """Read polygons or run lengths.

    Raises:
        ValueError: If they do not describe a region of an image of that size.
    """
    if segmentation is None or segmentation == [] or segmentation == {}:
        raise ValueError("has no segmentation; draw one, or remove it")
    if isinstance(segmentation, dict):
        return (), _runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError("has a segmentation that is neither a list of polygons nor run lengths")
    return tuple(_polygon(each) for each in segmentation), None


def _polygon(numbers: Any) -> NDArray[np.float64]:
    if not isinstance(numbers, list) or not all(
        isinstance(each, (int, float)) and math.isfinite(each) for each in numbers
    ):
        raise ValueError("has a polygon that is no list of finite numbers")
    # Four numbers would be taken for a box by COCO's own tools.
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"has a polygon of {len(numbers)} numbers; three points or more, x and y each, are needed")
    return np.asarray(numbers, dtype=np.float64).reshape(-1, 2)


def _runs(segmentation: Mapping[str, Any], height: int, width: int) -> NDArray[np.int64]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"has run lengths of size {size} (height, width) for an image of [{height}, {width}]")
    if isinstance(counts, str):
        runs = decode_counts(counts)
    elif isinstance(counts, list) and all(type(each) is int and 0 <= each <= height * width for each in counts):
        runs = np.asarray(counts, dtype=np.int64)
    else:
        raise ValueError("has run lengths that are neither text nor a list of counts")
    total = int(runs.sum())
    if total != height * width or (runs < 0).any():
        raise ValueError(f"has run lengths for {total} pixels; the image has {height * width}")
    return runs


def decode_counts(text: str) -> NDArray[np.int64]:
    """Read compressed run lengths.

    Each character holds, above 48, five bits of a number, the lowest first, and in bit 6 whether more follow; the last
    one's highest bit is the sign. From the fourth number on, the difference to the one two before is stored.

    Returns:
        int64 (N,).

    Raises:
        ValueError: If the text is not of this form.
    """
    numbers: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("has compressed run lengths that cannot be read")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(numbers) > 2:
            value += numbers[-2]
        numbers.append(value)
        value, shift = 0, 0
    if shift or not numbers or max(map(abs, numbers)) > MOST_PIXELS:
        raise ValueError("has compressed run lengths that cannot be read")
    return np.asarray(numbers, dtype=np.int64)
