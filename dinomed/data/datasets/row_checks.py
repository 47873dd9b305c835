"""Rows of labelled pictures that contradict each other: the same picture, patient or name in several places."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from dinomed.data.datasets.class_labels import Found
from dinomed.data.datasets.image_dataset import Problem

logger = logging.getLogger(__name__)


def without_contradictions(source: str, found: Sequence[Found], problems: list[Problem]) -> list[Found]:
    """Keep each picture once; note and leave out those that have two labels or parts, and patients in two parts.

    Args:
        source: For messages.
        found: Rows with their labels.
        problems: Gets what is wrong.
    """
    return _without_divided_patients(_without_repeats(source, found, problems), problems)


def _without_repeats(source: str, found: Sequence[Found], problems: list[Problem]) -> list[Found]:
    first: dict[str, Found] = {}
    doubtful: set[str] = set()
    repeated = 0
    for row, labels in found:
        key = os.path.realpath(row.image)
        if key not in first:
            first[key] = (row, labels)
            continue
        other, others = first[key]
        if {task: set(raw) for task, raw in labels.items()} != {task: set(raw) for task, raw in others.items()}:
            said = f"gives {row.image.name} other labels than {other.where}; keep the right one"
        elif row.part != other.part:
            said = f"lists {row.image.name} for {row.part or 'no part'}, {other.where} for {other.part or 'no part'}"
            said = f"{said}; keep it in one part"
        else:
            repeated += 1
            continue
        problems.append(Problem("duplicate image", row.where, said))
        doubtful.add(key)  # neither of the two is known to be right
    if repeated:
        logger.warning("%s lists %d pictures more than once; each counts once", source, repeated)
    return [each for key, each in first.items() if key not in doubtful]


def _without_divided_patients(found: Sequence[Found], problems: list[Problem]) -> list[Found]:
    first: dict[str, Found] = {}
    divided: set[str] = set()
    for row, labels in found:
        patient = row.patient
        other, _ = first.setdefault(patient, (row, labels))
        if patient and patient not in divided and row.part != other.part:
            said = f"is of the patient {patient!r} for {row.part}, {other.where} is for {other.part}"
            problems.append(Problem("broken annotation", row.where, f"{said}; keep a patient in one part"))
            divided.add(patient)
    return [each for each in found if each[0].patient not in divided]


def without_namesakes(found: Sequence[Found], problems: list[Problem]) -> list[Found]:
    """Keep the first of different pictures of one name; a report knows its rows by their names.

    Args:
        found: Different pictures with their labels.
        problems: Gets what is wrong.
    """
    first: dict[str, Found] = {}
    for row, labels in found:
        other, _ = first.setdefault(row.name, (row, labels))
        if other is not row:
            said = f"is called {row.name!r} as is {other.where}; give each picture a name of its own, or leave name out"
            problems.append(Problem("ambiguous pair", row.where, said))
    return list(first.values())
