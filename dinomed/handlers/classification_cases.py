"""The cases of an evaluation of classification: checked, gathered from all processes, and grouped by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dinomed.errors import InputError

Floats = npt.NDArray[np.float64]

SAME_PROBABILITY = 1e-3
"""Two processes that have the same case agree this well, whatever their batches."""


@dataclass(frozen=True)
class ClassifiedCase:
    """A case of an evaluation.

    Attributes:
        case: Its name, which no other case has.
        patient: Whose it is; None where the data does not say.
        study: Of which study it is; None where the data does not say.
        probs: (K,) float64.
        label: (K,) 0 or 1, or () number of the right class.
    """

    case: str
    patient: str | None
    study: str | None
    probs: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]


def classified_case(item: Mapping[str, Any], names: int, kind: str, pred_key: str, label_key: str) -> ClassifiedCase:
    """Read a case from an evaluator's output.

    Args:
        item: Probabilities, label, "case", and "patient" and "study" where they are known.
        names: Number of labels.
        kind: "multilabel" or "multiclass".
        pred_key: Of the probabilities.
        label_key: Of the label.

    Raises:
        InputError: If something is missing or does not fit.
    """
    missing = [key for key in (pred_key, label_key, "case") if item.get(key) is None]
    if missing:
        raise InputError(f"an evaluated item has no {' and no '.join(missing)}; the report needs them of each case")
    probs, label = (
        torch.as_tensor(item[key]).as_subclass(Tensor).detach().cpu().double().reshape(-1).numpy()
        for key in (pred_key, label_key)
    )
    problem = _problem_of_probs(probs, names, kind) or _problem_of_label(label, names, kind)
    if problem:
        raise InputError(f"{item['case']}: {problem}")
    patient, study = (None if item.get(key) in (None, "") else str(item[key]) for key in ("patient", "study"))
    whole = label.astype(np.int64)
    return ClassifiedCase(str(item["case"]), patient, study, probs, whole[0] if kind == "multiclass" else whole)


def merged(entries: Sequence[ClassifiedCase]) -> list[ClassifiedCase]:
    """Return cases by name; one that several processes had counts once.

    Raises:
        InputError: If two different cases have the same name.
    """
    first: dict[str, ClassifiedCase] = {}
    for entry in entries:
        known = first.setdefault(entry.case, entry)
        same = (known.patient, known.study) == (entry.patient, entry.study) and np.array_equal(known.label, entry.label)
        if not same or np.abs(known.probs - entry.probs).max() > SAME_PROBABILITY:
            raise InputError(f"two different cases are called {entry.case}; give each case a name of its own")
    return [first[name] for name in sorted(first)]


def groups_of(cases: Sequence[ClassifiedCase]) -> tuple[list[str], dict[str, int | None], str, list[str]]:
    """Find out whom each case belongs to.

    Returns:
        A name of the patient of each case, or of what stands for one; the numbers of cases, studies and patients, None
        where unknown; what stands for a patient where none is named; what to warn of.
    """
    patients = {case.patient for case in cases}
    studies = {case.study for case in cases}
    counts = {
        "cases": len(cases),
        "studies": None if None in studies else len(studies),
        "patients": None if None in patients else len(patients),
    }
    if None not in patients:
        return [str(case.patient) for case in cases], counts, "patient", []
    unit = "study" if None not in studies else "case"
    # What stands for a patient has a prefix, so that it is never taken for a patient of that name.
    groups = [f"patient {case.patient}" if case.patient else f"{unit} {getattr(case, unit)}" for case in cases]
    some = "no patients" if patients == {None} else "the patients of some cases only"
    warning = (
        f"The data names {some}. Where none is named each {unit} counts as a patient of its own; where patients have "
        "several, the intervals are too narrow."
    )
    return groups, counts, unit, [warning]


def _problem_of_probs(probs: npt.NDArray[np.float64], names: int, kind: str) -> str | None:
    if len(probs) != names:
        return f"{len(probs)} probabilities do not fit {names} label_names"
    if not np.isfinite(probs).all():
        return f"its probabilities are {_shown(probs)}; look for what is no number in its image or in the weights"
    if probs.min() < 0 or probs.max() > 1:
        return f"{_shown(probs)} are no probabilities; put a sigmoid or softmax behind the network"
    if kind == "multiclass" and abs(probs.sum() - 1) > 0.02:
        return f"its probabilities add up to {probs.sum():.3f}, not to 1; put a softmax behind the network"
    return None


def _problem_of_label(label: npt.NDArray[np.float64], names: int, kind: str) -> str | None:
    if kind == "multilabel":
        if len(label) != names or not np.isin(label, (0, 1)).all():
            return f"its label is {label.tolist()}; give 0 or 1 for each of {names} labels"
    elif len(label) != 1 or label[0] not in range(names):
        return f"its label is {label.tolist()}; give the number of a class, 0 to {names - 1}"
    return None


def _shown(probs: Floats) -> str:
    return f"[{', '.join(f'{prob:.4g}' for prob in probs[:8])}{', ...' if len(probs) > 8 else ''}]"
