"""The picture of a classified CT: probabilities with thresholds, those of single slices, and the highest slices."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from dinomed.transforms.heat_map_picture import DIM, INK, SMALL, ShownSlice, draw_slice, new_figure, save_picture
from dinomed.transforms.heat_maps import pixel_mm, slice_grid, upright_slices
from dinomed.transforms.picture import HALO, NOTICE, label_colour, shortened
from dinomed.transforms.volume_checks import shown

if TYPE_CHECKING:
    from dinomed.transforms.classification_results import Classification

MOST_SLICES = 4
MOST_LABELS = 12
VIEW = "Brain window (centre 40, width 80 HU). Radiological view: the patient's right is on the left."


def draw_classification(classification: Classification, image: npt.NDArray[Any], path: Path) -> None:
    """Draw the picture of a case as a PNG file.

    Args:
        classification: What to draw.
        image: The scan's voxels (X, Y, Z) in HU.
        path: PNG file to write.

    Raises:
        OSError: If the file cannot be written.
    """
    figure = new_figure(13.2, 8.2)
    rows = _shown_labels(classification)
    _draw_probabilities(figure.add_axes((0.125, 0.555, 0.30, 0.305)), classification, rows)
    _draw_along(figure.add_axes((0.485, 0.555, 0.495, 0.305)), classification, rows)
    bold: dict[str, Any] = {"color": INK, "fontsize": 13, "fontweight": "bold"}
    figure.text(0.012, 0.955, shortened(shown(classification.case), 60), **bold)
    figure.text(0.012, 0.925, _about(classification), **SMALL)
    left_out = len(classification.label_names) - len(rows)
    if left_out:
        figure.text(0.012, 0.475, f"and {left_out} labels with lower probabilities", **SMALL)
    main = classification.label_names[0]
    headline = f"Slices with the highest probability of {_plain(main)}"
    figure.text(0.012, 0.445, headline, **bold | {"fontsize": 11})
    top = classification.top_slices[:MOST_SLICES]
    cut = upright_slices(image, classification.grid, [each.index for each in top])
    for column, (each, hu) in enumerate(zip(top, cut, strict=True)):
        axes = figure.add_axes((0.012 + 0.247 * column, 0.075, 0.235, 0.325))
        draw_slice(axes, ShownSlice(hu, ""), pixel_mm(classification.grid))
        axes.set_title(shortened(f"{each.rank}. {slice_heading(classification, each.index, main)}", 48), **SMALL)
    if warnings := classification.warnings:
        more = f" (and {len(warnings) - 1} more in summary.json)" if len(warnings) > 1 else ""
        lines = textwrap.wrap(warnings[0] + more, 90, max_lines=3, placeholder=" …")
        said = "\n".join(shortened(line, 90) for line in lines)
        figure.text(0.988, 0.975, said, color="#F0E442", fontsize=9, ha="right", va="top")
    figure.text(0.012, 0.022, NOTICE, color=INK, fontsize=10, fontweight="bold")
    figure.text(0.988, 0.022, VIEW, ha="right", **SMALL)
    save_picture(figure, path)


def slice_heading(classification: Classification, index: int, label: str) -> str:
    """A slice's number, and its probability of a label where that is known."""
    found = np.flatnonzero(classification.slice_indices == index)
    place = classification.label_names.index(label)
    probability = f", {label} {classification.slice_probs[found[0], place]:.2f}" if found.size else ""
    return f"slice {index} of 0..{classification.grid.shape[classification.slice_axis] - 1}{probability}"


def decisive_probability(classification: Classification, place: int) -> float:
    """The probability of the label at `place` that a threshold is for: calibrated where it can be."""
    calibrated = classification.calibrated[place]
    return float(classification.probabilities[place]) if calibrated is None else calibrated


def _shown_labels(classification: Classification) -> list[int]:
    """Places of the labels that fit the picture: the first one and those with the highest probabilities, in order."""
    places = range(len(classification.label_names))
    ranked = sorted(places, key=lambda place: (place > 0, -decisive_probability(classification, place)))
    return sorted(ranked[:MOST_LABELS])


def _about(classification: Classification) -> str:
    spacing = np.linalg.norm(np.asarray(classification.grid.affine, dtype=np.float64)[:3, :3], axis=0)
    run = classification.run
    model = f"{run.bundle} {run.version}" + (f" ({run.overlay})" if run.overlay else "")
    size = " x ".join(map(str, classification.grid.shape))
    return f"{size} voxels, {' x '.join(f'{mm:.2f}' for mm in spacing)} mm   {shortened(model, 60)}"


def _plain(name: str) -> str:
    return shortened(name.replace("_", " "), 28)


def _draw_probabilities(axes: Axes, classification: Classification, rows: Sequence[int]) -> None:
    """Draw a bar for each label: bright where it reaches its threshold, pale where it does not or has none."""
    for y, place in enumerate(rows):
        value, threshold = decisive_probability(classification, place), classification.thresholds[place]
        axes.barh(
            y, value, height=0.62, color=label_colour(1 + place), alpha=1.0 if classification.predicted[place] else 0.45
        )
        if threshold is not None:
            axes.plot([threshold] * 2, [y - 0.42, y + 0.42], color=INK, linewidth=1.6)
        plain = float(classification.probabilities[place])
        if classification.calibrated[place] is not None:
            axes.plot(plain, y, marker="d", color=INK, markersize=4, markerfacecolor="none")
        inside = value > 0.8
        x = value - 0.015 if inside else max(value, threshold or 0.0, plain) + 0.02
        at: dict[str, Any] = {"ha": "right" if inside else "left", "va": "center", "fontsize": 9}
        axes.text(min(x, 1.0), y, f"{value:.2f}", color=INK, path_effects=HALO, **at)
    axes.set_yticks(range(len(rows)), [_plain(classification.label_names[place]) for place in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.0)
    calibrated = any(classification.calibrated[place] is not None for place in rows)
    decided = any(classification.thresholds[place] is not None for place in rows)
    key = "probability, calibrated (diamond: as the model gave it)" if calibrated else "probability, not calibrated"
    key += "; line: threshold,\npale bar: below it or without one" if decided else "; no thresholds"
    _dress(axes, key, "Whole scan")


def _draw_along(axes: Axes, classification: Classification, rows: Sequence[int]) -> None:
    """Draw the probabilities of single slices along the scan, the first label on top."""
    ascending = np.argsort(classification.slice_indices)
    marker = "." if len(ascending) <= 80 else ""
    for place in reversed(rows):
        x, y = classification.slice_indices[ascending], classification.slice_probs[ascending, place]
        axes.plot(x, y, color=label_colour(1 + place), linewidth=1.4, marker=marker)
    if slice_grid(classification.grid).flips[2]:
        axes.invert_xaxis()
    axes.set_ylim(-0.02, 1.02)
    below = f"slice, counted from 0 along axis {classification.slice_axis} of the file; the head is on the right"
    _dress(axes, below, "Single slices, not calibrated; colours as on the left")
    note = "\n".join(textwrap.wrap(classification.slice_note.replace("$", r"\$"), 115)[:2])
    axes.text(0.0, -0.235, note, transform=axes.transAxes, va="top", **SMALL | {"fontsize": 8})


def _dress(axes: Axes, below: str, above: str) -> None:
    axes.set_facecolor("black")
    axes.tick_params(colors="#C8C8C8", labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(DIM)
    axes.set_xlabel(below, **SMALL)
    axes.set_title(above, color=INK, fontsize=11, loc="left")
