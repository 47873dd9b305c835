"""The picture of a result: three planes, plain and with the labels drawn in, and a legend.

Colours are told apart by colour-blind readers (Okabe and Ito, "Color Universal Design", 2008).
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from dinomed.transforms.planes import FloatArray, LabelArray, Plane, central_planes

NOTICE = "Not a medical device. For research use only."
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
"""Okabe and Ito's seven colours, neighbours in the list far apart; their eighth, black, would not be seen."""

FILL_OPACITY = 0.40
LEGEND_ROWS = 24
"""More labels than this do not fit: the largest are listed, the rest is counted."""

SCALE_BAR_MM = 50.0
FIGURE_INCHES = (13.6, 7.6)
PANEL = (0.243, 0.43)
"""Width and height of a panel as parts of the figure."""

HALO = [withStroke(linewidth=2.5, foreground="black")]


@dataclass(frozen=True)
class PictureText:
    """What is written beside the planes.

    Attributes:
        case: Name of the scan.
        grid: The scan's size and spacing in words.
        model: Name and version of the model.
        rows: One mapping per foreground label: value, name, volume_ml, voxels, mean_confidence.
    """

    case: str
    grid: str
    model: str
    rows: Sequence[Mapping[str, Any]]


def label_colour(value: int) -> tuple[float, float, float]:
    """Return the colour of a label value (1 to 255) as RGB in [0, 1]; the first seven are told apart by everyone."""
    if 1 <= value <= len(PALETTE):
        code = PALETTE[value - 1]
        red, green, blue = (int(code[i : i + 2], 16) / 255.0 for i in (1, 3, 5))
        return red, green, blue
    hue = (value * 0.618033988749895) % 1.0  # steps of the golden ratio stay away from earlier hues
    return colorsys.hls_to_rgb(hue, 0.45 + 0.2 * (value % 3) / 2.0, 0.85)


def draw_picture(
    image: FloatArray,
    image_affine: FloatArray,
    labels: LabelArray,
    labels_affine: FloatArray,
    text: PictureText,
    path: Path,
) -> None:
    """Draw the picture of a case as a PNG file.

    Args:
        image: (X, Y, Z) on the network grid, axes to the right, to the front and up.
        image_affine: (4, 4), voxel of `image` -> RAS+ mm.
        labels: uint8 (X', Y', Z') on the scan's own grid.
        labels_affine: (4, 4), voxel of `labels` -> RAS+ mm.
        text: What to write beside the planes.
        path: PNG file to write.

    Raises:
        OSError: If the file cannot be written.
    """
    figure = Figure(figsize=FIGURE_INCHES, dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    _draw_planes(figure, central_planes(image, image_affine, labels, labels_affine))
    _draw_legend(figure, text)
    figure.savefig(path, format="png", facecolor="black", metadata={"Software": "dinomed"})


def _draw_planes(figure: Figure, planes: Sequence[Plane]) -> None:
    """Draw all planes at one scale, plain above and with their labels below."""
    boxes = [plane.box_mm() for plane in planes]
    width_in, height_in = (part * inches for part, inches in zip(PANEL, FIGURE_INCHES, strict=True))
    mm_per_inch = max(
        *((right - left) / width_in for left, right, _, _ in boxes),
        *((bottom - top) / height_in for _, _, top, bottom in boxes),
    )
    half_x, half_y = width_in * mm_per_inch / 2.0, height_in * mm_per_inch / 2.0
    for column, (plane, (left, right, top, bottom)) in enumerate(zip(planes, boxes, strict=True)):
        x_mm, y_mm = (left + right) / 2.0, (top + bottom) / 2.0
        for row in (0, 1):
            axes = figure.add_axes((0.006 + 0.25 * column, 0.515 - 0.46 * row, *PANEL))
            draw_plane(axes, plane, with_labels=row == 1)
            axes.set_xlim(x_mm - half_x, x_mm + half_x)
            axes.set_ylim(y_mm + half_y, y_mm - half_y)
        _scale_bar(axes)


def draw_plane(axes: Axes, plane: Plane, with_labels: bool) -> None:
    """Draw one plane with its marks; with its labels, or with its heading."""
    height_mm, width_mm = (n * mm for n, mm in zip(plane.grey.shape, plane.size_mm, strict=True))
    extent = (0.0, width_mm, height_mm, 0.0)
    axes.set_axis_off()
    axes.imshow(plane.grey, cmap="gray", vmin=0.0, vmax=1.0, extent=extent, interpolation="bilinear", aspect="equal")
    bold: dict[str, Any] = {
        "color": "white",
        "fontsize": 12,
        "fontweight": "bold",
        "transform": axes.transAxes,
        "path_effects": HALO,
    }
    axes.text(0.012, 0.5, plane.marks[0], ha="left", va="center", **bold)
    axes.text(0.988, 0.5, plane.marks[1], ha="right", va="center", **bold)
    axes.text(0.5, 0.988, plane.marks[2], ha="center", va="top", **bold)
    axes.text(0.5, 0.012, plane.marks[3], ha="center", va="bottom", **bold)
    if with_labels:
        _overlay(axes, plane, extent)
    else:
        small: dict[str, Any] = {"color": "#C8C8C8", "fontsize": 11, "transform": axes.transAxes}
        axes.text(0.5, 1.02, plane.heading, ha="center", va="bottom", **small)


def _overlay(axes: Axes, plane: Plane, extent: tuple[float, float, float, float]) -> None:
    """Fill the labels half transparently and draw their outlines."""
    colours = np.zeros((256, 4), dtype=np.float32)
    values = [int(value) for value in np.unique(plane.found) if value]
    for value in values:
        colours[value] = (*label_colour(value), FILL_OPACITY)
    axes.imshow(colours[plane.found], extent=extent, interpolation="nearest", aspect="equal")
    # Contours run through pixel centres; one ring of background closes those that touch the edge.
    padded = np.pad(plane.found, 1)
    y_mm, x_mm = ((np.arange(n) - 0.5) * mm for n, mm in zip(padded.shape, plane.size_mm, strict=True))
    for value in values:
        inside = (padded == value).astype(np.float32)
        axes.contour(x_mm, y_mm, inside, levels=[0.5], colors=[label_colour(value)], linewidths=0.8)


def _scale_bar(axes: Axes) -> None:
    """Draw a bar of known length at the lower left of a panel, if it fits there."""
    left, right = axes.get_xlim()
    if right - left < 2.5 * SCALE_BAR_MM:
        return
    across = axes.get_xaxis_transform()  # x in mm, y as a part of the panel
    start = left + 0.03 * (right - left)
    axes.add_patch(Rectangle((start, 0.020), SCALE_BAR_MM, 0.008, color="white", linewidth=0, transform=across))
    axes.text(start, 0.036, f"{SCALE_BAR_MM / 10:.0f} cm", color="white", fontsize=9, va="bottom", transform=across)


def _draw_legend(figure: Figure, text: PictureText) -> None:
    """Write the names, colours, volumes and confidences at the right, the model and the notice below."""
    axes = figure.add_axes((0.765, 0.0, 0.222, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(1.0, 0.0)
    small: dict[str, Any] = {"color": "#C8C8C8", "fontsize": 9, "va": "center"}
    axes.text(0.0, 0.035, shortened(text.case, 30), color="white", fontsize=13, fontweight="bold", va="center")
    axes.text(0.0, 0.072, text.grid, **small)
    largest = sorted(text.rows, key=lambda row: -float(row["volume_ml"]))[:LEGEND_ROWS]
    rows = [row for row in text.rows if row in largest]
    step = min(0.046, 0.74 / max(len(rows) + 2, 1))
    size = 10.5 if step > 0.035 else 9
    y = 0.13
    for x, head in ((0.81, "ml"), (1.0, "conf.")):
        axes.text(x, y, head, color="#A0A0A0", fontsize=size - 1, ha="right", va="center")
    for row in rows:
        y += step
        _legend_row(axes, row, y, size)
    y += step
    if len(text.rows) > len(rows):
        axes.text(0.0, y, f"and {len(text.rows) - len(rows)} smaller ones", **{**small, "fontsize": size})
    if not any(row["voxels"] for row in text.rows):
        axes.text(0.0, y, "No structure was found.", **{**small, "color": "#F0E442", "fontsize": size})
    axes.text(0.0, 0.953, shortened(text.model, 44), **small)
    axes.text(0.0, 0.978, "conf.: mean probability of the label", **small)
    figure.text(0.012, 0.022, NOTICE, color="white", fontsize=10, fontweight="bold", va="center")
    figure.text(0.745, 0.022, "Radiological view: the patient's right is on the left.", ha="right", **small)


def _legend_row(axes: Axes, row: Mapping[str, Any], y: float, size: float) -> None:
    present = bool(row["voxels"])
    ink = "white" if present else "#808080"
    colour = (*label_colour(int(row["value"])), 1.0 if present else 0.25)
    axes.add_patch(Rectangle((0.0, y - 0.011), 0.055, 0.022, facecolor=colour, linewidth=0))
    name = str(row["name"]).replace("_", " ").replace("$", r"\$")
    axes.text(0.08, y, name if len(name) <= 23 else name[:22] + "…", color=ink, fontsize=size, va="center")
    amount = f"{row['volume_ml']:.1f}" if present else "absent"
    axes.text(0.81, y, amount, color=ink, fontsize=size, ha="right", va="center")
    if row["mean_confidence"] is not None:
        percent = f"{100.0 * row['mean_confidence']:.0f} %"
        axes.text(1.0, y, percent, color=ink, fontsize=size, ha="right", va="center")


def shortened(name: str, longest: int) -> str:
    """Keep the end of a long name, where scans of one study differ; a `$` would start a formula and is escaped."""
    kept = name if len(name) <= longest else "…" + name[1 - longest :]
    return kept.replace("$", r"\$")
