"""Tiny data sets of scenes that a network can learn: a class has a colour. In ADE20K's and COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from picture_sets import save

COLOURS = np.array([[40, 60, 200], [210, 60, 40], [60, 190, 70]])
ADE_NAMES = ["sky", "house", "grass"]
COCO_NAMES = ["background", "box", "stripe"]
SIZES = ((48, 64), (61, 47), (53, 80))


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (H, W, 3) and classes uint8 (H, W): a box of class 1 and a stripe of class 2 on class 0."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.uint8)
    top, left = generator.integers(2, height // 3), generator.integers(2, width // 3)
    labels[top : top + height // 2, left : left + width // 2] = 1
    labels[-height // 4 :] = 2
    pixels = COLOURS[labels] + generator.normal(0, 12, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


def make_ade_scenes(root: Path, training: int = 4, validation: int = 2) -> Path:
    """Scenes in ADE20K's layout: 1 to 3 are the classes 0 to 2, and 0 on a strip that counts nowhere."""
    for split, numbers in (("training", range(training)), ("validation", range(50, 50 + validation))):
        for number in numbers:
            pixels, labels = scene(number, *SIZES[number % len(SIZES)])
            numbered = labels + 1
            numbered[:3] = 0
            save(root / "images" / split / f"s{number}.jpg", pixels, quality=95)
            save(root / "annotations" / split / f"s{number}.png", numbered)
    return root


def _box_annotation(labels: np.ndarray) -> dict[str, Any]:
    """The box as a polygon in COCO's way."""
    rows, columns = np.nonzero(labels == 1)
    x0, x1, y0, y1 = (int(v) for v in (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1))
    return {"category_id": 3, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "iscrowd": 0}


def _runs(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask, column by column, the first run outside."""
    flat = np.concatenate([[0], mask.reshape(-1, order="F").astype(int), [2]])
    ends = np.flatnonzero(np.diff(flat)) if flat[1] == 0 else np.concatenate([[0], np.flatnonzero(np.diff(flat))])
    return np.diff(np.concatenate([[0], ends])).tolist() if flat[1] == 0 else [0, *np.diff(ends).tolist()]


def _annotations(labels: np.ndarray) -> list[dict[str, Any]]:
    height, width = labels.shape
    crowd = np.zeros_like(labels)
    crowd[:4] = 1
    return [
        _box_annotation(labels),
        {"category_id": 8, "segmentation": {"counts": _runs(labels == 2), "size": [height, width]}, "iscrowd": 0},
        {"category_id": 3, "segmentation": {"counts": _runs(crowd), "size": [height, width]}, "iscrowd": 1},
    ]


def make_coco_scenes(root: Path, training: int = 4, validation: int = 2) -> Path:
    """Scenes in COCO's layout: the box a polygon, the stripe run lengths, and a crowd at the top."""
    for split, numbers in (("train2017", range(training)), ("val2017", range(50, 50 + validation))):
        images, annotations = [], []
        for number in numbers:
            pixels, labels = scene(number, *SIZES[number % len(SIZES)])
            save(root / split / f"{number:012}.jpg", pixels, quality=95)
            height, width = labels.shape
            images.append({"id": number, "file_name": f"{number:012}.jpg", "height": height, "width": width})
            for each in _annotations(labels):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **each})
        categories = [{"id": 3, "name": "box"}, {"id": 8, "name": "stripe"}]
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root
