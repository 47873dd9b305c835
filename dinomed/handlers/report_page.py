"""The report of an evaluation as one HTML page that needs nothing else: no script, no link, pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from dinomed.handlers.page_parts import cards, document, image, number, section, settings, table
from dinomed.metrics.case_scores import Row
from dinomed.transforms.report import NOTICE

MOST_ROWS = 300
"""Cases that the page lists; the CSV has all."""

HEADINGS = {
    "dice": "Dice",
    "hd95_mm": "HD95 in mm",
    "nsd": "NSD",
    "iou": "IoU",
    "accuracy": "accuracy",
    "mean_dice": "mean Dice",
    "mean_hd95_mm": "mean HD95 in mm",
    "mean_nsd": "mean NSD",
    "mean_iou": "mean IoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
}
MEANINGS = {
    "dice": "Dice: overlap of both label maps, 2 |A and B| / (|A| + |B|); 1 is perfect, 0 is none.",
    "hd95_mm": "HD95: the distance in mm that 95 % of both surfaces stay within; 0 is perfect. There is none where "
    "only one map has the label; such cases are counted as missed or added.",
    "nsd": "NSD: share of both surfaces within the tolerance of the other one; 1 is perfect.",
    "iou": "IoU: intersection over union, |A and B| / |A or B|; 1 is perfect, 0 is none.",
    "accuracy": "Accuracy: share of a label's reference pixels that were predicted so; the mean is over labels.",
    "pixel_accuracy": "Pixel accuracy: share of all counted pixels that were predicted rightly.",
}


@dataclass(frozen=True)
class Figure:
    """A case's picture.

    Attributes:
        caption: What it shows.
        png: The picture.
        labels: Rows of the case.
    """

    caption: str
    png: bytes
    labels: Sequence[Row]


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Attributes:
        title: Name of what was evaluated.
        about: Data, bundle, version, seed, settings, by name.
        summary: Scores of the whole.
        classes: A row per label.
        regions: A row per union of labels.
        cases: A row per case, worst first.
        kinds: Names of the scores.
        worst: Pictures.
        best: Pictures.
        confusion_png: The confusion matrix.
        files: Names of the files beside the page.
    """

    title: str
    about: Mapping[str, Any]
    summary: Row
    classes: Sequence[Row]
    regions: Sequence[Row]
    cases: Sequence[Row]
    kinds: Sequence[str]
    worst: Sequence[Figure]
    best: Sequence[Figure]
    confusion_png: bytes
    files: Sequence[str]


def to_html(page: Page) -> str:
    """Return the page as HTML text."""
    title = f"Evaluation of {page.title}"
    absent = [row["name"] for row in page.classes if not row["cases"] and not row["spurious"]]
    shown = [row for row in page.classes if row["cases"] or row["spurious"]]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="notice">{escape(NOTICE)}</p>',
        cards(page.summary, _heading),
        _meanings(page.kinds, page.about),
        section("Labels", _table(shown, page.kinds)),
        f'<p class="dim">In neither map of any case, and so without a score: {escape(", ".join(absent))}.</p>'
        if absent
        else "",
        section("Unions of labels", _table(page.regions, page.kinds)) if page.regions else "",
        _figures("Worst cases", page.worst),
        _figures("Best cases", page.best),
        section("Cases, worst first", _table(page.cases[:MOST_ROWS], page.kinds)),
        f'<p class="dim">{len(page.cases) - MOST_ROWS} better ones are in cases.csv.</p>'
        if len(page.cases) > MOST_ROWS
        else "",
        section(
            "Confusion matrix",
            "<p>A row says what became of a reference label: its share in per cent by predicted label. "
            "Labels that do not occur are left out; confusion.csv has the counts.</p>"
            + image(page.confusion_png, "confusion matrix"),
        ),
        section("How this was made", settings(page.about)),
        f'<p class="dim">Beside this page: {escape(", ".join(page.files))}.</p>',
    ]
    return document(title, body)


def _meanings(kinds: Sequence[str], about: Mapping[str, Any]) -> str:
    names = [*kinds, "pixel_accuracy"] if "iou" in kinds else list(kinds)
    lines = "".join(f"<li>{escape(MEANINGS[kind])}</li>" for kind in names)
    tolerance = about.get("tolerance_mm")
    told = f" The tolerance of NSD is {escape(number(tolerance))} mm." if tolerance is not None else ""
    return (
        f"<ul>{lines}</ul><p>A label that neither map of a case has is left out there and in every mean.{told} "
        "<b>Missed</b>: cases whose reference has the label and whose prediction has nothing of it; "
        "<b>added</b>: the other way round.</p>"
    )


def _heading(key: str) -> str:
    if key in HEADINGS:
        return HEADINGS[key]
    kind, _, how = key.rpartition("_")
    if kind in HEADINGS:
        return f"{HEADINGS[kind]}, {how}"
    return {"spurious": "added"}.get(key, key.replace("_", " "))


def _table(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """Return rows as a table; scores between 0 and 1 have a bar behind them."""
    keys = rows[0] if rows else ()
    barred = [key for key in keys if _heading(key).split(",")[0].removeprefix("mean ") in ("Dice", "NSD", "IoU")]
    return table(rows, _heading, barred)


def _figures(heading: str, figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    parts = []
    for each in figures:
        rows = [row for row in each.labels if row["found"] != "absent"]
        rows = [{key: value for key, value in row.items() if key != "found"} | {"found": row["found"]} for row in rows]
        rows_html = f"<details><summary>its labels</summary>{_table(rows, ())}</details>"
        caption = escape(each.caption)
        parts.append(f"<figure><figcaption>{caption}</figcaption>{image(each.png, each.caption)}{rows_html}</figure>")
    return section(heading, "\n".join(parts))
