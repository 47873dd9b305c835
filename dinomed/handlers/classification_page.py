"""What the pages of all evaluations of classified cases share: their head, their end, and how scores are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from dinomed.handlers.classification_cases import ClassifiedCase
from dinomed.handlers.classification_plots import MOST_PANELS
from dinomed.handlers.page_parts import Aligned, cards, image, section, settings, table
from dinomed.transforms.report import NOTICE

MOST_ERRORS = 30
"""Errors that the page lists of each label and kind; cases.csv has all."""

FIRST = ("bundle", "version", "task", "weights_file", "weights_sha256", "calibration_from", "data", "table", "part")
"""What a reader wants to know first; the rest stands at the end."""

PLAIN_WORDS = (
    "This page tells how often a computer program and the labels in the data agree. It is no medical device, it does "
    "not show that the program is safe or of use for patients, and cases from elsewhere can give other numbers."
)


@dataclass(frozen=True)
class ClassificationPage:
    """What the page shows.

    Attributes:
        title: Name of what was evaluated.
        about: Bundle, weights, data, settings, by name.
        counts: Numbers of cases, studies and patients; None where unknown.
        found: Scores, as `dinomed.metrics.classification_summary` gives them.
        label_names: K names.
        threshold_source: Where thresholds come from.
        thresholds_chosen_elsewhere: Whether it is known that they were not chosen on these cases.
        unit: What intervals draw: "patient", "study" or "case".
        repeats: Draws of patients for an interval.
        case_word: What cases are, in the plural.
        cases: N cases.
        probs: (N, K).
        labels: (N, K) 0 or 1, or (N,) class numbers.
    """

    title: str
    about: Mapping[str, Any]
    counts: Mapping[str, int | None]
    found: Mapping[str, Any]
    label_names: Sequence[str]
    threshold_source: str
    thresholds_chosen_elsewhere: bool
    unit: str
    repeats: int
    case_word: str
    cases: Sequence[ClassifiedCase]
    probs: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


def head(
    page: ClassificationPage, shown: Mapping[str, Any], mean: str, prevalences: Mapping[str, str] | None = None
) -> list[str]:
    """Return the head of a page: what this is, the main numbers, what was evaluated, and warnings."""
    first = {key: page.about[key] for key in FIRST if page.about.get(key) is not None}
    first |= {
        page.case_word if key == "cases" else key: "not known" if value is None else value
        for key, value in page.counts.items()
    }
    first |= prevalences or {}
    warnings = "".join(f"<li>{escape(text)}</li>" for text in page.found["warnings"])
    return [
        f"<h1>{escape(f'Evaluation of {page.title}')}</h1>",
        f'<p class="notice">{escape(NOTICE)}</p>',
        f"<p>{escape(PLAIN_WORDS)}</p>",
        cards(shown),
        f"<p>{escape(mean)}</p>",
        section("What was evaluated", settings(first)),
        section("Read this first", f"<ul>{warnings}</ul>") if warnings else "",
    ]


def tail(page: ClassificationPage, meanings: Sequence[tuple[str, str]]) -> list[str]:
    """Return the end of a page: gaps, meanings of words, settings."""
    gaps = [
        {"of": gap["label"], "score": gap["score"].replace("_", " ").replace("auroc", "AUROC"), "why": gap["reason"]}
        for gap in page.found["undefined"]
    ]
    told = "".join(f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in meanings)
    rest = {key: value for key, value in page.about.items() if key not in FIRST and value not in (None, [], {})}
    return [
        section("What is undefined, and why", table(gaps) if gaps else "<p>Nothing.</p>"),
        section("What the words mean", f"<ul>{told}</ul>"),
        section("How this was made", settings(rest)),
        '<p class="dim">Beside this page: cases.csv (a row a case), metrics.json (all numbers).</p>',
    ]


def counted(page: ClassificationPage) -> dict[str, Any]:
    """Return the numbers of cases, studies and patients that are known."""
    words = {"cases": page.case_word}
    return {words.get(key, key): value for key, value in page.counts.items() if value is not None}


def intervals_note(page: ClassificationPage) -> str:
    """Say how intervals were made, as HTML."""
    drawn = escape({"patient": "patients", "study": "studies"}.get(page.unit, page.case_word))
    whole = "" if page.unit == "case" else ", each with all cases"
    return (
        f"<p>Intervals are 95 % bootstrap intervals: {drawn} were drawn anew {page.repeats} times, as many as there "
        f"are{whole}; the limits are the 2.5th and the 97.5th percentile of what the draws gave. Where all draws gave "
        "the same, as of a perfect score, there is no such interval; a share of right decisions then has Wilson's.</p>"
    )


def error_row(page: ClassificationPage, index: int, rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a case that was decided wrongly as a row, with its labels if it can have several."""
    case = page.cases[index]
    row: dict[str, Any] = {"case": case.case}
    if any(each.patient is not None for each in page.cases):
        row["patient"] = case.patient or "not known"
    row |= rest
    if page.labels.ndim == 2:
        named = [name for name, value in zip(page.label_names, page.labels[index], strict=True) if value == 1]
        row["labels of the case"] = ", ".join(named) or "none"
    return row


def more(errors: int) -> str:
    """Say how many errors are not listed, as HTML."""
    if errors <= MOST_ERRORS:
        return ""
    return f'<p class="dim">{errors - MOST_ERRORS} more are in cases.csv.</p>'


def plot(png: bytes | None, text: str, panels: int) -> str:
    """Return a picture with what it leaves out, or why there is none, as HTML."""
    if png is None:
        return "<p>Undefined for every label; the reasons are below.</p>"
    left = f'<p class="dim">The first {MOST_PANELS} are drawn.</p>' if panels > MOST_PANELS else ""
    return image(png, text) + left


def percent(share: float | None) -> Aligned:
    """Return a share in per cent."""
    return Aligned("-" if share is None else f"{100 * share:.1f} %")


def rounded(value: float | None) -> str:
    """Return a score in three digits; a dash for None."""
    return "-" if value is None else f"{value:.3f}"


def with_interval(row: Mapping[str, Any], score: str) -> str:
    """Return a score with its interval in words."""
    name = f"{score}_interval"
    if row[score] is None:
        return "undefined"
    if row.get(name) is None:
        return rounded(row[score]) + (" (no interval)" if name in row else "")
    return f"{rounded(row[score])} ({rounded(row[name][0])} to {rounded(row[name][1])})"
