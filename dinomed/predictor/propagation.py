"""Drawn labels carried through a scan with the features of a segmenting bundle's backbone."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn

from dinomed.errors import InputError, VolumeError
from dinomed.inferers.planes import PLANE_AXES
from dinomed.inferers.propagation import Propagation, drawn_axis, propagate
from dinomed.inferers.slice_tokens import SliceTokens
from dinomed.inferers.voting import VoteWeights
from dinomed.networks.backbones import TimmBackbone
from dinomed.predictor.choices import choose_planes
from dinomed.predictor.loading import explaining, timed
from dinomed.predictor.segmentation import Segmentation
from dinomed.transforms.geometry import GridMap, match_grids
from dinomed.transforms.prediction import Prediction
from dinomed.transforms.provenance import scan_sha256
from dinomed.transforms.volumes import Grid, read_grid, read_volume

_KEPT_SCANS = 3

Labels = np.ndarray[Any, np.dtype[np.uint8]]


class LabelPropagation:
    """Carries labels through scans; the features of the last scans are kept.

    Args:
        work: A segmenting bundle whose network holds a vision transformer.

    Raises:
        InputError: If the bundle is for pictures, or its network has no such backbone.
    """

    def __init__(self, work: Segmentation) -> None:
        self.work = work
        backbones = [part for part in work.network.modules() if isinstance(part, TimmBackbone) and part.family == "vit"]
        if work.takes_pictures or not backbones:
            raise InputError(
                f"the bundle {work.root.name} cannot carry labels through a scan: it is for pictures, or holds no "
                "DINOv3 vision transformer; take another, such as mri_head_segmentation"
            )
        self.backbone: nn.Module = backbones[0]
        self._tokens: OrderedDict[tuple[Hashable, int], SliceTokens] = OrderedDict()

    def propagate(
        self,
        path: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        frame: int | None = None,
        plane: str | None = None,
        beyond: bool = True,
        progress: Callable[[int, int], None] | None = None,
        label_names: Mapping[int, str] | None = None,
    ) -> Prediction:
        """Carry labels through one scan; see `Predictor.propagate`."""
        work = self.work
        work.check_kind(path)
        axis = None if plane is None else PLANE_AXES[_one_plane(plane)]
        frame = work.frame if frame is None else frame
        timings: dict[str, float | None] = {}
        drawn = read_drawn(labels, read_grid(path), path)
        with explaining(path, work.device), torch.no_grad():
            steps = work.native_preprocessing(frame)
            item = timed(timings, "load", lambda: steps({"image": str(path)}, end=1))
            image = timed(timings, "preprocess", lambda: steps(item, start=1))["image"]
            checksum = scan_sha256(Path(path))
            kept_as = None if checksum is None else (checksum, frame)
            carried = timed(timings, "infer", lambda: self.carry(image, drawn, axis, beyond, progress, kept_as))
        prediction = self._assemble(Path(path), Path(labels), image, carried, frame, timings, label_names or {})
        left = not_carried(drawn.numpy(), prediction.labels, _grid_of(image).axes[carried.axis], beyond)
        if left:
            names = ", ".join(prediction.label_names[value] for value in left)
            prediction.doubts = (f"not carried beyond the slices they are drawn on, draw them on more: {names}",)
        return prediction

    def carry(
        self,
        image: MetaTensor,
        drawn: torch.Tensor,
        axis: int | None = None,
        beyond: bool = True,
        progress: Callable[[int, int], None] | None = None,
        kept_as: Hashable = None,
    ) -> Propagation:
        """Carry labels through a scan that is loaded already.

        Args:
            image: (1, X, Y, Z) as `Segmentation.native_preprocessing` gives it.
            drawn: (x, y, z) integers on the scan's own grid.
            axis: Of the image that the drawn slices follow; None finds it.
            beyond: Whether to carry labels beyond their outermost drawn slices.
            progress: Called with the labels done and their number.
            kept_as: What the features are kept as; None computes them for this call.

        Returns:
            The labels in the image's voxel order.
        """
        grid = _grid_of(image)
        spacing = np.linalg.norm(np.asarray(image.affine, dtype=np.float64)[:3, :3], axis=0)
        spacing_mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        marks = grid.to_canonical(drawn).contiguous()
        axis = drawn_axis(marks, spacing_mm) if axis is None else axis
        volume = image.as_tensor()[0]
        tokens = self._kept_tokens(volume, axis, spacing_mm, kept_as)
        return propagate(volume, marks, spacing_mm, axis, tokens, VoteWeights(), beyond, progress)

    def _kept_tokens(
        self, volume: torch.Tensor, axis: int, spacing_mm: tuple[float, float, float], kept_as: Hashable
    ) -> SliceTokens:
        tokens = self._tokens.pop((kept_as, axis), None)
        if tokens is None:
            tokens = SliceTokens(volume, axis, spacing_mm, self.backbone, self.work.run.precision or "auto")
        if kept_as is not None:
            self._tokens[(kept_as, axis)] = tokens
            while len(self._tokens) > _KEPT_SCANS:
                self._tokens.popitem(last=False)
        return tokens

    def _assemble(
        self,
        path: Path,
        labels: Path,
        image: MetaTensor,
        carried: Propagation,
        frame: int | None,
        timings: dict[str, float | None],
        label_names: Mapping[int, str],
    ) -> Prediction:
        native = _grid_of(image)
        found = np.zeros(native.native_shape, dtype=np.uint8)
        native.canonical_view(found)[...] = carried.labels.numpy()
        certainty = carried.certainty.numpy()
        values = [0, *carried.slice_confidence]
        confidence: dict[int, float | None] = {}
        for value in values:
            won = carried.labels.numpy() == value
            confidence[value] = float(certainty[won].mean() / 255) if won.any() else None
        names = {value: label_names.get(value, f"label {value}") if value else "background" for value in values}
        plane = {number: name for name, number in PLANE_AXES.items()}[carried.axis]
        how = {
            "transform": "dinomed.inferers.propagation.propagate",
            "drawn_labels": labels.name,
            "slice_confidence": {
                str(value): {
                    str(_native_index(native, carried.axis, index)): round(share, 4) for index, share in slices.items()
                }
                for value, slices in carried.slice_confidence.items()
            },
            "slice_axis": native.axes[carried.axis],
        }
        run = replace(self.work.run, planes=(plane,), class_groups=None, inference=(how,))
        return Prediction(
            path=path,
            labels=found,
            grid=read_grid(path),
            label_names=names,
            mean_confidence=confidence,
            image=image.as_tensor()[0].to("cpu", torch.float32).numpy(),
            image_affine=np.asarray(image.affine, dtype=np.float64),
            run=run,
            frame=frame,
            timings_s=timings,
        )


def read_drawn(labels: str | os.PathLike[str], grid: Grid, scan: str | os.PathLike[str]) -> torch.Tensor:
    """Read drawn labels: (X, Y, Z) uint8 on a scan's own grid.

    Raises:
        VolumeError: If the file cannot be read, lies on another grid, holds other values than the integers 0 to 255, or
            shows no label.
    """
    try:
        volume = read_volume(labels)
    except VolumeError as error:
        raise VolumeError(f"the drawn labels cannot be used, one 3-D label map is needed: {error}") from error
    array = volume.array
    if array.shape != tuple(grid.shape):
        raise VolumeError(
            f"{labels} has {array.shape} voxels and the scan {scan} {tuple(grid.shape)}; draw the labels on the scan's "
            "own grid"
        )
    spacing = np.linalg.norm(np.asarray(grid.affine)[:3, :3], axis=0)
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*array.shape, 1]
    moved = np.abs(corners @ (np.asarray(volume.affine) - np.asarray(grid.affine)).T).max()
    if moved > 0.1 * spacing.min():
        raise VolumeError(
            f"{labels} lies elsewhere than the scan {scan} (up to {moved:.1f} mm); draw the labels on its own grid"
        )
    if not (np.isfinite(array).all() and (array == np.rint(array)).all() and array.min() >= 0 and array.max() <= 255):
        raise VolumeError(f"{labels} holds other values than the whole numbers 0 to 255; give a label map")
    return torch.from_numpy(array.astype(np.uint8))


def not_carried(drawn: Labels, labels: Labels, axis: int, beyond: bool) -> list[int]:
    """Find the labels that stayed on the slices they were drawn on, where there were others to carry them to.

    Args:
        drawn: (X, Y, Z) uint8, the labels as they were drawn, 0 elsewhere.
        labels: (X, Y, Z) uint8, what became of them.
        axis: That the slices follow.
        beyond: Whether slices beyond a label's outermost drawn ones count; those between them always do.

    Returns:
        Their values in ascending order.
    """
    others = tuple({0, 1, 2} - {axis})
    left = []
    for value in np.unique(drawn[drawn > 0]).tolist():
        open_to_it = ~(drawn == value).any(axis=others)
        if not beyond:
            first, last = np.flatnonzero(~open_to_it)[[0, -1]]
            open_to_it[:first] = open_to_it[last + 1 :] = False
        if open_to_it.any() and not (labels == value).any(axis=others)[open_to_it].any():
            left.append(value)
    return left


def _one_plane(plane: str) -> str:
    planes = choose_planes(plane)
    if len(planes) != 1:
        raise InputError(f"labels are carried along one plane, not {plane!r}; choose one of {', '.join(PLANE_AXES)}")
    return planes[0]


def _grid_of(image: MetaTensor) -> GridMap:
    shape = tuple(int(n) for n in image.meta["native_shape"])
    return match_grids(
        (shape[0], shape[1], shape[2]),
        np.asarray(image.meta["native_affine"], dtype=np.float64),
        tuple(int(n) for n in image.shape[1:]),  # type: ignore[arg-type]
        np.asarray(image.affine, dtype=np.float64),
    )


def _native_index(grid: GridMap, axis: int, index: int) -> int:
    return int(grid.native_shape[grid.axes[axis]] - 1 - index if grid.flips[axis] else index)
