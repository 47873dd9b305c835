"""Tiny data sets of pictures in every layout, made in the test."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A picture of its own for each seed, uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def labels_of(seed: int, values: Sequence[int], height: int = 24, width: int = 32) -> np.ndarray:
    """A label map with exactly these values, uint8 (height, width)."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values, dtype=np.uint8), (height, width))
    drawn.reshape(-1)[: len(values)] = values
    return drawn


def make_ade20k(root: Path, values: Sequence[int] = (0, 1, 2, 150)) -> Path:
    """Two training pictures and one for validation."""
    names = {"training": ["a 1", "b"], "validation": ["küche"]}
    for seed, (split, name) in enumerate((split, name) for split, each in names.items() for name in each):
        save(root / "images" / split / f"{name}.jpg", noise(seed))
        save(root / "annotations" / split / f"{name}.png", labels_of(seed, values))
    return root


def make_masks(root: Path, count: int = 3, values: Sequence[int] = (0, 1, 2)) -> Path:
    for seed in range(count):
        save(root / "images" / f"p{seed}.jpg", noise(seed))
        save(root / "masks" / f"p{seed}.png", labels_of(seed, values))
    return root


def square(x: float, y: float, side: float) -> list[float]:
    """A polygon in COCO's way."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def coco_content(
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]] = ({"id": 1, "name": "person"}, {"id": 18, "name": "dog"}),
    images: Sequence[dict[str, Any]] = ({"id": 7, "file_name": "ä b.jpg", "height": 24, "width": 32},),
) -> dict[str, Any]:
    """The content of an instance file; annotations gain ids and belong to image 7 unless they say otherwise."""
    numbered = [{"id": i, "image_id": 7, "iscrowd": 0} | each for i, each in enumerate(annotations, start=1)]
    return copy.deepcopy({"images": list(images), "annotations": numbered, "categories": list(categories)})


def make_coco(root: Path, content: dict[str, Any], split: str = "val2017") -> Path:
    """Write an instance file and the pictures that it names; returns the file."""
    for seed, image in enumerate(content.get("images", ())):
        if {"file_name", "height", "width"} <= set(image):
            save(root / split / image["file_name"], noise(seed, image["height"], image["width"]))
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
