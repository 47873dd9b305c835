"""The page of an evaluation of cases that have exactly one of several classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinomed.handlers.classification_page import (
    MOST_ERRORS,
    ClassificationPage,
    counted,
    error_row,
    head,
    intervals_note,
    more,
    plot,
    rounded,
    tail,
    with_interval,
)
from dinomed.handlers.classification_plots import Panel, draw_matrix, draw_reliability, draw_roc
from dinomed.handlers.page_parts import Aligned, document, image, section, table

MANY_CLASSES = 12
"""Up to so many classes each has its curve."""

MEANINGS = (
    (
        "Accuracy",
        "share of the cases whose most probable class is the right one (top-1); in top-5 the right one is "
        "among the five most probable.",
    ),
    ("Balanced accuracy", "mean recall over classes, so that rare classes count as much as frequent ones."),
    (
        "Precision, recall, F1",
        "share of a class's predictions that are right, share of its cases that were found, and their harmonic mean.",
    ),
    (
        "AUROC",
        "one class against the rest: probability that a case of the class gets a higher probability for it than "
        "another case; 0.5 is chance, 1 is perfect.",
    ),
    (
        "Calibration",
        "of all cases whose most probable class has a probability of 0.8, about 80 % should be right. The "
        "expected calibration error (ECE) is the mean distance from that over ten ranges of probability.",
    ),
)


def multiclass_html(page: ClassificationPage) -> str:
    """Return the page of cases that have exactly one class."""
    rows, whole = page.found["classes"], page.found["summary"]
    names = ("accuracy", "top5", "balanced_accuracy", "f1", "auroc")
    words = {"top5": f"top-{min(5, len(rows))}", "f1": "macro F1", "auroc": "macro AUROC"}
    words |= {"precision": "macro precision", "recall": "macro recall"}
    shown = counted(page) | {"classes": len(rows)}
    shown |= {words.get(name, name.replace("_", " ")): whole[name] for name in names}
    mean = "Accuracy " + with_interval(whole, "accuracy") + "."
    scores = [
        {
            "score": words.get(name, name.replace("_", " ")),
            "value with 95 % CI": Aligned(with_interval(whole, name)),
            "the interval is": whole.get(f"{name}_interval_method"),
        }
        for name in (*names, "precision", "recall")
    ]
    panels = [Panel(row["label"], page.probs[:, k], (page.labels == k).astype(int), row) for k, row in enumerate(rows)]
    few = len(panels) <= MANY_CLASSES
    reliability = [{"label": "most probable class", **whole}]
    error, brier = rounded(whole["expected_calibration_error"]), rounded(whole["brier"])
    body = [
        *head(page, shown, mean),
        section("The whole", intervals_note(page) + table(scores)),
        section("Classes", table([_class_row(row) for row in rows])),
        section(
            "Confusion matrix",
            "<p>Cases by right class (rows) and predicted class (columns); the shade is the share of the row.</p>"
            + image(draw_matrix(np.asarray(page.found["confusion"]), page.label_names), "confusion matrix"),
        ),
        section("ROC curves, one class against the rest", plot(draw_roc(panels), "ROC curves", len(panels)))
        if few
        else "",
        section(
            "Are the probabilities what they say?",
            f"<p>Expected calibration error {error}; Brier score, summed over classes, {brier}.</p>"
            + plot(draw_reliability(reliability, "share of right decisions"), "reliability of the probabilities", 1),
        ),
        section("Worst errors", _class_errors(page)),
        *tail(page, MEANINGS),
    ]
    return document(f"Evaluation of {page.title}", body)


def _class_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "class": row["label"],
        "cases": row["positives"],
        "predicted": row["predicted"],
        "precision": row["precision"],
        "recall (95 % CI, Wilson)": Aligned(with_interval(row, "recall")),
        "F1": row["f1"],
        "AUROC against the rest": row["auroc"],
    }


def _class_errors(page: ClassificationPage) -> str:
    """Cases of which the program was surest and wrong."""
    decided, highest = page.probs.argmax(axis=1), page.probs.max(axis=1)
    listed = [int(i) for i in np.argsort(-highest, kind="stable") if decided[i] != page.labels[i]]
    lines = [
        error_row(
            page,
            index,
            {
                "right class": page.label_names[int(page.labels[index])],
                "its probability": float(page.probs[index, page.labels[index]]),
                "predicted class": page.label_names[int(decided[index])],
                "probability of it": float(highest[index]),
            },
        )
        for index in listed[:MOST_ERRORS]
    ]
    told = f"<p>{len(listed)} of {len(page.cases)} cases are wrong; those with the highest probability come first.</p>"
    return told + (table(lines) if lines else "") + more(len(listed))
