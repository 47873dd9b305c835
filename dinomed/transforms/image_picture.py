"""What a picture's label map looks like: painted over the picture, and beside it with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from dinomed.transforms.palette import colour_labels, voc_colours

LONGEST_SIDE = 1600
"""Pixels; larger pictures are drawn smaller. The label map itself always has the picture's size."""

OPACITY = 0.55
LEGEND_ROWS = 24
"""Classes of which a legend tells, the largest first."""

NAMED_SHARE = 0.02
"""Part of the picture from which on a class is named within it."""

COLUMN_PIXELS = 250
MARGIN, ROW_PIXELS = 10, 24


def draw_overlay(
    pixels: NDArray[np.uint8], labels: NDArray[np.integer], background_label: int | None = None
) -> Image.Image:
    """Paint a label map over its picture, half transparently, with white lines between classes.

    Many of VOC's colours are alike, so the lines matter.

    Args:
        pixels: uint8 (H, W, 3).
        labels: (H, W).
        background_label: Label that is left unpainted; None for none.

    Returns:
        RGB picture of at most `LONGEST_SIDE` pixels.
    """
    small, found = _drawn_small(pixels, labels)
    colours = colour_labels(found).astype(np.float32)
    opacity = np.full(found.shape, OPACITY, dtype=np.float32)
    if background_label is not None:
        opacity[found == background_label] = 0.0
    mixed = small + opacity[..., None] * (colours - small)
    mixed[_borders(found)] = 255.0
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def draw_side_by_side(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.integer],
    rows: Sequence[Mapping[str, Any]],
    background_label: int | None = None,
) -> Image.Image:
    """Show the picture, the picture with its label map painted over it and named, and a legend of the classes found.

    Args:
        pixels: uint8 (H, W, 3).
        labels: (H, W).
        rows: For each class its `value`, `name`, `pixels` and `share`; those without pixels are left out.
        background_label: As for `draw_overlay`.

    Returns:
        RGB picture.
    """
    overlay = draw_overlay(pixels, labels, background_label)
    plain = Image.fromarray(pixels).resize(overlay.size, Image.Resampling.BOX)
    found = sorted((row for row in rows if row["pixels"]), key=lambda row: -int(row["pixels"]))
    width = max(2 * overlay.width + 3 * MARGIN, COLUMN_PIXELS + 2 * MARGIN)
    columns = max(1, (width - MARGIN) // COLUMN_PIXELS)
    listed = found[:LEGEND_ROWS]
    _write_names(overlay, labels, [row for row in listed if row["value"] != background_label])
    lines = -(-(len(listed) + (len(found) > len(listed))) // columns)
    sheet = Image.new("RGB", (width, overlay.height + 3 * MARGIN + lines * ROW_PIXELS), "white")
    sheet.paste(plain, (MARGIN, MARGIN))
    sheet.paste(overlay, (overlay.width + 2 * MARGIN, MARGIN))
    texts = [(row, f"{row['name']}  {100 * row['share']:.1f} %") for row in listed]
    if len(found) > len(listed):
        texts.append(({}, f"and {len(found) - len(listed)} smaller ones"))
    _draw_legend(ImageDraw.Draw(sheet), texts, overlay.height + 2 * MARGIN, columns)
    return sheet


def _write_names(overlay: Image.Image, labels: NDArray[np.integer], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the name of each large class where its area is widest."""
    draw = ImageDraw.Draw(overlay)
    found = _shrunk(labels, (overlay.height, overlay.width))
    for row in rows:
        if row["share"] < NAMED_SHARE:
            break
        depth = ndimage.distance_transform_edt(np.pad(found == row["value"], 1))[1:-1, 1:-1]
        y, x = divmod(int(depth.argmax()), overlay.width)
        text = str(row["name"])
        width = draw.textlength(text, font=_font())
        left = max(2.0, min(x - width / 2, overlay.width - width - 2))
        draw.text((left, y - 8), text, fill="white", font=_font(), stroke_width=2, stroke_fill="black")


def _draw_legend(
    draw: ImageDraw.ImageDraw, texts: Sequence[tuple[Mapping[str, Any], str]], top: int, columns: int
) -> None:
    for index, (row, text) in enumerate(texts):
        x = MARGIN + index % columns * COLUMN_PIXELS
        y = top + index // columns * ROW_PIXELS
        if row:
            colour = tuple(int(value) for value in voc_colours(int(row["value"]) + 1)[-1])
            draw.rectangle((x, y + 3, x + 17, y + 20), fill=colour, outline="black")
        draw.text((x + 25, y + 4), _fitting(draw, text, COLUMN_PIXELS - 30), fill="black", font=_font())


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Shorten a text in its middle until it fits, so that a share at its end stays."""
    name, gap, share = text.rpartition("  ")
    while len(name) > 4 and draw.textlength(text, font=_font()) > width:
        name = name[:-1]
        text = f"{name.rstrip()}…{gap}{share}"
    return text


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 13)


def _drawn_small(
    pixels: NDArray[np.uint8], labels: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Reduce picture and label map to a size that can be looked at; labels by their nearest pixel."""
    height, width = labels.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size == (height, width):
        return pixels.astype(np.float32), labels
    small = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32), _shrunk(labels, size)


def _shrunk(labels: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """Take the nearest label for each pixel of a smaller map."""
    if size == labels.shape:
        return labels
    rows, columns = (
        ((np.arange(few) + 0.5) * many / few).astype(np.int64) for few, many in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns[None]]


def _borders(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Mark pixels whose right or lower neighbour has another label."""
    marks = np.zeros(labels.shape, dtype=bool)
    marks[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    marks[:-1] |= labels[1:] != labels[:-1]
    return marks


def validation_picture(item: Mapping[str, Any]) -> Tensor:
    """Show a picture beside its reference and its predicted labels, for `dinomed.handlers.logs.ValidationLog`.

    Args:
        item: "image" (3, h, w) of any range as the network saw it, "label" and "pred" (1, H, W) at the picture's size.

    Returns:
        (3, h, 3 * w) in [0, 1]; ignored pixels have the colour of label 255, a light grey.
    """
    image = torch.as_tensor(item["image"]).as_subclass(Tensor).float().cpu()
    low, high = image.min(), image.max()
    parts = [(image - low) / (high - low).clamp(min=1e-6)]
    rows, columns = image.shape[-2:]
    for key in ("label", "pred"):
        labels = torch.as_tensor(item[key]).as_subclass(Tensor).cpu()[0]
        down, right = (torch.arange(few) * many // few for few, many in zip((rows, columns), labels.shape, strict=True))
        painted = colour_labels(labels[down[:, None], right[None]].numpy())
        parts.append(torch.from_numpy(painted).permute(2, 0, 1) / 255.0)
    return torch.cat(parts, dim=2)
