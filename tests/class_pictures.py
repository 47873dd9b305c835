"""Tiny data sets of classified pictures, drawn here: a class is a colour, a shape is a second task."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from picture_sets import save

COLOURS = {"amber": (225, 165, 40), "blue": (40, 70, 205), "green": (50, 160, 70)}
SHAPES = ("box", "stripe")
SIZES = ((48, 64), (61, 47), (53, 80))


def drawn(colour: str, shape: str, seed: int) -> np.ndarray:
    """Pixels uint8 (H, W, 3): a box or a stripe of one colour on noisy grey."""
    generator = np.random.default_rng(seed)
    height, width = SIZES[seed % len(SIZES)]
    pixels = np.full((height, width, 3), 120.0)
    top, left = generator.integers(2, height // 4), generator.integers(2, width // 4)
    place = np.s_[top : top + height // 2, left : left + width // 2] if shape == "box" else np.s_[:, :: height // 5]
    pixels[:] = 0.35 * np.array(COLOURS[colour]) + 0.65 * pixels
    pixels[place] = COLOURS[colour]
    pixels += generator.normal(0, 10, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def make_folders(root: Path, training: int = 6, validation: int = 3, colours: Sequence[str] = tuple(COLOURS)) -> Path:
    """Pictures in `train/COLOUR` and `val/COLOUR`; without validation in `COLOUR`."""
    for part, start, count in (("train", 0, training), ("val", 1000, validation)):
        folder = root / part if validation else root
        for number, colour in enumerate(colours):
            for index in range(count):
                seed = start + 100 * number + index
                name = f"{colour}{seed}.jpg"
                save(folder / colour / name, drawn(colour, SHAPES[index % 2], seed), quality=95)
    return root


def make_rows(root: Path, count: int = 12, validation: int = 4) -> list[dict[str, Any]]:
    """Pictures in `pictures` and a row for each: image, colour, shape and split."""
    rows = []
    for index in range(count + validation):
        colour, shape = list(COLOURS)[index % len(COLOURS)], SHAPES[index // 2 % 2]
        save(root / "pictures" / f"p{index}.jpg", drawn(colour, shape, index), quality=95)
        split = "train" if index < count else "val"
        rows.append({"image": f"pictures/p{index}.jpg", "colour": colour, "shape": shape, "split": split})
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def as_labels(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with a column of 0 and 1 for blue, green and stripe; amber boxes have none of them."""
    return [
        {
            "image": row["image"],
            "label_blue": int(row["colour"] == "blue"),
            "label_green": int(row["colour"] == "green"),
            "label_stripe": int(row["shape"] == "stripe"),
            "split": row["split"],
        }
        for row in rows
    ]
