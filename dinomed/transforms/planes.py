"""Planes of a volume as a picture shows them, with the labels that lie in them.

Planes lie along the voxel axes of the network grid (to the right, to the front, up), through the centre of mass of
what was found, and are turned as radiologists expect them: the patient's right on the left of axial and coronal
planes, the face to the left in the sagittal one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
LabelArray = np.ndarray[Any, np.dtype[np.uint8]]

DARK = 0.08
"""Grey value up to which a pixel counts as air."""

THINNED_VOXELS = 2**22
MARGIN_MM = 11.0
"""Room around the head for the letters at the edges."""

VIEWS = (
    # name, axis that it cuts, axis and direction of its rows, of its columns, marks at the left, right, top, bottom
    ("axial", 2, (1, -1), (0, -1), "RLAP"),
    ("coronal", 1, (2, -1), (0, -1), "RLSI"),
    ("sagittal", 0, (2, -1), (1, -1), "APSI"),
)


@dataclass(frozen=True)
class Plane:
    """One plane ready to be shown.

    Attributes:
        heading: Name and position.
        marks: Letters for the left, right, top and bottom edge.
        grey: Grey values in [0, 1], (rows, columns).
        found: uint8 labels, (rows, columns).
        size_mm: Height and width of a pixel.
    """

    heading: str
    marks: str
    grey: FloatArray
    found: LabelArray
    size_mm: tuple[float, float]

    def box_mm(self) -> tuple[float, float, float, float]:
        """Return left, right, top and bottom of what is worth showing: the head and a margin, not the air around."""
        shown = (self.grey > DARK) | (self.found > 0)
        limits: list[float] = []
        for axis in (1, 0):
            hits = np.flatnonzero(shown.any(axis=1 - axis))
            first, last = (int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, shown.shape[axis])
            limits += [first * self.size_mm[axis] - MARGIN_MM, last * self.size_mm[axis] + MARGIN_MM]
        return limits[0], limits[1], limits[2], limits[3]


def centre_of_labels(labels: LabelArray) -> FloatArray | None:
    """Return the mean of the labels' centres of mass in voxel coordinates (3,), or None if nothing was found.

    Every label counts the same, so that the planes pass through the many small structures rather than through the
    middle of the largest. Large maps are thinned to every second voxel, which moves the centre by a fraction of one.
    """
    for step in (2, 1) if labels.size > THINNED_VOXELS else (1,):
        thin = np.ascontiguousarray(labels[::step, ::step, ::step])
        centre = []
        for axis in range(3):
            counts = np.stack([np.bincount(slab.ravel(), minlength=256)[1:] for slab in np.moveaxis(thin, axis, 0)])
            totals = counts.sum(axis=0)
            found = totals > 0
            if found.any():
                centre.append(step * float(np.mean(np.arange(len(counts)) @ counts[:, found] / totals[found])))
        if centre:
            return np.array(centre)
    return None


def cut_plane(
    image: FloatArray, axis: int, rows: tuple[int, int], columns: tuple[int, int], index: int
) -> tuple[FloatArray, FloatArray]:
    """Cut one plane the way it is shown.

    Args:
        image: (X, Y, Z).
        axis: Axis that the plane cuts.
        rows: Axis of the rows and its direction, 1 ascending or -1 descending.
        columns: Axis of the columns and its direction.
        index: Position on `axis`.

    Returns:
        The plane (rows, columns) and the voxel coordinates (rows, columns, 3) of its pixels.
    """
    points = np.zeros((image.shape[rows[0]], image.shape[columns[0]], 3))
    points[..., axis] = index
    points[..., rows[0]] = np.arange(image.shape[rows[0]])[:: rows[1], None]
    points[..., columns[0]] = np.arange(image.shape[columns[0]])[None, :: columns[1]]
    whole = points.astype(np.intp)
    return image[whole[..., 0], whole[..., 1], whole[..., 2]], points


def sample_labels(labels: LabelArray, to_labels: FloatArray, points: FloatArray) -> LabelArray:
    """Look up the nearest label of each point; 0 outside.

    Args:
        labels: uint8 (X, Y, Z).
        to_labels: (4, 4), point coordinates -> voxel coordinates of `labels`.
        points: (..., 3).
    """
    nearest = np.rint(points @ to_labels[:3, :3].T + to_labels[:3, 3]).astype(np.int64)
    inside = np.all((nearest >= 0) & (nearest < labels.shape), axis=-1)
    nearest[~inside] = 0
    found = labels[nearest[..., 0], nearest[..., 1], nearest[..., 2]]
    return np.where(inside, found, 0).astype(np.uint8)


def stretch(plane: FloatArray) -> FloatArray:
    """Stretch a plane to [0, 1], leaving out the darkest and brightest specks."""
    finite = np.nan_to_num(np.asarray(plane, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = (float(value) for value in np.percentile(finite, (1.0, 99.7)))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    if high <= low:
        return np.zeros_like(finite)
    return np.clip((finite - low) / (high - low), 0.0, 1.0)


def central_planes(
    image: FloatArray, image_affine: FloatArray, labels: LabelArray, labels_affine: FloatArray
) -> list[Plane]:
    """Cut an axial, a coronal and a sagittal plane through the centre of what was found, or of the volume.

    Args:
        image: (X, Y, Z) on the network grid, axes to the right, to the front and up.
        image_affine: (4, 4), voxel of `image` -> RAS+ mm.
        labels: uint8 (X', Y', Z') on the scan's own grid.
        labels_affine: (4, 4), voxel of `labels` -> RAS+ mm.
    """
    to_world = np.asarray(image_affine, dtype=np.float64)
    to_labels = np.linalg.inv(np.asarray(labels_affine, dtype=np.float64)) @ to_world
    spacing_mm = np.linalg.norm(to_world[:3, :3], axis=0)
    middle = (np.array(image.shape) - 1) / 2.0
    centre = centre_of_labels(labels)
    if centre is not None:
        back = np.linalg.inv(to_labels)
        middle = back[:3, :3] @ centre + back[:3, 3]
    where = np.clip(np.rint(middle).astype(int), 0, np.array(image.shape) - 1)
    planes = []
    for name, axis, rows, columns, marks in VIEWS:
        index = int(where[axis])
        plane, points = cut_plane(image, axis, rows, columns, index)
        planes.append(
            Plane(
                heading=f"{name}, slice {index + 1} of {image.shape[axis]}",
                marks=marks,
                grey=stretch(plane),
                found=sample_labels(labels, to_labels, points),
                size_mm=(float(spacing_mm[rows[0]]), float(spacing_mm[columns[0]])),
            )
        )
    return planes
