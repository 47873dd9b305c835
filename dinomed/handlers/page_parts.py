"""Building blocks of report pages that need nothing else: no script, no link, pictures inside, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]

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
th { background: #f2f4f7; } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 11em; max-width: 46em; }
td.bar { background-repeat: no-repeat; background-image: linear-gradient(#bcd9ee, #bcd9ee); }
img { max-width: 100%; height: auto; } figure { margin: 1em 0; } figcaption { font-weight: 600; margin-bottom: .3em; }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


class Aligned(str):
    """A text that stands in a table like a number: to the right, in one line."""


def document(title: str, body: Sequence[str]) -> str:
    """Return a page as HTML text.

    Args:
        title: Of the page, as plain text.
        body: Parts as HTML; empty ones are left out.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>"
    )
    lines = "\n".join(part for part in body if part)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{lines}\n</body>\n</html>\n'


def section(heading: str, content: str) -> str:
    """Return HTML under a heading, which is plain text."""
    return f"<h2>{escape(heading)}</h2>\n{content}"


def cards(values: Row, heading: Callable[[str], str] = str) -> str:
    """Return values by name as large numbers."""
    found = [f'<div class="card"><b>{number(value)}</b>{escape(heading(name))}</div>' for name, value in values.items()]
    return f'<div class="cards">{"".join(found)}</div>'


def table(rows: Sequence[Row], heading: Callable[[str], str] = str, barred: Sequence[str] = ()) -> str:
    """Return rows with the same keys as a table.

    Args:
        rows: Plain values; None is shown as a dash.
        heading: From a key to the column's heading.
        barred: Keys of columns with values between 0 and 1 that have a bar behind them.
    """
    if not rows:
        return "<p>None.</p>"
    kinds = {key: "text" if _is_text(value) else "number" for key, value in rows[0].items()}
    head = "".join(f'<th class="{kind}">{escape(heading(key))}</th>' for key, kind in kinds.items())
    lines = ["".join(_cell(value, key in barred) for key, value in row.items()) for row in rows]
    cells = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{cells}</tbody></table></div>'


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Aligned)


def _cell(value: Any, barred: bool = False) -> str:
    if _is_text(value):
        return f'<td class="text">{escape(value)}</td>'
    if barred and isinstance(value, float):
        width = f"{100 * min(max(value, 0.0), 1.0):.0f}%"
        return f'<td class="number bar" style="background-size: {width} 100%">{number(value)}</td>'
    return f'<td class="number">{number(value)}</td>'


def number(value: Any) -> str:
    """Return a number for reading, as HTML; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def image(png: bytes, text: str) -> str:
    """Return a picture inside the page.

    Args:
        png: The picture.
        text: What it shows, for those who do not see it.
    """
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def settings(about: Mapping[str, Any]) -> str:
    """Return settings by name as a table."""
    rows = "".join(
        f"<tr><th>{escape(_words(key))}</th><td class='text'>{_value(value)}</td></tr>" for key, value in about.items()
    )
    return f'<div class="wide"><table>{rows}</table></div>'


def _words(key: Any) -> str:
    return str(key).replace("_", " ")


def _value(value: Any) -> str:
    """Return a setting for reading: chains as lists, mappings as name and value."""
    if isinstance(value, Mapping):
        if set(value) == {"name", "parameters"}:
            return f"{escape(str(value['name']))} {_value(value['parameters']) if value['parameters'] else ''}"
        return escape("; ".join(f"{_words(key)}: {item}" for key, item in value.items()))
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return "<br>".join(_value(item) for item in value)
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    return "-" if value is None else escape(str(value))
