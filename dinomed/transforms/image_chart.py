"""What a picture's classes look like: the picture beside bars of its most probable classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PICTURE_PIXELS = 480
"""Longest side of the picture as it is drawn."""

CHART_PIXELS, MARGIN, ROW_PIXELS, BAR_PIXELS = 420, 16, 46, 16
CHOSEN, OTHER, TRACK, INK, FAINT = "#1f6f4a", "#9fb3a8", "#eceeed", "#1b1f1d", "#68706c"
Bars = Sequence[tuple[str, Sequence[tuple[str, float, bool]]]]


def draw_classes(pixels: NDArray[np.uint8], bars: Bars, title: str = "") -> Image.Image:
    """Draw a picture with bars of probabilities beside it.

    Args:
        pixels: uint8 (H, W, 3).
        bars: For each task its name (empty for none) and rows of class, probability from 0 to 1, and whether the class
            is what was decided.
        title: Written above the bars.

    Returns:
        RGB picture.
    """
    scale = PICTURE_PIXELS / max(pixels.shape[:2])
    size = tuple(max(1, round(length * scale)) for length in (pixels.shape[1], pixels.shape[0]))
    picture = Image.fromarray(pixels).resize(
        (size[0], size[1]), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    )
    heights = [(ROW_PIXELS if name else 0) + len(rows) * ROW_PIXELS for name, rows in bars]
    chart = 40 + sum(heights)
    height = max(size[1], chart) + 2 * MARGIN
    sheet = Image.new("RGB", (PICTURE_PIXELS + CHART_PIXELS + 3 * MARGIN, height), "white")
    sheet.paste(picture, (MARGIN + (PICTURE_PIXELS - size[0]) // 2, (height - size[1]) // 2))
    draw = ImageDraw.Draw(sheet)
    left, top = PICTURE_PIXELS + 2 * MARGIN, (height - chart) // 2
    draw.text((left, top), _fitting(draw, title, CHART_PIXELS, 15), fill=FAINT, font=_font(15))
    top += 40
    for name, rows in bars:
        if name:
            draw.text((left, top + 8), _fitting(draw, name, CHART_PIXELS, 17), fill=INK, font=_font(17, bold=True))
            top += ROW_PIXELS
        for row in rows:
            _draw_row(draw, left, top, *row)
            top += ROW_PIXELS
    return sheet


def _draw_row(draw: ImageDraw.ImageDraw, left: int, top: int, name: str, probability: float, chosen: bool) -> None:
    """Draw a class's name, its bar and its share."""
    share = shown_share(probability)
    room = CHART_PIXELS - int(draw.textlength(share, font=_font(15))) - 12
    draw.text((left, top), _fitting(draw, name, room, 15, chosen), fill=INK, font=_font(15, bold=chosen))
    width = draw.textlength(share, font=_font(15, bold=chosen))
    draw.text((left + CHART_PIXELS - width, top), share, fill=INK, font=_font(15, bold=chosen))
    bar = (left, top + 22, left + CHART_PIXELS - 1, top + 22 + BAR_PIXELS)
    draw.rectangle(bar, fill=TRACK)
    if round(probability * CHART_PIXELS) > 0:
        end = left + max(1, round(min(1.0, probability) * CHART_PIXELS)) - 1
        draw.rectangle((bar[0], bar[1], end, bar[3]), fill=CHOSEN if chosen else OTHER)


def shown_share(probability: float) -> str:
    """Write a probability in per cent so that neither certainty nor impossibility is claimed by rounding."""
    if 0 < probability < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= probability < 1:
        return "> 99.9 %"
    return f"{100 * probability:.1f} %"


def _fitting(draw: ImageDraw.ImageDraw, text: Any, width: float, size: int, bold: bool = False) -> str:
    """Shorten a text at its end until it fits."""
    words = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    if draw.textlength(words, font=_font(size, bold)) <= width:
        return words
    while words and draw.textlength(f"{words}…", font=_font(size, bold)) > width:
        words = words[:-1]
    return f"{words.rstrip()}…"


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)
