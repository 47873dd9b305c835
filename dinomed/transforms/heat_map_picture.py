"""Pictures of heat maps: slices of a CT and, beside each, its map over it.

Slices are shown in brain window (centre 40, width 80 HU) and in radiological view, the patient's right on the left, at
their true proportions in mm. Colours are told apart by colour-blind readers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dinomed.transforms.heat_map_kinds import MapKind
from dinomed.transforms.picture import HALO, NOTICE, shortened

WINDOW_CENTRE_HU, WINDOW_WIDTH_HU = 40.0, 80.0
SLICE_INCHES = 3.7
LEAST_INCHES = 7.6
OPACITY = 0.8
ONE_SIDED = colormaps["inferno"]
TWO_SIDED = LinearSegmentedColormap.from_list("falls", ["#B8E3FF", "#0072B2", "black", "#D55E00", "#FFDF9E"])
"""From blue over black at 0 to orange, which colour-blind readers tell apart (Okabe and Ito's)."""
LINE_INCHES = 0.152
VIEW = "Brain window, 0 to 80 HU. The patient's right is on the left."

SMALL: dict[str, Any] = {"color": "#C8C8C8", "fontsize": 9}
INK, DIM = "white", "#808080"

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ShownSlice:
    """An upright slice as the backbone sees it: rows to the back, columns to the patient's right.

    Attributes:
        hu: (rows, columns) in HU.
        heading: Its number and probability.
        values: Map of the same shape; None for none.
        box: Row, column, height and width in pixels of a patch to be framed.
    """

    hu: FloatArray
    heading: str
    values: FloatArray | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class MapText:
    """What is written on the picture of a map.

    Attributes:
        case: Name of the scan.
        title: Kind of map and label.
        about: Probability of the scan, and how much of the patient one value stands for.
        unit: What the colour bar counts.
        left_out: Slices with a map that the picture does not show.
    """

    case: str
    title: str
    about: str
    unit: str
    left_out: int = 0


def map_scale(values: FloatArray, kind: MapKind) -> tuple[float, float]:
    """Return the lowest and highest value of a picture's colours; never equal."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if kind.signed:
        high = max(abs(low), abs(high))
        low = -high
    elif kind.from_zero:
        low = 0.0
    return (low, high) if high > low else (low, low + 1.0)


def draw_map(
    path: Path,
    slices: Sequence[ShownSlice],
    pixel_mm: tuple[float, float],
    scale: tuple[float, float],
    kind: MapKind,
    text: MapText,
) -> None:
    """Draw slices and, beside each, its map over it.

    Args:
        path: PNG file to write.
        slices: One or more, each with `values`.
        pixel_mm: Height and width of a pixel.
        scale: Values at the ends of the colour bar.
        kind: What the map is and is not.
        text: What else is written.

    Raises:
        OSError: If the file cannot be written.
    """
    height_in, width_in = _panel_inches(slices[0].hu.shape, pixel_mm)
    gap, bar = 0.34, 1.25
    total_w = max(2 * width_in + 0.1 + bar, LEAST_INCHES)
    above = _subtitle(text, int(total_w * 13))
    top = 0.56 + LINE_INCHES * len(above)
    lines = _explanation(kind, text, int(total_w * 16))
    bottom = 0.62 + LINE_INCHES * len(lines)
    total_h = len(slices) * (height_in + gap) + top + bottom
    figure = new_figure(total_w, total_h)
    colours = TWO_SIDED if kind.signed else ONE_SIDED
    for index, each in enumerate(slices):
        y = (total_h - top - (index + 1) * (height_in + gap)) / total_h
        panels = [
            figure.add_axes((x / total_w, y, width_in / total_w, height_in / total_h)) for x in (0.0, width_in + 0.1)
        ]
        for axes in panels:
            draw_slice(axes, each, pixel_mm)
        _overlay(panels[1], each, pixel_mm, colours, scale, kind.signed)
        panels[0].text(0.04, 1.02, shortened(each.heading, 60), transform=panels[0].transAxes, va="bottom", **SMALL)
    title = shortened(text.title, int(total_w * 7))
    figure.text(0.02, 1 - 0.30 / total_h, title, color=INK, fontsize=13, fontweight="bold")
    figure.text(0.02, 1 - 0.42 / total_h, "\n".join(above), **SMALL | {"va": "top", "linespacing": 1.25})
    tall_in = 0.94 * height_in
    axes = figure.add_axes(
        ((2 * width_in + 0.25) / total_w, (bottom + 0.03 * height_in) / total_h, 0.16 / total_w, tall_in / total_h)
    )
    _draw_bar(axes, colours, scale, f"{text.unit}, {scale[0]:.3g} to {scale[1]:.3g}")
    said: dict[str, Any] = SMALL | {"fontsize": 8, "va": "top", "linespacing": 1.25}
    figure.text(0.02, (bottom - 0.12) / total_h, "\n".join(lines), **said)
    figure.text(0.02, 0.14 / total_h, NOTICE, color=INK, fontsize=9, fontweight="bold")
    figure.text(0.98, 0.14 / total_h, VIEW, ha="right", **SMALL | {"fontsize": 8})
    save_picture(figure, path)


def _subtitle(text: MapText, width: int) -> list[str]:
    """Say in lines of `width` letters whose map it is, and how much one value stands for."""
    return [shortened(text.case, 60)] + [shortened(line, width) for line in textwrap.wrap(text.about, width)]


def _explanation(kind: MapKind, text: MapText, width: int) -> list[str]:
    """Say in lines of `width` letters what the map is and is not, and how its colours are scaled."""
    ends = "this map's own largest value, equal on both sides of 0" if kind.signed else "this map's own extremes"
    ends = "0 and this map's own largest value" if kind.from_zero else ends
    left_out = f" {text.left_out} more slices with a map are in the files only." if text.left_out else ""
    return textwrap.wrap(f"What it is: {kind.what_it_is} The colours end at {ends}.{left_out}", width) + textwrap.wrap(
        f"What it is not: {kind.what_it_is_not}", width
    )


def draw_slice(axes: Axes, shown: ShownSlice, pixel_mm: tuple[float, float]) -> None:
    """Draw a slice in brain window with the letters of its sides."""
    low = WINDOW_CENTRE_HU - WINDOW_WIDTH_HU / 2
    axes.set_axis_off()
    axes.imshow(
        shown.hu[:, ::-1],
        cmap="gray",
        vmin=low,
        vmax=low + WINDOW_WIDTH_HU,
        extent=_extent(shown.hu.shape, pixel_mm),
        interpolation="bilinear",
        aspect="equal",
    )
    bold: dict[str, Any] = {"color": INK, "fontsize": 11, "fontweight": "bold", "transform": axes.transAxes}
    for x, y, letter, across, along in (
        (0.015, 0.5, "R", "left", "center"),
        (0.985, 0.5, "L", "right", "center"),
        (0.5, 0.985, "A", "center", "top"),
        (0.5, 0.015, "P", "center", "bottom"),
    ):
        axes.text(x, y, letter, ha=across, va=along, path_effects=HALO, **bold)
    if shown.box is not None:
        row, column, height, width = shown.box
        left = (shown.hu.shape[1] - column - width) * pixel_mm[1]
        frame = (left, row * pixel_mm[0]), width * pixel_mm[1], height * pixel_mm[0]
        axes.add_patch(Rectangle(*frame, fill=False, edgecolor="#56B4E9", linewidth=1.6))


def _overlay(
    axes: Axes,
    shown: ShownSlice,
    pixel_mm: tuple[float, float],
    colours: Colormap,
    scale: tuple[float, float],
    signed: bool,
) -> None:
    """Lay a map over its slice; low values (of a signed map: those near 0) let the slice show through."""
    if shown.values is None:
        return
    part = np.clip((shown.values[:, ::-1] - scale[0]) / (scale[1] - scale[0]), 0.0, 1.0)
    painted = colours(part)
    strength = np.abs(2.0 * part - 1.0) if signed else part
    painted[..., 3] = OPACITY * strength**0.7
    axes.imshow(painted, extent=_extent(shown.hu.shape, pixel_mm), interpolation="bilinear", aspect="equal")


def _draw_bar(axes: Axes, colours: Colormap, scale: tuple[float, float], caption: str) -> None:
    bar = axes.figure.colorbar(ScalarMappable(Normalize(*scale), colours), cax=axes)
    bar.set_label("\n".join(textwrap.wrap(caption, 34)), **SMALL)
    bar.ax.tick_params(colors="#C8C8C8", labelsize=8)
    bar.outline.set_edgecolor(DIM)


def _panel_inches(shape: tuple[int, ...], pixel_mm: tuple[float, float]) -> tuple[float, float]:
    height_mm, width_mm = (count * mm for count, mm in zip(shape, pixel_mm, strict=True))
    larger = max(height_mm, width_mm)
    return SLICE_INCHES * max(height_mm / larger, 0.25), SLICE_INCHES * max(width_mm / larger, 0.25)


def _extent(shape: tuple[int, ...], pixel_mm: tuple[float, float]) -> tuple[float, float, float, float]:
    return 0.0, shape[1] * pixel_mm[1], shape[0] * pixel_mm[0], 0.0


def new_figure(width_in: float, height_in: float) -> Figure:
    """Make a black figure."""
    figure = Figure(figsize=(width_in, height_in), dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without the time of its making."""
    figure.savefig(path, format="png", facecolor="black", metadata={"Software": "dinomed"})
