"""Labels that are drawn on a few slices, carried through the volume with a frozen backbone's features; no training.

From every drawn slice a label goes to the next slices in both directions, by `dinomed.inferers.voting`. Between two
drawn slices both directions are joined, and the shape between the two outlines (`dinomed.inferers.shapes`) has a share
that is the larger the worse the carried label meets the outline at the other end. Beyond the outermost drawn slices the
further a label is carried the less it is believed, so that it ends where its organ may have ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from monai.inferers import Inferer
from torch import Tensor, nn

from dinomed.inferers.planes import in_plane_axes
from dinomed.inferers.shapes import overlap, signed_distance_mm
from dinomed.inferers.slice_tokens import SliceTokens
from dinomed.inferers.voting import VoteWeights, noise_level, vote

WORKING_MM = 1.0
"""Labels are carried on pixels of about this size, or of the slice's own where that is larger."""
MARGIN_MM = 20.0
SLOPE = 0.5
"""Millimetres by which a label is expected to shrink on every side for each millimetre beyond its last drawn slice."""
SPREAD = 0.5
"""How doubtful that is: standard deviation as a part of the drawn outline's half width (but 1.5 to 6 mm)."""
_SURE = 5.0
"""Log-odds beyond which a carried label is not believed."""
_TRUST_POWER = 4
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
        carrier = _Carrier(pictures, mask, spacings, tokens, weights or VoteWeights(), beyond)
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
    certainty = torch.where(labels > 0, best, rest)
    certainty[given] = _FULL
    back = tuple(int(np.argsort(order)[each]) for each in range(3))
    return Propagation(labels.permute(back).contiguous(), certainty.permute(back).contiguous(), confidence, axis)


@dataclass
class _Carrier:
    """One label's way through the slices (N, A, B), within a box around it and on working pixels."""

    pictures: Tensor
    mask: Tensor
    spacing_mm: tuple[float, float, float]
    tokens: SliceTokens | None
    weights: VoteWeights
    beyond: bool
    shares: dict[int, Tensor] = field(default_factory=dict)
    box: tuple[slice, slice] = (slice(0), slice(0))

    def run(self) -> dict[int, float]:
        """Fill `shares` by slice and return the confidence by slice."""
        self._lay_out()
        known = [int(index) for index in torch.nonzero(self.mask.any(2).any(1)).flatten()]
        outlines = {index: self._working(self._cut(self.mask, index).float()) for index in known}
        self._scale(known)
        self.shares = {index: outline for index, outline in outlines.items()}
        distances = {index: signed_distance_mm(outline > 0.5, self.pixel_mm) for index, outline in outlines.items()}
        confidence = dict.fromkeys(known, 1.0)
        for low, high in pairwise(known):
            confidence |= self._between(low, high, outlines, distances)
        for index, step in ((known[-1], 1), (known[0], -1)) if self.beyond else ():
            confidence |= self._beyond(index, step, outlines[index], distances[index])
        return dict(sorted(confidence.items()))

    def _cut(self, slices: Tensor, index: int) -> Tensor:
        return slices[index][self.box]

    def at_native(self, share: Tensor) -> Tensor:
        """Bring a share on working pixels back to the box's own pixels."""
        size = tuple(part.stop - part.start for part in self.box)
        if share.shape == size:
            return share
        reached = [n * step for n, step in zip(share.shape, self.steps, strict=True)]
        return F.interpolate(share[None, None], size=reached, mode="bilinear")[0, 0, : size[0], : size[1]]

    def _lay_out(self) -> None:
        """Choose the box and the working pixels."""
        # A label must be wider than a working pixel to be seen on one.
        known = torch.nonzero(self.mask.any(2).any(1)).flatten()
        width = min(int(signed_distance_mm(self.mask[index], (2.0, 2.0)).max() + 1) for index in known)
        self.steps = tuple(max(1, min(width // 2, round(WORKING_MM / each))) for each in self.spacing_mm[1:])
        self.pixel_mm = (self.spacing_mm[1] * self.steps[0], self.spacing_mm[2] * self.steps[1])
        seen = self.mask.any(0)
        parts = []
        for axis in (0, 1):
            line = torch.nonzero(seen.any(1 - axis)).flatten()
            low, high = int(line[0]), int(line[-1]) + 1
            margin = round(max(MARGIN_MM, (high - low) * self.spacing_mm[1 + axis] / 4) / self.spacing_mm[1 + axis])
            parts.append(slice(max(0, low - margin), min(seen.shape[axis], high + margin)))
        self.box = (parts[0], parts[1])
        self.places = tuple(
            torch.arange(-(-(part.stop - part.start) // step)) * step + (step - 1) / 2 + part.start
            for part, step in zip(self.box, self.steps, strict=True)
        )
        self.reach_mm = min(16.0, 4.0 + 2.0 * self.spacing_mm[0])

    def _scale(self, known: list[int]) -> None:
        """Find the range of intensities about the label, and their noise, which becomes the unit."""
        near = [self._working(self._cut(self.pictures, index).float()) for index in known]
        values = torch.cat([picture.flatten() for picture in near])
        values = values[:: max(1, len(values) // 500_000)]
        low, high = (float(values.quantile(each)) for each in (0.02, 0.98))
        contrast = max(high - low, 1e-6)
        self.least, self.most = low - contrast / 2, high + contrast / 2
        self.noise = max(float(torch.stack([noise_level(picture) for picture in near]).median()), 0.01 * contrast)

    def _working(self, picture: Tensor) -> Tensor:
        """Average a picture of the box over working pixels."""
        if self.steps == (1, 1):
            return picture
        short = [-size % step for size, step in zip(picture.shape, self.steps, strict=True)]
        padded = F.pad(picture[None, None], (0, short[1], 0, short[0]), mode="replicate")
        return F.avg_pool2d(padded, self.steps)[0, 0]

    def _seen(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Intensities and features of a slice."""
        picture = self._working(self._cut(self.pictures, index).float())
        picture = picture.clamp(self.least, self.most) / self.noise
        return picture, None if self.tokens is None else self.tokens.at(index, *self.places)

    def _carry(self, start: int, stop: int, share: Tensor) -> list[Tensor]:
        """Carry a share from slice to slice until `stop`, which is the last."""
        step = 1 if stop > start else -1
        there = self._seen(start)
        carried = []
        for index in range(start + step, stop + step, step):
            here = self._seen(index)
            share = self._vote(share, here, there, replace(self.weights, unlike=-math.inf))  # it is there at both ends
            carried.append(share)
            there = here
        return carried

    def _vote(
        self,
        share: Tensor,
        here: tuple[Tensor, Tensor | None],
        there: tuple[Tensor, Tensor | None],
        weights: VoteWeights,
    ) -> Tensor:
        features = None if here[1] is None or there[1] is None else (here[1], there[1])
        return vote(share, (here[0], there[0]), features, self.pixel_mm, self.reach_mm, weights)

    def _between(
        self, low: int, high: int, outlines: dict[int, Tensor], distances: dict[int, Tensor]
    ) -> dict[int, float]:
        """Fill the slices between two drawn ones."""
        if high - low < 2:
            return {}
        up = self._carry(low, high, outlines[low])
        down = self._carry(high, low, outlines[high])[::-1]
        met = (overlap(up[-1], outlines[high]) + overlap(down[0], outlines[low])) / 2
        alike = overlap(outlines[low], outlines[high])
        carried, shaped = met**_TRUST_POWER, alike**_TRUST_POWER
        trust = carried / (carried + shaped) if carried + shaped > 0 else 1.0
        confidence = {}
        for index in range(low + 1, high):
            way = (index - low) / (high - low)
            one, other = up[index - low - 1], down[index - low]
            shape = torch.sigmoid(((1 - way) * distances[low] + way * distances[high]) / min(self.pixel_mm))
            self.shares[index] = trust * ((1 - way) * one + way * other) + (1 - trust) * shape
            confidence[index] = overlap(one, other)
        return confidence

    def _beyond(self, start: int, step: int, outline: Tensor, distance: Tensor) -> dict[int, float]:
        """Carry a label outward from the last drawn slice until nothing of it is believed."""
        radius_mm = float(distance.max())
        spread_mm = min(max(SPREAD * radius_mm, 1.5), 6.0)
        there, share, confidence = self._seen(start), outline, {}
        stop = len(self.pictures) if step > 0 else -1
        for index in range(start + step, stop, step):
            here = self._seen(index)
            share = self._vote(share, here, there, self.weights)
            there = here
            away_mm = abs(index - start) * self.spacing_mm[0]
            doubt = (distance - SLOPE * away_mm) / spread_mm
            believed = torch.sigmoid(torch.logit(share, eps=1e-6).clamp(-_SURE, _SURE) + doubt)
            won = believed > 0.5
            if not bool(won.any()):
                break
            self.shares[index] = believed
            confidence[index] = float(believed[won].mean())
        return confidence


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
