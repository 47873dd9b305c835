"""Tables of an evaluation: by case, by label, by both, and the confusion matrix; as CSV, and as one JSON file."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dinomed.metrics.case_scores import IMAGE_KINDS, VOLUME_KINDS, CaseScores, Row, image_rows
from dinomed.metrics.overlap import segmentation_scores
from dinomed.transforms.provenance import to_json

SCHEMA = "dinomed-evaluation-1"
WORST = {"dice": min, "nsd": min, "hd95_mm": max}
DIGITS = 4


def pooled_confusion(cases: Sequence[CaseScores], labels: int) -> Tensor:
    """Add up the confusion matrices of all cases: (labels, labels) int64."""
    total = torch.zeros(labels, labels, dtype=torch.int64)
    for case in cases:
        total += case.confusion  # sparse
    return total


def class_rows(cases: Sequence[CaseScores], names: Mapping[int, str]) -> list[Row]:
    """Return one row per label of volumes: its scores' mean, median and worst over the cases.

    Args:
        cases: Cases of volumes.
        names: Of the labels to give, by number.
    """
    by_label = _by_label(cases)
    return [{"label": label, "name": name, **_over_cases(by_label[label])} for label, name in names.items()]


def region_rows(cases: Sequence[CaseScores]) -> list[Row]:
    """Return one row per union of labels, which every case has."""
    by_region = zip(*(case.regions for case in cases), strict=True)
    return [{"label": same[0]["label"], "name": same[0]["name"], **_over_cases(same)} for same in by_region]


def _by_label(cases: Sequence[CaseScores]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = defaultdict(list)
    for case in cases:
        for row in case.labels:
            found[row["label"]].append(row)
    return found


def _over_cases(same: Sequence[Row]) -> Row:
    row: Row = _presence(same)
    for kind in VOLUME_KINDS:
        values = [each[kind] for each in same if each[kind] is not None]
        row[f"{kind}_mean"] = statistics.fmean(values) if values else None
        row[f"{kind}_median"] = statistics.median(values) if values else None
        row[f"{kind}_worst"] = WORST[kind](values) if values else None
    for key in ("reference_voxels", "predicted_voxels"):
        row[key] = sum(each[key] for each in same)
    return row


def image_class_rows(
    cases: Sequence[CaseScores], label_names: Sequence[str], ignore_index: int | None = None
) -> list[Row]:
    """Return one row per label: its scores over the pixels of all pictures together."""
    by_label = _by_label(cases)
    rows = image_rows(pooled_confusion(cases, len(label_names)), label_names, ignore_index)
    return [
        {"label": row["label"], "name": row["name"], **_presence(by_label[row["label"]])}
        | {key: row[key] for key in row if key not in _OWN}
        for row in rows
    ]


_OWN = ("label", "name", "found")


def _presence(same: Sequence[Row]) -> Row:
    kinds = [row["found"] for row in same]
    return {
        "cases": kinds.count("both") + kinds.count("missed"),
        "missed": kinds.count("missed"),
        "spurious": kinds.count("spurious"),
    }


def summary(cases: Sequence[CaseScores], classes: Sequence[Row], is_volume: bool, confusion: Tensor) -> Row:
    """Return the scores of the whole evaluation by name; None where nothing speaks of one.

    For volumes each is the mean over labels of their means over cases, for pictures that of all pixels together.

    Args:
        cases: All cases.
        classes: A row per label.
        is_volume: Which kind the cases are.
        confusion: (labels, labels), of all cases.
    """
    if is_volume:
        means = {}
        for kind in VOLUME_KINDS:
            known = [row[f"{kind}_mean"] for row in classes if row[f"{kind}_mean"] is not None]
            means[f"mean_{kind}"] = statistics.fmean(known) if known else None
        return {"cases": len(cases), **means}
    ignored = sorted(set(range(len(confusion))) - {row["label"] for row in classes})
    scores = segmentation_scores(confusion, None, ignored[0] if ignored else None)
    kinds = (*(f"mean_{kind}" for kind in IMAGE_KINDS), "pixel_accuracy")
    return {"cases": len(cases), **{kind: scores.get(kind) for kind in kinds}}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header; numbers rounded, what there is none of left empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain_cell(value) for key, value in row.items()} for row in rows)
    return stream.getvalue()


def _plain_cell(value: Any) -> Any:
    """Round numbers; a text that a spreadsheet would take for a formula becomes a text to it too."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def case_rows(cases: Sequence[CaseScores]) -> list[Row]:
    """Return one row per case: its means."""
    return [{"case": case.case, **case.summary} for case in cases]


def score_rows(cases: Sequence[CaseScores]) -> list[Row]:
    """Return one row per case and label (and union of labels) that either map has."""
    return [
        {"case": case.case, **row}
        for case in cases
        for row in (*case.labels, *case.regions)
        if row["found"] != "absent"
    ]


def confusion_csv(confusion: Tensor, label_names: Sequence[str]) -> str:
    """Return the counts as CSV: a row per reference label, a column per predicted one, by name."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["reference \\ predicted", *map(_plain_cell, label_names)])
    for name, row in zip(label_names, confusion.tolist(), strict=True):
        writer.writerow([_plain_cell(name), *row])
    return stream.getvalue()


def to_json_text(
    about: Mapping[str, Any], whole: Row, classes: Sequence[Row], regions: Sequence[Row], cases: Sequence[CaseScores]
) -> str:
    """Return everything but the confusion matrix as strict JSON: no NaN, null where there is no score."""
    content = {
        "schema": SCHEMA,
        "about": about,
        "summary": whole,
        "classes": list(classes),
        "regions": list(regions),
        "cases": [
            {"case": case.case, **case.summary, "labels": case.labels, "regions": case.regions} for case in cases
        ],
    }
    return json.dumps(_rounded(to_json(content)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
