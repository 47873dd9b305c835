"""Labels that are drawn on a few slices, carried through the volume with a frozen backbone's features; no training.

From every drawn slice a label goes to the next slices in both directions, by `dinomed.inferers.voting`. Between two
drawn slices both directions are joined, and the shape between the two outlines (`dinomed.inferers.shapes`) has a share
that is the larger the worse the carried label meets the outline at the other end. Beyond the outermost drawn slices the
further a label is carried the less it is believed, so that it ends where its organ may have ended. What was carried to
a slice is weighed against how the label looks on its drawn slices (`dinomed.inferers.appearance`). What does not hang
together with a drawn slice in the end is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from scipy import ndimage
from torch import Tensor, nn

from dinomed.inferers.label_carrier import LabelCarrier
from dinomed.inferers.planes import in_plane_axes
from dinomed.inferers.slice_tokens import SliceTokens
from dinomed.inferers.voting import VoteWeights

_FULL = 255

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Propagation:
    """What was carried.

    Attributes:
        labels: (X, Y, Z) uint8; the drawn slices are as they were drawn.
        certainty: (X, Y, Z) uint8, share of the label that won in each voxel times 255; where there is no label, what
            the strongest label leaves.
        slice_confidence: By label, then by slice: agreement (Dice) of the two directions between drawn slices; beyond
            the outermost the mean share of the label where it won; 1 where it was drawn.
        axis: That the slices follow.
    """

    labels: Tensor
    certainty: Tensor
    slice_confidence: dict[int, dict[int, float]]
    axis: int


def drawn_axis(drawn: Tensor, spacing_mm: Sequence[float]) -> int:
    """Find the axis along which labels (X, Y, Z) were drawn slice by slice.

    Along it a label has short runs: single slices with gaps between them. The axis with the shortest runs, as the
    geometric mean of the labels' mean runs, wins; of equals the one with the thickest slices, then the last (axial, in
    RAS order).

    Raises:
        ValueError: If nothing is drawn.
    """
    values = [value for value in torch.unique(drawn).tolist() if value > 0]
    if not values:
        raise ValueError("no label is drawn; give labels above 0 on one slice or more")
    logs = [0.0, 0.0, 0.0]
    for value in values:
        marked = drawn == value
        count = int(marked.sum())
        for axis in range(3):
            length = marked.shape[axis]
            ends = marked.narrow(axis, 0, length - 1) & ~marked.narrow(axis, 1, length - 1)
            logs[axis] += math.log(count / (int(ends.sum()) + int(marked.select(axis, length - 1).sum())))
    return min(range(3), key=lambda axis: (round(logs[axis], 6), -round(float(spacing_mm[axis]), 3), -axis))


def propagate(
    volume: Tensor,
    drawn: Tensor,
    spacing_mm: tuple[float, float, float],
    axis: int | None = None,
    tokens: SliceTokens | None = None,
    weights: VoteWeights | None = None,
    beyond: bool = True,
    progress: Progress | None = None,
) -> Propagation:
    """Carry drawn labels through a volume.

    A label is taken to be drawn completely on every slice where it is drawn at all; a slice without it says nothing of
    it.

    Args:
        volume: (X, Y, Z) floating point; only differences of its intensities count.
        drawn: (X, Y, Z) integers, labels 1 to 255 on one slice or more, 0 elsewhere.
        spacing_mm: Voxel size along X, Y and Z.
        axis: That the drawn slices follow; None finds it (`drawn_axis`).
        tokens: Features of the slices along that axis; None votes by intensity and place alone.
        weights: Of the vote.
        beyond: Carry labels beyond their outermost drawn slices; False fills only what lies between.
        progress: Called with the labels done and their number.

    Raises:
        ValueError: If the shapes differ, nothing is drawn, or the labels are other than whole numbers from 0 to 255.
    """
    if volume.ndim != 3 or volume.shape != drawn.shape:
        raise ValueError(
            f"the volume {tuple(volume.shape)} and the drawn labels {tuple(drawn.shape)} must have one 3-D shape"
        )
    if not bool(((drawn >= 0) & (drawn <= _FULL) & (drawn == drawn.to(torch.uint8))).all()):
        raise ValueError("drawn labels must be whole numbers from 0 to 255")
    axis = drawn_axis(drawn, spacing_mm) if axis is None else axis
    q, p = in_plane_axes(axis)
    order = (axis, p, q)
    pictures, marks = volume.permute(order), drawn.permute(order).to("cpu", torch.uint8)
    spacings = (float(spacing_mm[axis]), float(spacing_mm[p]), float(spacing_mm[q]))
    values = [int(value) for value in torch.unique(drawn) if value > 0]
    if not values:
        raise ValueError("no label is drawn; give labels above 0 on one slice or more")
    labels = torch.zeros(marks.shape, dtype=torch.uint8)
    best = torch.full(marks.shape, _FULL // 2, dtype=torch.uint8)
    rest = torch.full(marks.shape, _FULL, dtype=torch.uint8)
    confidence = {}
    for done, value in enumerate(values):
        mask = (marks == value).to(volume.device)
        carrier = LabelCarrier(pictures, mask, spacings, tokens, weights or VoteWeights(), beyond)
        confidence[value] = carrier.run()
        for index, share in carrier.shares.items():
            where = (index, *carrier.box)
            own = marks[where] == value
            # A slice where the label is drawn has it there and nowhere else.
            share = own.float() if bool(own.any()) else carrier.at_native(share).cpu()
            share = torch.where((marks[where] > 0) & ~own, 0, share)
            levels = (share * _FULL).round().to(torch.uint8)
            wins = levels > best[where]
            labels[where] = torch.where(wins, value, labels[where])
            best[where] = torch.where(wins, levels, best[where])
            rest[where] = torch.minimum(rest[where], _FULL - levels)
        if progress is not None:
            progress(done + 1, len(values))
    given = marks > 0
    labels[given] = marks[given]
    _leave_out_islands(labels, given)
    certainty = torch.where(labels > 0, best, rest)
    certainty[given] = _FULL
    back = tuple(int(np.argsort(order)[each]) for each in range(3))
    return Propagation(labels.permute(back).contiguous(), certainty.permute(back).contiguous(), confidence, axis)


def _leave_out_islands(labels: Tensor, given: Tensor) -> None:
    """Take away, in place, what does not hang together with a drawn slice of its own label (26 neighbours)."""
    array, drawn = labels.numpy(), given.numpy()
    for value, box in enumerate(ndimage.find_objects(array), 1):
        if box is not None:
            parts, _ = ndimage.label(array[box] == value, structure=np.ones((3, 3, 3)))
            hanging = np.unique(parts[drawn[box]])
            array[box][(parts > 0) & ~np.isin(parts, hanging)] = 0


class PropagationInferer(Inferer):
    """Carry drawn labels through a volume with the features of a frozen backbone.

    Args:
        precision: "float32", "bfloat16" or "auto", which takes bfloat16 where the device multiplies it natively.
        weights: Of the vote; None takes the defaults.
        progress: Called with the labels done and their number.
    """

    def __init__(
        self, precision: str = "auto", weights: VoteWeights | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__()
        self.precision = precision
        self.weights = weights
        self.progress = progress

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Carry labels.

        Args:
            inputs: (1, 1, X, Y, Z) in RAS order, its intensities as the backbone's training had them.
            network: The backbone, in eval mode.
            *args: None.
            **kwargs: `drawn` (1, 1, X, Y, Z), `spacing_mm` and, where wanted, `axis` and `beyond`.

        Returns:
            A `Propagation`.
        """
        assert isinstance(network, nn.Module)
        drawn, spacing_mm, axis = kwargs["drawn"][0, 0], kwargs["spacing_mm"], kwargs.get("axis")
        axis = drawn_axis(drawn, spacing_mm) if axis is None else axis
        tokens = SliceTokens(inputs[0, 0], axis, spacing_mm, network, self.precision)
        beyond = kwargs.get("beyond", True)
        return propagate(inputs[0, 0], drawn, spacing_mm, axis, tokens, self.weights, beyond, self.progress)
