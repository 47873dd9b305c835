"""Holding out a part of a data set that has no validation part, so that every class is in both parts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinomed.data.datasets.class_labels import Classes, Found
from dinomed.data.stratification import stratify


@dataclass(frozen=True)
class Division:
    """What of a source is for training and what for validation.

    Attributes:
        training: Rows for training.
        validation: Rows for validation.
        held_out: Whether the validation rows were drawn, because the source has no such part.
    """

    training: list[Found]
    validation: list[Found]
    held_out: bool

    def described(self) -> dict[str, Any]:
        """Say in plain values what weights were trained on, so that an evaluation can tell."""
        return {
            "held_out": self.held_out,
            "training_pictures": len(self.training),
            "validation_pictures": len(self.validation),
            "training_mark": data_mark(self.training),
        }


def divide(found: Sequence[Found], classes: Classes, share: float, seed: int, parted: bool = False) -> Division:
    """Divide rows as their source does; without a validation part draw one out of those for training.

    Args:
        found: Rows with their labels.
        classes: Of the labels.
        share: Part of the pictures to hold out.
        seed: Of the draw.
        parted: Whether the source has a validation part, though none of its rows may be left.
    """
    if parted or any(row.part == "validation" for row, _ in found):
        training, validation = ([each for each in found if each[0].part == part] for part in ("training", "validation"))
        return Division(training, validation, held_out=False)
    pool = [each for each in found if each[0].part in ("", "training")]
    columns = {(task, raw): k for k, (task, raw) in enumerate((t, r) for t, names in classes.items() for r in names)}
    presence = np.zeros((len(pool), len(columns)), dtype=bool)
    for index, (_, labels) in enumerate(pool):
        for task, names in labels.items():
            presence[index, [columns[task, raw] for raw in names]] = True
    # A patient and a path of the same text are different groups.
    groups = [(row.patient, "" if row.patient else os.fspath(row.image)) for row, _ in pool]
    out = hold_out(presence, share, seed, groups)
    training = [each for each, held in zip(pool, out, strict=True) if not held]
    return Division(training, [each for each, held in zip(pool, out, strict=True) if held], held_out=True)


def data_mark(found: Sequence[Found]) -> str:
    """Identify rows by their names and labels, whatever their order and wherever the source lies."""
    lines = (
        json.dumps([row.name, {task: sorted(raw) for task, raw in labels.items()}], sort_keys=True)
        for row, labels in found
    )
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def hold_out(
    presence: NDArray[np.bool_], share: float, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> NDArray[np.bool_]:
    """Choose items for validation, stratified by label; a label of a single group stays in training.

    Args:
        presence: (items, labels), which labels each item has.
        share: Part of the items to hold out, between 0 and 1.
        seed: Of the draw; the same seed gives the same parts.
        groups: What each item belongs to, such as a patient; a group is never divided. None: each item by itself.

    Returns:
        (items,), true for what is held out; nothing where too few groups are left.

    Raises:
        ValueError: If the share is none.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share that is held out must lie between 0 and 1, not {share!r}")
    keys = list(range(len(presence))) if groups is None else list(groups)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group_of = np.array([numbers[key] for key in keys], dtype=np.int64)
    has = np.zeros((len(numbers), presence.shape[1]), dtype=bool)
    np.logical_or.at(has, group_of, presence)
    free = ~has[:, has.sum(0) == 1].any(1)
    out = np.zeros(len(numbers), dtype=bool)
    if free.sum() > 1:
        out[free] = stratify(has[free].astype(np.int64), [1 - share, share], seed) == 1
    chosen: NDArray[np.bool_] = out[group_of]
    return chosen
