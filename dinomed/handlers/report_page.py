"""The report of an evaluation as one HTML page that needs nothing else: no script, no link, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

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
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 1180px;
  padding: 1.2em; }
h1 { font-size: 1.6em; margin: 0 0 .2em; } h2 { font-size: 1.2em; margin: 2em 0 .5em; } h3 { font-size: 1em; }
.notice { color: #7a3b00; font-weight: 600; } .dim { color: #666; }
.cards { display: flex; flex-wrap: wrap; gap: .8em; margin: 1em 0; }
.card { border: 1px solid #ccc; border-radius: 6px; padding: .5em 1em; min-width: 7em; }
.card b { display: block; font-size: 1.6em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88em; }
th, td { padding: .25em .5em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { background: #f2f4f7; } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 11em; max-width: 46em; }
td.bar { background-repeat: no-repeat; background-image: linear-gradient(#bcd9ee, #bcd9ee); }
img { max-width: 100%; height: auto; } figure { margin: 1em 0; } figcaption { font-weight: 600; margin-bottom: .3em; }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


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
    title = escape(f"Evaluation of {page.title}")
    absent = [row["name"] for row in page.classes if not row["cases"] and not row["spurious"]]
    shown = [row for row in page.classes if row["cases"] or row["spurious"]]
    body = [
        f"<h1>{title}</h1>",
        f'<p class="notice">{escape(NOTICE)}</p>',
        _cards(page.summary),
        _meanings(page.kinds, page.about),
        _section("Labels", _table(shown, page.kinds)),
        f'<p class="dim">In neither map of any case, and so without a score: {escape(", ".join(absent))}.</p>'
        if absent
        else "",
        _section("Unions of labels", _table(page.regions, page.kinds)) if page.regions else "",
        _figures("Worst cases", page.worst),
        _figures("Best cases", page.best),
        _section("Cases, worst first", _table(page.cases[:MOST_ROWS], page.kinds)),
        f'<p class="dim">{len(page.cases) - MOST_ROWS} better ones are in cases.csv.</p>'
        if len(page.cases) > MOST_ROWS
        else "",
        _section(
            "Confusion matrix",
            "<p>A row says what became of a reference label: its share in per cent by predicted label. "
            "Labels that do not occur are left out; confusion.csv has the counts.</p>"
            + _image(page.confusion_png, "confusion matrix"),
        ),
        _section("How this was made", _settings(page.about)),
        f'<p class="dim">Beside this page: {escape(", ".join(page.files))}.</p>',
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style>"
    )
    lines = "\n".join(part for part in body if part)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{lines}\n</body>\n</html>\n'


def _section(heading: str, content: str) -> str:
    return f"<h2>{escape(heading)}</h2>\n{content}"


def _cards(summary: Row) -> str:
    cards = [
        f'<div class="card"><b>{_number(value)}</b>{escape(_heading(name))}</div>' for name, value in summary.items()
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _meanings(kinds: Sequence[str], about: Mapping[str, Any]) -> str:
    names = [*kinds, "pixel_accuracy"] if "iou" in kinds else list(kinds)
    lines = "".join(f"<li>{escape(MEANINGS[kind])}</li>" for kind in names)
    tolerance = about.get("tolerance_mm")
    told = f" The tolerance of NSD is {escape(_number(tolerance))} mm." if tolerance is not None else ""
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
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(_heading(key))}</th>" for key in rows[0])
    barred = {key for key in rows[0] if _heading(key).split(",")[0].removeprefix("mean ") in ("Dice", "NSD", "IoU")}
    lines = ["".join(_cell(value, key in barred) for key, value in row.items()) for row in rows]
    cells = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{cells}</tbody></table></div>'


def _cell(value: Any, barred: bool = False) -> str:
    if isinstance(value, str):
        return f'<td class="text">{escape(value)}</td>'
    if barred and isinstance(value, float):
        width = f"{100 * min(max(value, 0.0), 1.0):.0f}%"
        return f'<td class="number bar" style="background-size: {width} 100%">{_number(value)}</td>'
    return f'<td class="number">{_number(value)}</td>'


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _figures(heading: str, figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    parts = []
    for each in figures:
        rows = [row for row in each.labels if row["found"] != "absent"]
        rows = [{key: value for key, value in row.items() if key != "found"} | {"found": row["found"]} for row in rows]
        table = f"<details><summary>its labels</summary>{_table(rows, ())}</details>"
        caption = escape(each.caption)
        parts.append(f"<figure><figcaption>{caption}</figcaption>{_image(each.png, each.caption)}{table}</figure>")
    return _section(heading, "\n".join(parts))


def _image(png: bytes, text: str) -> str:
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def _settings(about: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(_label(key))}</th><td class='text'>{_value(value)}</td></tr>" for key, value in about.items()
    )
    return f'<div class="wide"><table>{rows}</table></div>'


def _label(key: Any) -> str:
    return str(key).replace("_", " ")


def _value(value: Any) -> str:
    """Return a setting for reading: chains as lists, mappings as name and value."""
    if isinstance(value, Mapping):
        if set(value) == {"name", "parameters"}:
            return f"{escape(str(value['name']))} {_value(value['parameters']) if value['parameters'] else ''}"
        return escape("; ".join(f"{_label(key)}: {item}" for key, item in value.items()))
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return "<br>".join(_value(item) for item in value)
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    return "-" if value is None else escape(str(value))
