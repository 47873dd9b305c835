"""Pictures of an evaluation as PNG bytes: reference beside prediction and their differences; the confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dinomed.transforms.picture import draw_plane, label_colour, shortened
from dinomed.transforms.planes import VIEWS, LabelArray, Plane, centre_of_labels, cut_plane, sample_labels, stretch

FloatArray = npt.NDArray[np.floating[Any]]

DIFFERENCES = {1: ("missed", "#56B4E9"), 2: ("added", "#E69F00"), 3: ("another label", "#F02080")}
WRONG = {1: ("wrong", "#F02080"), 2: ("not counted", "#606060")}
LEGEND_LABELS = 18
PANEL_INCHES = 2.47
LARGEST_PICTURE = 640
"""Pixels along the longer side of a photograph's panel."""

MOST_NAMED_CLASSES = 60
"""More rows of a confusion matrix than this have no room for names and numbers."""


def differences(predicted: LabelArray, reference: LabelArray) -> LabelArray:
    """Mark what a prediction misses (1), adds (2) or takes for another label (3)."""
    wrong = predicted != reference
    codes = np.where(predicted == 0, 1, np.where(reference == 0, 2, 3))
    return np.where(wrong, codes, 0).astype(np.uint8)


def planes_of_disagreement(
    image: FloatArray, image_affine: FloatArray, predicted: LabelArray, reference: LabelArray, labels_affine: FloatArray
) -> list[tuple[Plane, Plane]]:
    """Cut an axial, a coronal and a sagittal plane where most voxels differ, with the labels of both maps.

    Where nothing differs the planes go through the middle of the labels, or of the volume.

    Args:
        image: (X, Y, Z) on the network grid, axes to the right, to the front and up.
        image_affine: (4, 4), voxel of `image` -> RAS+ mm.
        predicted: uint8 (X', Y', Z') on the scan's own grid.
        reference: uint8 (X', Y', Z') on the same grid.
        labels_affine: (4, 4), voxel of the label maps -> RAS+ mm.

    Returns:
        Pairs of planes: with the reference's labels and with the predicted ones.
    """
    to_world = np.asarray(image_affine, dtype=np.float64)
    to_labels = np.linalg.inv(np.asarray(labels_affine, dtype=np.float64)) @ to_world
    wrong = predicted != reference
    middle = (np.array(image.shape) - 1) / 2.0
    if wrong.any():
        others = ((1, 2), (0, 2), (0, 1))
        centre: FloatArray | None = np.array([float(np.argmax(wrong.sum(axis=axes))) for axes in others])
    else:
        centre = centre_of_labels(reference)
    if centre is not None:
        back = np.linalg.inv(to_labels)
        middle = back[:3, :3] @ centre + back[:3, 3]
    where = np.clip(np.rint(middle).astype(int), 0, np.array(image.shape) - 1)
    spacing_mm = np.linalg.norm(to_world[:3, :3], axis=0)
    pairs = []
    for name, axis, rows, columns, marks in VIEWS:
        index = int(where[axis])
        grey, points = cut_plane(image, axis, rows, columns, index)
        size_mm = (float(spacing_mm[rows[0]]), float(spacing_mm[columns[0]]))
        found = [sample_labels(labels, to_labels, points) for labels in (reference, predicted)]
        heading = f"{name}, slice {index + 1} of {image.shape[axis]}"
        plane = Plane(heading, marks, stretch(grey), found[0], size_mm)
        pairs.append((plane, replace(plane, found=found[1])))
    return pairs


def draw_volume(
    image: FloatArray,
    image_affine: FloatArray,
    predicted: LabelArray,
    reference: LabelArray,
    labels_affine: FloatArray,
    title: str,
    label_names: Sequence[str],
) -> bytes:
    """Draw a scan's case: a row per plane with scan, reference, prediction and their differences; as PNG.

    Args:
        image: As for `planes_of_disagreement`.
        image_affine: As there.
        predicted: As there.
        reference: As there.
        labels_affine: As there.
        title: Written above.
        label_names: One per label, background first.
    """
    pairs = planes_of_disagreement(image, image_affine, predicted, reference, labels_affine)
    heights_in = [float(np.clip(PANEL_INCHES * _aspect(plane), 0.6, 1.4 * PANEL_INCHES)) for plane, _ in pairs]
    height_in = max(sum(heights_in) + 0.3 * len(pairs) + 0.5, 6.0)  # the legend needs six inches
    figure = Figure(figsize=(13.0, height_in), dpi=80, facecolor="black")
    FigureCanvasAgg(figure)
    bold: dict[str, Any] = {"color": "white", "fontsize": 13, "fontweight": "bold", "va": "center"}
    figure.text(0.01, 1 - 0.2 / height_in, shortened(title, 110), **bold)
    top_in = height_in - 0.4
    for row, ((wanted, given), panel_in) in enumerate(zip(pairs, heights_in, strict=True)):
        top_in -= 0.3 + panel_in
        for column, name in enumerate(("scan", "reference", "prediction", "differences")):
            axes = figure.add_axes(
                (0.005 + 0.2 * column, top_in / height_in, PANEL_INCHES / 13.0, panel_in / height_in)
            )
            draw_plane(axes, given if name == "prediction" else wanted, with_labels=column in (1, 2))
            heading = wanted.heading if column == 0 else name if row == 0 else ""
            axes.set_title(heading, color="#C8C8C8", fontsize=10, pad=3)
            for text in axes.texts[4:]:  # the plane's own heading, which stands above already
                text.set_visible(False)
            if name == "differences":
                codes = differences(given.found, wanted.found)
                _fill(axes, codes, {code: colour for code, (_, colour) in DIFFERENCES.items()}, wanted.size_mm)
    shown = np.concatenate([plane.found.ravel() for pair in pairs for plane in pair])
    _legend(figure, shown, label_names, DIFFERENCES, (0.815, 1 - 0.6 / height_in))
    return _png(figure, "black")


def _aspect(plane: Plane) -> float:
    """Height of a plane for a width of 1."""
    return plane.grey.shape[0] * plane.size_mm[0] / (plane.grey.shape[1] * plane.size_mm[1])


def draw_image(
    image: FloatArray,
    predicted: npt.NDArray[np.integer[Any]],
    reference: npt.NDArray[np.integer[Any]],
    title: str,
    label_names: Sequence[str],
    ignore_index: int | None = None,
) -> bytes:
    """Draw a picture's case: picture, reference, prediction and what is wrong, side by side; as PNG.

    Args:
        image: (channels, H', W'), three channels for colour; its values are stretched to black and white.
        predicted: (H, W) labels.
        reference: (H, W) labels.
        title: Written above.
        label_names: One per label.
        ignore_index: Reference label that does not count.
    """
    height, width = reference.shape
    rows, columns = (
        np.linspace(0, n - 1, min(n, round(n * LARGEST_PICTURE / max(height, width)) or 1)).astype(int)
        for n in (height, width)
    )
    maps = [labels[rows][:, columns] for labels in (reference, predicted)]
    colour = image[:3] if image.shape[0] >= 3 else np.repeat(image[image.shape[0] // 2][None], 3, axis=0)
    colour = stretch(np.moveaxis(colour, 0, -1))
    ignored = maps[0] == ignore_index if ignore_index is not None else np.zeros(maps[0].shape, dtype=bool)
    wrong = np.where(ignored, 2, maps[0] != maps[1]).astype(np.uint8)
    tall = 3.4 * height / max(width, 1) if height > width else 3.4
    figure = Figure(figsize=(15.0, min(tall, 6.0) + 0.7), dpi=80, facecolor="black")
    FigureCanvasAgg(figure)
    figure.text(0.01, 0.95, shortened(title, 130), color="white", fontsize=13, fontweight="bold", va="center")
    extent = (0.0, float(width), float(height), 0.0)
    for column, name in enumerate(("picture", "reference", "prediction", "wrong")):
        axes = figure.add_axes((0.005 + 0.205 * column, 0.02, 0.2, 0.83))
        axes.set_axis_off()
        axes.set_title(name, color="#C8C8C8", fontsize=10, pad=3)
        axes.imshow(colour, extent=extent, aspect="equal")
        if name in ("reference", "prediction"):
            labels = np.ma.masked_array(maps[column - 1], mask=ignored if column == 1 else False)
            _fill_labels(axes, labels, extent)
        elif name == "wrong":
            _fill(axes, wrong, {code: colour_ for code, (_, colour_) in WRONG.items()}, extent=extent)
    shown = np.concatenate([each[~ignored].ravel() for each in maps])
    _legend(figure, shown, label_names, WRONG, (0.83, 0.93), background=True)
    return _png(figure, "black")


def _fill_labels(axes: Axes, labels: Any, extent: tuple[float, float, float, float]) -> None:
    values = np.unique(labels.compressed())
    places = np.searchsorted(values, np.ma.filled(labels, 0)) if len(values) else np.zeros(labels.shape, dtype=int)
    table = np.array([(*_colour(int(value)), 0.65) for value in values] or [(0, 0, 0, 0)], dtype=np.float32)
    filled = table[np.clip(places, 0, len(table) - 1)]
    filled[np.ma.getmaskarray(labels)] = 0
    axes.imshow(filled, extent=extent, interpolation="nearest", aspect="equal")


def _colour(value: int) -> tuple[float, float, float]:
    return (0.0, 0.0, 0.0) if value == 0 else label_colour(value)


def _fill(
    axes: Axes,
    codes: LabelArray,
    colours: dict[int, str],
    size_mm: tuple[float, float] = (1.0, 1.0),
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    if extent is None:
        extent = (0.0, codes.shape[1] * size_mm[1], codes.shape[0] * size_mm[0], 0.0)
    palette = ListedColormap(["none", *(colours[code] for code in sorted(colours))])
    axes.imshow(
        codes, cmap=palette, vmin=-0.5, vmax=len(colours) + 0.5, extent=extent, interpolation="nearest", aspect="equal"
    )


def _legend(
    figure: Figure,
    shown: npt.NDArray[Any],
    label_names: Sequence[str],
    codes: dict[int, tuple[str, str]],
    place: tuple[float, float],
    background: bool = False,
) -> None:
    """Name the colours of the labels that are to be seen, largest first, and of the differences."""
    values, counts = np.unique(shown, return_counts=True)
    order = [int(values[k]) for k in np.argsort(-counts, kind="stable") if background or values[k]]
    order = [value for value in order if value < len(label_names)]
    names = [(shortened(label_names[value], 26), _colour(value)) for value in order[:LEGEND_LABELS]]
    entries: list[tuple[str, Any]] = [*names]
    if len(order) > LEGEND_LABELS:
        entries.append((f"and {len(order) - LEGEND_LABELS} more", "none"))
    entries += [("differences:", "none"), *codes.values()]
    patches = [
        # The background's black would not be seen.
        Patch(facecolor=colour, label=name, edgecolor="white" if colour == _colour(0) else "none", linewidth=0.8)
        for name, colour in entries
    ]
    figure.legend(
        handles=patches, loc="upper left", bbox_to_anchor=place, frameon=False, labelcolor="white", fontsize=9
    )


def draw_confusion(confusion: npt.NDArray[np.int64], label_names: Sequence[str]) -> bytes:
    """Draw a confusion matrix as PNG: of each reference label's voxels, how many per cent became which label.

    Labels that neither map has are left out.

    Args:
        confusion: (labels, labels) counts, rows reference, columns prediction.
        label_names: One per label.
    """
    kept = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    part = confusion[np.ix_(kept, kept)].astype(np.float64)
    totals = part.sum(1, keepdims=True)
    percent = np.divide(100.0 * part, totals, out=np.full_like(part, np.nan), where=totals > 0)
    size = float(np.clip(0.3 * len(kept) + 2.5, 5.0, 16.0))
    figure = Figure(figsize=(size, size), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(kept):
        shades = axes.imshow(percent, cmap="Blues", vmin=0.0, vmax=100.0, interpolation="nearest")
        figure.colorbar(shades, ax=axes, shrink=0.6, label="% of the reference label")
    else:
        axes.text(0.5, 0.5, "nothing was counted", ha="center")
    axes.set_xlabel("prediction")
    axes.set_ylabel("reference")
    if len(kept) <= MOST_NAMED_CLASSES:
        names = [shortened(label_names[k], 26) for k in kept.tolist()]
        axes.set_xticks(range(len(kept)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(kept)), names, fontsize=7)
        for i, j in zip(*np.nonzero(np.nan_to_num(percent) >= 0.5), strict=True):
            ink = "white" if percent[i, j] > 60 else "black"
            axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", fontsize=6, color=ink)
    return _png(figure, "white")


def _png(figure: Figure, background: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=background, metadata={"Software": "dinomed"})
    return stream.getvalue()
