"""All scores of an evaluation of classified cases, by label and of the whole, with intervals, gaps and warnings.

Rows are mappings of plain numbers; what is undefined is None, and stands with its reason under "undefined".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dinomed.metrics.bootstrap import (
    Bootstrap,
    Statistic,
    areas_of,
    bootstrap,
    mean_of,
    precisions_of,
    ratio_of,
    share_of,
)
from dinomed.metrics.calibration import brier, expected_calibration_error, reliability
from dinomed.metrics.classification import checked_classes, confusion_at, multiclass_scores, wilson_interval
from dinomed.metrics.ranking import auroc, average_precision, macro_mean, why_undefined

Row = dict[str, Any]

FEW_CASES = 10
"""Fewer cases of one kind than this make scores that chance may have made."""
FEW_FOR_CALIBRATION = 100
MOST_WEIGHED = 2_000_000_000
"""Classes x cases x draws up to which a mean AUROC has an interval; beyond it takes minutes."""


@dataclass(frozen=True)
class Draws:
    """How intervals are made.

    Attributes:
        patients: (N,) the patient of each case, any names.
        repeats: Draws of patients.
        seed: Of the draws.
    """

    patients: Sequence[str]
    repeats: int = 1000
    seed: int = 0

    def interval(self, statistic: Statistic) -> Bootstrap:
        """Return the 95 % interval of a statistic."""
        return bootstrap(statistic, np.asarray(self.patients, dtype=np.str_), self.repeats, self.seed)


def multilabel_summary(
    probs: npt.ArrayLike,
    labels: npt.ArrayLike,
    label_names: Sequence[str],
    thresholds: Sequence[float | None],
    draws: Draws,
) -> Row:
    """Score cases that have any number of labels.

    Args:
        probs: (N, K) between 0 and 1.
        labels: (N, K) 0 or 1.
        label_names: K names.
        thresholds: K; None where a label has none.
        draws: Patients, and how often they are drawn.

    Returns:
        "summary" of the whole, "labels" with a row for each, "undefined" scores with reasons, "warnings" in words.

    Raises:
        ValueError: If the arrays do not fit each other or a row is no probability.
    """
    given, wanted = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    undefined: list[Row] = []
    warnings: list[str] = []
    rows = [
        _label_row(given[:, k], wanted[:, k], name, threshold, draws, undefined, warnings)
        for k, (name, threshold) in enumerate(zip(label_names, thresholds, strict=True))
    ]
    ranked = [k for k, row in enumerate(rows) if row["auroc"] is not None]
    whole: Row = {
        "interval_methods": {
            "auroc, average_precision, macro_auroc": "bootstrap of patients; none where all draws give the same",
            "sensitivity, specificity, predictive values": "Wilson, cases as independent of each other",
        },
        "macro_auroc": macro_mean(row["auroc"] for row in rows),
        "macro_auroc_interval": None,
        "macro_auroc_labels": [rows[k]["label"] for k in ranked],
        "macro_average_precision": macro_mean(rows[k]["average_precision"] for k in ranked),
        "macro_sensitivity": macro_mean(row["sensitivity"] for row in rows),
        "macro_specificity": macro_mean(row["specificity"] for row in rows),
    }
    if ranked:
        found = draws.interval(mean_of([areas_of(given[:, k], wanted[:, k]) for k in ranked]))
        whole["macro_auroc_interval"] = _limits(found, "all labels", "macro_auroc_interval", undefined)
    else:
        undefined.append(_gap("all labels", "macro_auroc", "no label has positive and negative cases"))
    if 0 < len(ranked) < len(rows):
        warnings.append(
            f"The macro means of AUROC and average precision are over {len(ranked)} of {len(rows)} labels; the others "
            "have no positive or no negative case."
        )
    warnings += _about_cases(len(given), draws)
    return {"summary": whole, "labels": rows, "undefined": undefined, "warnings": warnings}


def _label_row(
    probs: npt.NDArray[np.float64],
    labels: npt.NDArray[Any],
    name: str,
    threshold: float | None,
    draws: Draws,
    undefined: list[Row],
    warnings: list[str],
) -> Row:
    positives = int((labels == 1).sum())
    prevalence = positives / len(labels) if len(labels) else None
    row: Row = {"label": name, "positives": positives, "negatives": len(labels) - positives, "prevalence": prevalence}
    reason = why_undefined(labels)
    row |= {"auroc": None, "auroc_interval": None, "average_precision": None, "average_precision_interval": None}
    if reason:
        undefined += [_gap(name, score, reason) for score in ("auroc", "average_precision")]
        warnings.append(f"{name}: {reason}, so nothing tells how well it is recognised.")
    else:
        row["auroc"], row["average_precision"] = auroc(probs, labels), average_precision(probs, labels)
        for score, statistic in (("auroc", areas_of), ("average_precision", precisions_of)):
            found = draws.interval(statistic(probs, labels))
            row[f"{score}_interval"] = _limits(found, name, f"{score}_interval", undefined)
        warnings += _about_label(row)
    row |= _decisions(probs, labels, name, threshold, undefined)
    row |= {
        "expected_calibration_error": expected_calibration_error(probs, labels),
        "brier": brier(probs, labels),
        "brier_of_prevalence": None if prevalence is None else prevalence * (1 - prevalence),
        "reliability": [asdict(each) for each in reliability(probs, labels)],
    }
    return row


def _decisions(
    probs: npt.NDArray[np.float64], labels: npt.NDArray[Any], name: str, threshold: float | None, undefined: list[Row]
) -> Row:
    row: Row = {"threshold": threshold}
    scores = ("sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value")
    if threshold is None:
        undefined.append(_gap(name, "sensitivity, specificity, predictive values", "no threshold was chosen"))
        nothing: Row = dict.fromkeys(("tp", "fp", "fn", "tn", "f1"))
        return row | nothing | {key: None for score in scores for key in (score, f"{score}_interval")}
    counts = confusion_at(probs, labels, threshold)
    row |= {**asdict(counts), "f1": counts.f1}
    parts = (
        ("sensitivity", counts.tp, counts.fn, "no positive case"),
        ("specificity", counts.tn, counts.fp, "no negative case"),
        ("positive_predictive_value", counts.tp, counts.fp, "no case was called positive"),
        ("negative_predictive_value", counts.tn, counts.fn, "no case was called negative"),
    )
    for score, right, wrong, reason in parts:
        total = right + wrong
        row[score] = right / total if total else None
        row[f"{score}_interval"] = wilson_interval(right, total)
        if not total:
            undefined.append(_gap(name, score, reason))
    return row


def _about_label(row: Row) -> list[str]:
    warnings = [
        f"{row['label']}: only {row[kind]} {kind[:-1]} case{'' if row[kind] == 1 else 's'}; its intervals are wide, "
        "and its scores may be chance."
        for kind in ("positives", "negatives")
        if row[kind] < FEW_CASES
    ]
    if row["auroc"] in (0.0, 1.0):
        warnings.append(
            f"{row['label']}: the AUROC is {row['auroc']:g} in every draw, so there is no interval; with "
            f"{row['positives']} positive and {row['negatives']} negative cases that is no proof of perfection."
        )
    return warnings


def _about_cases(cases: int, draws: Draws) -> list[str]:
    warnings = []
    patients = len(set(draws.patients))
    if patients < cases:
        warnings.append(
            f"{cases} cases are of {patients} patients. Intervals of AUROC, average precision and accuracy take that "
            "into account; Wilson intervals do not and are somewhat too narrow."
        )
    if cases < FEW_FOR_CALIBRATION:
        warnings.append(
            f"With {cases} cases the expected calibration error is too large by chance; read it with the counts of the "
            "reliability plot."
        )
    return warnings


def multiclass_summary(probs: npt.ArrayLike, labels: npt.ArrayLike, label_names: Sequence[str], draws: Draws) -> Row:
    """Score cases that have exactly one of several classes.

    Args:
        probs: (N, K) between 0 and 1.
        labels: (N,) number of the right class.
        label_names: K names.
        draws: Patients, and how often they are drawn.

    Returns:
        "summary" of the whole, "classes" with a row for each, "confusion" (rows are the truth), "undefined" scores with
        reasons, "warnings" in words.

    Raises:
        ValueError: If the arrays do not fit each other or a row is no probability.
    """
    given, wanted = checked_classes(probs, labels)
    scores = multiclass_scores(given, wanted)
    undefined: list[Row] = []
    confidence, decided = given.max(axis=1), given.argmax(axis=1)
    right = decided == wanted
    in_five = (np.argsort(-given, axis=1, kind="stable")[:, :5] == wanted[:, None]).any(axis=1)
    shown = [row["class"] for row in scores["per_class"] if row["support"]]
    ranked = [row["class"] for row in scores["per_class"] if row["auroc"] is not None]
    hits = {"accuracy": right, "top1": right, "top5": in_five}
    statistics = {name: share_of(each) for name, each in hits.items()} | _class_means(decided, wanted, shown)
    if ranked:
        statistics["auroc"] = mean_of([areas_of(given[:, k], wanted == k) for k in ranked])
    whole: Row = {}
    for name in ("accuracy", "top1", "top5", "balanced_accuracy", "precision", "recall", "f1", "auroc"):
        whole[name] = scores[name]
        statistic = statistics.get(name)
        if statistic is not None:
            slow = name not in hits and given.size * draws.repeats > MOST_WEIGHED
            found = Bootstrap(None, "too many classes and cases", 0, 0) if slow else draws.interval(statistic)
            certain = name == "top5" and given.shape[1] <= 5  # all classes are among them
            whole |= _interval(name, found, None if certain else hits.get(name), draws, undefined)
        if scores[name] is None:
            undefined.append(
                _gap("all classes", name, "no class has cases of both kinds" if len(wanted) else "no case")
            )
    squares = (given - np.eye(given.shape[1])[wanted]) ** 2
    whole |= {
        "expected_calibration_error": expected_calibration_error(confidence, right),
        "brier": float(squares.sum(axis=1).mean()) if len(wanted) else None,
        "reliability": [asdict(each) for each in reliability(confidence, right)],
    }
    rows = [_class_row(row, label_names[row["class"]], len(wanted), undefined) for row in scores["per_class"]]
    few = [row["label"] for row in rows if 0 < row["positives"] < FEW_CASES]
    warnings = [f"Fewer than {FEW_CASES} cases each, so that scores may be chance: {', '.join(few)}."] if few else []
    if len(shown) < len(rows):
        warnings.append(f"Means over classes are over the {len(shown)} of {len(rows)} classes that cases have.")
    warnings += _about_cases(len(wanted), draws)
    return {
        "summary": whole,
        "classes": rows,
        "confusion": scores["confusion"],
        "undefined": undefined,
        "warnings": warnings,
    }


def _class_means(decided: npt.NDArray[Any], wanted: npt.NDArray[Any], shown: Sequence[int]) -> dict[str, Statistic]:
    """Means over the classes that cases have; of each draw over those that its cases have."""
    if not shown:
        return {}
    recalls, precisions, f1s = [], [], []
    for k in shown:
        called, there = (decided == k).astype(np.float64), (wanted == k).astype(np.float64)
        recalls.append(share_of(called, there))
        precisions.append(ratio_of(called * there, called, there))
        f1s.append(ratio_of(2 * called * there, called + there, there))
    recall = mean_of(recalls)
    return {"balanced_accuracy": recall, "recall": recall, "precision": mean_of(precisions), "f1": mean_of(f1s)}


def _interval(name: str, found: Bootstrap, hits: Any, draws: Draws, undefined: list[Row]) -> Row:
    """The interval of a score of the whole, and how it was made.

    A share that is 0 or 1 is so in every draw. Wilson's interval then takes each patient for one case, of whom all or
    none are right.
    """
    limits, method = found.limits, "bootstrap of patients"
    patients = len(set(draws.patients))
    if limits is None and hits is not None and patients > 1 and (all(hits) or not any(hits)):
        limits = wilson_interval(patients if all(hits) else 0, patients)
        method = f"Wilson, {patients} patients as independent cases"
    elif limits is None:
        undefined.append(_gap("all classes", f"{name}_interval", found.reason or ""))
    return {f"{name}_interval": limits, f"{name}_interval_method": None if limits is None else method}


def _class_row(row: Row, name: str, cases: int, undefined: list[Row]) -> Row:
    missing = [score for score in ("precision", "recall", "f1", "auroc") if row[score] is None]
    if missing:
        undefined.append(_gap(name, ", ".join(missing), row["reason"]))
    support, found = row["support"], round((row["recall"] or 0.0) * row["support"])
    return {
        "label": name,
        "positives": support,
        "predicted": row["predicted"],
        "prevalence": support / cases if cases else None,
        **{score: row[score] for score in ("precision", "recall")},
        "recall_interval": wilson_interval(found, support),
        **{score: row[score] for score in ("f1", "auroc")},
    }


def _limits(found: Bootstrap, label: str, score: str, undefined: list[Row]) -> tuple[float, float] | None:
    if found.limits is None:
        undefined.append(_gap(label, score, found.reason or ""))
    return found.limits


def _gap(label: str, score: str, reason: str) -> Row:
    return {"label": label, "score": score, "reason": reason}
