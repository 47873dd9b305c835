"""Tiny head CTs and tables of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

LABELS = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


def write_ct(path: Path, seed: int = 0, bleeding_hu: float = 0.0, shape: tuple[int, int, int] = (20, 24, 5)) -> Path:
    """Write a block of 30 HU in air with noise, and a square that is denser by `bleeding_hu`."""
    generator = np.random.default_rng(seed)
    values = np.full(shape, -1000.0)
    values[2:-2, 2:-2] = 30
    values[4:12, 6:14] += bleeding_hu
    values += generator.normal(0, 4, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([4.0, 4.0, 6.0, 1.0])), path)
    return path


def row_of(name: str, labels: Sequence[int] = (0, 0, 0, 0, 0, 0), **more: Any) -> dict[str, Any]:
    row = {"rel_dir": ".", "study_uid": f"study {name}", "series_uid": f"series {name}", "nifti_path": f"{name}.nii"}
    return {**row, **{f"label_{each}": value for each, value in zip(LABELS, labels, strict=True)}, **more}


def write_table(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path
