"""Pictures of an evaluation of classified cases, as PNG bytes: ROC, precision-recall, reliability, confusion matrix.

Each label has a panel of its own, so that curves and legends never cover each other. Colours are told apart by
colour-blind readers, and no meaning is in a colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dinomed.metrics.classification import precision_recall_curve, roc_curve, wilson_interval
from dinomed.transforms.picture import shortened

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
COLUMNS = 3
PANEL_INCHES = 2.9
"""Sides of a panel, without what is written around it."""

COUNTS_INCHES = 0.85
MOST_PANELS = 24
MOST_NAMED_CLASSES = 40
"""More rows of a confusion matrix than this have no room for names and numbers."""


@dataclass(frozen=True)
class Panel:
    """What a label's panels show.

    Attributes:
        name: Of the label.
        probs: (N,).
        labels: (N,) 0 or 1.
        row: Its scores, as `dinomed.metrics.classification_summary` gives them.
    """

    name: str
    probs: npt.NDArray[np.float64]
    labels: npt.NDArray[Any]
    row: Mapping[str, Any]


def draw_roc(panels: Sequence[Panel]) -> bytes | None:
    """Draw the ROC curve of each label with its operating point; None where no label has one."""

    def draw(axes: Axes, panel: Panel) -> None:
        curve = roc_curve(panel.probs, panel.labels)
        assert curve is not None
        axes.plot([0, 1], [0, 1], **_CHANCE)
        axes.plot(curve.false_positive_rate, curve.true_positive_rate, **_CURVE)
        if panel.row.get("threshold") is not None:
            axes.plot([1 - panel.row["specificity"]], [panel.row["sensitivity"]], **_POINT)
        axes.set_title(
            _title(panel, "AUROC", panel.row.get("auroc"), panel.row.get("auroc_interval")), fontsize=9.5, pad=7
        )
        axes.set_xlabel("1 - specificity (false positive rate)")
        axes.set_ylabel("sensitivity (true positive rate)")

    shown = [panel for panel in panels if roc_curve(panel.probs, panel.labels) is not None]
    return _grid(shown, draw, "chance")


def draw_precision_recall(panels: Sequence[Panel]) -> bytes | None:
    """Draw the precision-recall curve of each label with its operating point; None where no label has one."""

    def draw(axes: Axes, panel: Panel) -> None:
        curve = precision_recall_curve(panel.probs, panel.labels)
        assert curve is not None
        prevalence = float(np.mean(panel.labels))
        axes.plot([0, 1], [prevalence] * 2, **_CHANCE)
        # The conventional first point would draw a line up to 1 that no case stands for.
        precision = np.concatenate([curve.precision[1:2], curve.precision[1:]])
        axes.plot(curve.recall, precision, drawstyle="steps-pre", **_CURVE)
        row = panel.row
        if row.get("threshold") is not None and row.get("positive_predictive_value") is not None:
            axes.plot([row["sensitivity"]], [row["positive_predictive_value"]], **_POINT)
        value, limits = row.get("average_precision"), row.get("average_precision_interval")
        axes.set_title(_title(panel, "average precision", value, limits), fontsize=9.5, pad=7)
        axes.set_xlabel("recall (sensitivity)")
        axes.set_ylabel("precision (positive predictive value)")

    shown = [panel for panel in panels if _has_both(panel)]
    return _grid(shown, draw, "prevalence (what chance gives)")


def _has_both(panel: Panel) -> bool:
    return bool(np.any(panel.labels == 1) and np.any(panel.labels == 0))


_CURVE: dict[str, Any] = {"color": BLUE, "linewidth": 2.0, "label": "model", "clip_on": False, "zorder": 3}
_CHANCE: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": "--"}
_POINT: dict[str, Any] = {
    "marker": "o",
    "markersize": 9,
    "markerfacecolor": ORANGE,
    "markeredgecolor": "black",
    "linestyle": "none",
    "clip_on": False,
    "zorder": 4,
}


def _title(panel: Panel, score: str, value: float | None, limits: tuple[float, float] | None) -> str:
    said = "-" if value is None else f"{value:.3f}"
    interval = "" if limits is None else f" ({limits[0]:.3f} to {limits[1]:.3f})"
    positives = int(np.sum(panel.labels == 1))
    return f"{shortened(panel.name, 34)}: {positives} of {len(panel.labels)} positive\n{score} {said}{interval}"


def _grid(panels: Sequence[Panel], draw: Callable[[Axes, Panel], None], chance: str) -> bytes | None:
    """Draw panels in rows, and one legend below all of them."""
    shown = panels[:MOST_PANELS]
    if not shown:
        return None
    figure, places = _sheet(len(shown), below_in=0.0)
    for panel, (left, bottom, width, height) in zip(shown, places, strict=True):
        axes = figure.add_axes((left, bottom, width, height))
        draw(axes, panel)
        _unit_axes(axes)
    handles = [Line2D([], [], **_CURVE), Line2D([], [], **_CHANCE, label=chance)]
    if any(panel.row.get("threshold") is not None for panel in shown):
        handles.append(Line2D([], [], **_POINT, label="operating point"))
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=9)
    return _png(figure)


def _sheet(panels: int, below_in: float) -> tuple[Figure, list[tuple[float, float, float, float]]]:
    """Return a figure and where its square panels go: left, bottom, width and height as parts of it.

    Fixed places are drawn several times faster than ones that are fitted to their texts.

    Args:
        panels: Their number.
        below_in: Inches that each panel needs below it, within its place.
    """
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    pitch_in = PANEL_INCHES + below_in + 1.05
    size = (max(columns * (PANEL_INCHES + 0.85), 5.6), rows * pitch_in + 0.35)
    figure = Figure(figsize=size, dpi=90)
    FigureCanvasAgg(figure)
    places = []
    for index in range(panels):
        line, column = divmod(index, columns)
        left = (size[0] - columns * (PANEL_INCHES + 0.85)) / 2 + column * (PANEL_INCHES + 0.85) + 0.68
        bottom = size[1] - (line + 1) * pitch_in + 0.5
        places.append((left / size[0], bottom / size[1], PANEL_INCHES / size[0], PANEL_INCHES / size[1]))
    return figure, places


def _unit_axes(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    ticks = np.linspace(0, 1, 6)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(labelsize=8)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_reliability(rows: Sequence[Mapping[str, Any]], axis: str = "share of positive cases") -> bytes | None:
    """Draw, for each label, the shares of positive cases over the probabilities, and below how many cases these are.

    Args:
        rows: "label", "reliability" (bins) and "expected_calibration_error" of each.
        axis: What the shares are of.

    Returns:
        PNG; None without a case.
    """
    shown = [row for row in rows if any(each["count"] for each in row["reliability"])][:MOST_PANELS]
    if not shown:
        return None
    figure, places = _sheet(len(shown), below_in=COUNTS_INCHES + 0.15)
    counts_height = COUNTS_INCHES / figure.get_figheight()
    for row, (left, bottom, width, height) in zip(shown, places, strict=True):
        below = figure.add_axes((left, bottom, width, counts_height))
        above = figure.add_axes((left, bottom + counts_height + 0.15 / figure.get_figheight(), width, height))
        _draw_bins(above, below, row["reliability"])
        error = row["expected_calibration_error"]
        above.set_title(f"{shortened(row['label'], 34)}\nexpected calibration error {error:.3f}", fontsize=9.5, pad=7)
        above.set_ylabel(axis)
    handles = [
        Line2D([], [], color=GREY, linestyle="--", label="as promised"),
        Line2D([], [], color=BLUE, marker="o", label="cases of a range of probabilities, 95 % Wilson interval"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=9)
    return _png(figure)


def _draw_bins(above: Axes, below: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle="--")
    filled = [each for each in bins if each["count"]]
    means = [each["mean_probability"] for each in filled]
    shares = [each["share_positive"] for each in filled]
    limits = [
        wilson_interval(round(each["share_positive"] * each["count"]), each["count"]) or (0.0, 1.0) for each in filled
    ]
    above.vlines(means, [low for low, _ in limits], [high for _, high in limits], color=BLUE, linewidth=1.4)
    above.plot(means, shares, color=BLUE, marker="o", markersize=5, linewidth=1.0, clip_on=False, zorder=3)
    _unit_axes(above)
    above.tick_params(labelbottom=False)
    counts = [each["count"] for each in bins]
    middles = [(each["low"] + each["high"]) / 2 for each in bins]
    below.bar(middles, counts, width=0.9 / len(bins), color="#9DB8CC")
    for middle, number in zip(middles, counts, strict=True):
        if number:
            below.text(middle, number, f"{number}", ha="center", va="bottom", fontsize=7)
    below.set_xlim(0, 1)
    below.set_ylim(0, 1.3 * max(counts))
    below.set_xticks(np.linspace(0, 1, 6))
    below.tick_params(labelsize=8)
    below.set_xlabel("predicted probability")
    below.set_ylabel("cases")


def draw_matrix(confusion: npt.NDArray[np.int64], label_names: Sequence[str]) -> bytes:
    """Draw the confusion matrix of classes: counts, shaded by the share of each right class's cases.

    Args:
        confusion: (classes, classes) counts; rows are right, columns predicted.
        label_names: One per class.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = float(np.clip(0.42 * len(counts) + 2.6, 4.6, 16.0))
    figure = Figure(figsize=(size + 1.0, size), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = axes.imshow(percent, cmap="Blues", vmin=0.0, vmax=100.0, interpolation="nearest")
    figure.colorbar(shades, ax=axes, shrink=0.7, label="% of the cases of the right class")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("right class")
    if len(counts) <= MOST_NAMED_CLASSES:
        names = [shortened(name, 24) for name in label_names]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for i, j in zip(*np.nonzero(counts), strict=True):
            ink = "white" if percent[i, j] > 55 else "black"
            axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", fontsize=8, color=ink)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white", metadata={"Software": "dinomed"})
    return stream.getvalue()
