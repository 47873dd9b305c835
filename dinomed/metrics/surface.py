"""Distances between the surfaces of label maps, in millimetres: Hausdorff distance and surface Dice.

Surface voxels, areas and distances come from MONAI; here is what counts, what an absent class means, and that no more
than the box around a class is looked at. On a scan the axes of the array must be those that the spacing names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Mask = NDArray[np.bool_]
ROUNDING = 1 + 1e-6  # distances are float32; one of exactly the tolerance lies within it


def hausdorff_distances(
    predicted: Tensor,
    reference: Tensor,
    num_classes: int,
    spacing_mm: Sequence[float],
    percentile: float = 95.0,
    ignore_index: int | None = None,
    include_background: bool = False,
) -> Tensor:
    """Hausdorff distance of each class, by default its 95th percentile (HD95).

    A surface voxel has a neighbour across a face that is not of the class; what lies outside the map is not. The
    distances from the surface voxels of each map to the nearest of the other give two percentiles; the larger counts.

    Args:
        predicted: label map (X, Y) or (X, Y, Z).
        reference: label map of the same shape.
        num_classes: number of labels, background included.
        spacing_mm: of the voxels, one for each axis.
        percentile: 0 to 100; 100 is the Hausdorff distance itself.
        ignore_index: voxels with this reference label belong to no class in either map, and surface voxels that touch
            one by a face, an edge or a corner are left out; None for no such label.
        include_background: whether class 0, the largest and of least use, is scored too.

    Returns:
        (num_classes,) float64 in mm: NaN for a class that neither map has, and for class 0 unless asked for; infinite
        for a class that only one map has.

    Raises:
        ValueError: if shapes, labels, spacing or percentile do not fit.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie in 0 to 100, not {percentile}")
    from monai.metrics.utils import get_mask_edges  # its import takes seconds

    boxes = _boxes(predicted, reference, num_classes, spacing_mm, ignore_index, include_background)
    distances = torch.full((num_classes,), math.nan, dtype=torch.float64)
    for index, given, wanted, ignored in boxes:
        edges: list[Mask] = [np.asarray(edge) for edge in get_mask_edges(given, wanted, crop=False)]
        if ignored is not None:
            reach = ndimage.binary_dilation(ignored, np.ones([3] * ignored.ndim, dtype=bool))
            edges = [edge & ~reach for edge in edges]
        there, back = _distances(edges[0], edges[1], spacing_mm)
        if there.size or back.size:
            distances[index] = max(_percentile(there, percentile), _percentile(back, percentile))
    return distances


def surface_dice(
    predicted: Tensor,
    reference: Tensor,
    num_classes: int,
    spacing_mm: Sequence[float],
    tolerance_mm: float | Sequence[float],
    ignore_index: int | None = None,
    include_background: bool = False,
) -> Tensor:
    """Normalised surface Dice (NSD) of each class: the share of both surfaces within a tolerance of the other one.

    The surface runs between the voxels, as in marching cubes; its elements count by their area (in two dimensions, by
    their length), so that neither the spacing nor the direction of a surface changes its weight.

    Args:
        predicted: label map (X, Y) or (X, Y, Z).
        reference: label map of the same shape.
        num_classes: number of labels, background included.
        spacing_mm: of the voxels, one for each axis.
        tolerance_mm: one number, or one for each class, background included.
        ignore_index: voxels with this reference label belong to no class in either map, and surface elements that touch
            one are left out; None for no such label.
        include_background: whether class 0, the largest and of least use, is scored too.

    Returns:
        (num_classes,) float64: NaN for a class that neither map has, and for class 0 unless asked for; 0 for a class
        that only one map has.

    Raises:
        ValueError: if shapes, labels, spacing or tolerances do not fit.

    Source:
        Nikolov et al., Clinically applicable segmentation of head and neck anatomy for radiotherapy, 2021.
    """
    tolerances = class_tolerances(tolerance_mm, num_classes)
    from monai.metrics.utils import get_mask_edges  # its import takes seconds

    boxes = _boxes(predicted, reference, num_classes, spacing_mm, ignore_index, include_background)
    scores = torch.full((num_classes,), math.nan, dtype=torch.float64)
    for index, given, wanted, ignored in boxes:
        results = get_mask_edges(given, wanted, crop=False, spacing=list(spacing_mm))
        edges: list[Mask] = [np.asarray(edge) for edge in results[:2]]
        if ignored is not None:
            reach = ignored
            for axis in range(ignored.ndim):  # a surface element lies amid 2 x 2 (x 2) voxels
                before, after = (np.delete(reach, end, axis=axis) for end in (-1, 0))
                reach = before | after
            edges = [edge & ~reach for edge in edges]
        areas = [np.asarray(area, dtype=np.float64)[edge] for area, edge in zip(results[2:], edges, strict=True)]
        sides = _distances(edges[0], edges[1], spacing_mm)
        total = sum(float(area.sum()) for area in areas)
        within = (area[side <= tolerances[index] * ROUNDING] for area, side in zip(areas, sides, strict=True))
        if total > 0:
            scores[index] = sum(float(area.sum()) for area in within) / total
    return scores


def class_tolerances(tolerance_mm: float | Sequence[float], num_classes: int) -> list[float]:
    """Return one tolerance for each class.

    Raises:
        ValueError: if there is not one for each class, or one is negative or not finite.
    """
    given = tolerance_mm if isinstance(tolerance_mm, Sequence) else [tolerance_mm] * num_classes
    tolerances = [float(mm) for mm in given]
    if len(tolerances) != num_classes or not all(math.isfinite(mm) and mm >= 0 for mm in tolerances):
        raise ValueError(
            f"tolerance_mm must be one number or one for each of {num_classes} classes, finite and not negative, "
            f"not {tolerance_mm}"
        )
    return tolerances


def _boxes(
    predicted: Tensor,
    reference: Tensor,
    num_classes: int,
    spacing_mm: Sequence[float],
    ignore_index: int | None,
    include_background: bool,
) -> Iterator[tuple[int, Tensor, Tensor, Mask | None]]:
    """Each class that a map has: both masks and what is ignored, in the box around it with a rim of one voxel."""
    if predicted.shape != reference.shape or predicted.ndim not in (2, 3):
        raise ValueError(
            f"label maps must have one shape (X, Y) or (X, Y, Z), not {tuple(predicted.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if len(spacing_mm) != predicted.ndim or not all(math.isfinite(mm) and mm > 0 for mm in spacing_mm):
        raise ValueError(f"spacing_mm must be {predicted.ndim} positive numbers, not {list(spacing_mm)}")
    given, wanted = (_label_array(labels) for labels in (predicted, reference))
    ignored = None
    if ignore_index is not None and bool((wanted == ignore_index).any()):
        ignored = wanted == ignore_index
        given, wanted = (np.where(ignored, -1, labels) for labels in (given, wanted))
    for name, labels in (("predicted", given), ("reference", wanted)):
        counts = labels if ignored is None else labels[~ignored]
        if counts.size and not (counts.min() >= 0 and counts.max() < num_classes):
            raise ValueError(
                f"{name} labels run from {counts.min()} to {counts.max()}; they must lie in 0..{num_classes - 1}"
            )
    found = [ndimage.find_objects(labels + 1, max_label=num_classes) for labels in (given, wanted)]
    for index, places in enumerate(zip(*found, strict=True)):
        present = [place for place in places if place is not None]
        if not present or index == ignore_index or not (index or include_background):
            continue
        axes = zip(*present, strict=True)
        box = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)
        masks = [torch.from_numpy(np.pad(labels[box] == index, 1)) for labels in (given, wanted)]
        yield index, masks[0], masks[1], None if ignored is None else _with_rim(ignored, box)


def _label_array(labels: Tensor) -> NDArray[Any]:
    """A label map in signed whole numbers, two bytes each where they hold every number of its type."""
    array: NDArray[Any] = labels.detach().as_subclass(Tensor).cpu().numpy()
    small = array.dtype == np.bool_ or (array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int16))
    return array.astype(np.int16 if small else np.int32)


def _with_rim(mask: Mask, box: tuple[slice, ...]) -> Mask:
    """A mask's box with one voxel more on each side; False outside the map."""
    wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    rims = [(int(s.start == 0), int(s.stop >= length)) for s, length in zip(box, mask.shape, strict=True)]
    return np.pad(mask[wide], rims)


def _distances(given: Mask, wanted: Mask, spacing_mm: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """From each surface voxel of one map to the nearest of the other, both ways; infinite where the other has none."""
    from monai.metrics.utils import get_surface_distance

    if not (given.any() and wanted.any()):
        return np.full(int(given.sum()), math.inf), np.full(int(wanted.sum()), math.inf)
    spacing = list(spacing_mm)
    # MONAI looks for the nearest voxel in SciPy's KDTree, which asks for the number after a coordinate. After 0 there
    # is none where tiny numbers are taken as 0 (torch.set_flush_denormal, as training has it): it would recurse until
    # it crashes. So no coordinate may be 0.
    given, wanted = (np.pad(mask, [(1, 0)] * mask.ndim) for mask in (given, wanted))
    return (
        np.asarray(get_surface_distance(given, wanted, spacing=spacing), dtype=np.float64),
        np.asarray(get_surface_distance(wanted, given, spacing=spacing), dtype=np.float64),
    )


def _percentile(distances: NDArray[Any], percentile: float) -> float:
    """A percentile; 0 of none, infinite of infinite ones, between which nothing can be interpolated."""
    if not distances.size:
        return 0.0
    return math.inf if math.isinf(distances[0]) else float(np.percentile(distances, percentile))
