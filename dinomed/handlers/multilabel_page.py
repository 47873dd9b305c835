"""The page of an evaluation of cases that have any number of labels, in the order in which a reader asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
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
    percent,
    plot,
    tail,
    with_interval,
)
from dinomed.handlers.classification_plots import Panel, draw_precision_recall, draw_reliability, draw_roc
from dinomed.handlers.page_parts import Aligned, document, section, table

MEANINGS = (
    (
        "AUROC",
        "probability that a case with the label gets a higher probability than one without; 0.5 is chance, 1 is "
        "perfect. It needs no threshold.",
    ),
    ("Average precision", "area under the precision-recall curve; chance gives the prevalence, 1 is perfect."),
    (
        "Sensitivity, specificity",
        "share of the cases with the label that were called positive, and of those without it "
        "that were called negative.",
    ),
    (
        "PPV, NPV",
        "share of the positive calls, and of the negative ones, that are right. Both hold at the prevalence of "
        "this data only: where the label is rarer, the PPV is lower.",
    ),
    (
        "Calibration",
        "of all cases with a probability of 0.3, about 30 % should have the label. The expected calibration "
        "error (ECE) is the mean distance from that over ten ranges of probability; the Brier score is the mean "
        "squared error of the probabilities, to be compared with what always saying the prevalence gives.",
    ),
)


def multilabel_html(page: ClassificationPage) -> str:
    """Return the page of cases that have any number of labels."""
    rows = page.found["labels"]
    panels = [Panel(row["label"], page.probs[:, k], page.labels[:, k], row) for k, row in enumerate(rows)]
    whole = page.found["summary"]
    numbers = {"macro AUROC": whole["macro_auroc"], "macro average precision": whole["macro_average_precision"]}
    shown = counted(page) | {"labels": len(rows)} | numbers
    ranked = whole["macro_auroc_labels"]
    mean = f"Mean AUROC over {len(ranked)} of {len(rows)} labels: {with_interval(whole, 'macro_auroc')}."
    missing = [row["label"] for row in rows if row["auroc"] is None]
    names = escape(", ".join(missing))
    without = f'<p class="dim">Without a curve, for reasons that are below: {names}.</p>' if missing else ""
    body = [
        *head(page, shown, mean, {"positive": "; ".join(_prevalence(row) for row in rows)}),
        section("How well labels are recognised", intervals_note(page) + table([_ranking_row(row) for row in rows])),
        section("Decisions", _decisions(page, rows)),
        section("ROC curves", plot(draw_roc(panels), "ROC curve of each label", len(panels)) + without),
        section(
            "Precision and recall",
            plot(draw_precision_recall(panels), "precision-recall curves", len(panels)) + without,
        ),
        section("Are the probabilities what they say?", _calibration(rows)),
        section("Errors", _errors(page, rows)),
        *tail(page, MEANINGS),
    ]
    return document(f"Evaluation of {page.title}", body)


def _prevalence(row: Mapping[str, Any]) -> str:
    return f"{row['label']}: {row['positives']} ({percent(row['prevalence'])})"


def _ranking_row(row: Mapping[str, Any]) -> dict[str, Any]:
    prevalence = row["prevalence"]
    return {
        "label": row["label"],
        "positive": row["positives"],
        "negative": row["negatives"],
        "prevalence": percent(prevalence),
        "AUROC (95 % CI)": Aligned(with_interval(row, "auroc")),
        "average precision (95 % CI)": Aligned(with_interval(row, "average_precision")),
        "average precision by chance": prevalence if row["average_precision"] is not None else None,
    }


def _decisions(page: ClassificationPage, rows: Sequence[Mapping[str, Any]]) -> str:
    decided = [row for row in rows if row["threshold"] is not None]
    missing = [row["label"] for row in rows if row["threshold"] is None]
    parts = []
    if decided:
        told = "; the cases of this page had no say in them" if page.thresholds_chosen_elsewhere else ""
        parts.append(
            "<p>A case is called positive where its probability is at or above the threshold. Thresholds come from "
            f"{escape(page.threshold_source)}{told}. Intervals are Wilson's, 95 %.</p>"
        )
        parts.append(table([_decision_row(row) for row in decided]))
        parts.append("<h3>How far a decision can be trusted</h3>")
        parts.append(table([_predictive_row(row) for row in decided]))
    if missing:
        names = escape(", ".join(missing))
        parts.append(f"<p>No threshold was chosen for: {names}. So there is no decision, and none is made up here.</p>")
    return "\n".join(parts)


def _decision_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": row["label"],
        "threshold": Aligned(f"{row['threshold']:.4g}"),
        "sensitivity (95 % CI)": Aligned(with_interval(row, "sensitivity")),
        "specificity (95 % CI)": Aligned(with_interval(row, "specificity")),
        "found (TP)": row["tp"],
        "missed (FN)": row["fn"],
        "false alarms (FP)": row["fp"],
        "rightly negative (TN)": row["tn"],
    }


def _predictive_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": row["label"],
        "prevalence here": percent(row["prevalence"]),
        "PPV at this prevalence (95 % CI)": Aligned(with_interval(row, "positive_predictive_value")),
        "NPV at this prevalence (95 % CI)": Aligned(with_interval(row, "negative_predictive_value")),
        "F1": row["f1"],
    }


def _calibration(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        {
            "label": row["label"],
            "ECE": row["expected_calibration_error"],
            "Brier score": row["brier"],
            "Brier score of always saying the prevalence": row["brier_of_prevalence"],
        }
        for row in rows
    ]
    return table(lines) + plot(draw_reliability(rows), "reliability of the probabilities", len(rows))


def _errors(page: ClassificationPage, rows: Sequence[Mapping[str, Any]]) -> str:
    """Missed cases and false alarms of each label, most confident errors first."""
    parts = []
    for k, row in enumerate(rows):
        if row["threshold"] is None:
            continue
        probs, positive = page.probs[:, k], page.labels[:, k] == 1
        called = probs >= row["threshold"]
        for heading, wrong, order in (
            ("missed (false negatives), lowest probability first", positive & ~called, probs),
            ("false alarms (false positives), highest probability first", ~positive & called, -probs),
        ):
            listed = [int(i) for i in np.argsort(order, kind="stable") if wrong[i]]
            parts.append(f"<h3>{escape(row['label'])}: {len(listed)} {heading}</h3>")
            lines = [error_row(page, index, {"probability": float(probs[index])}) for index in listed[:MOST_ERRORS]]
            parts.append(table(lines) + more(len(listed)))
    return "\n".join(parts) or "<p>Without thresholds there are no decisions that could be wrong.</p>"
