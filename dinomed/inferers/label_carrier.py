"""One label's way from its drawn slices through a volume, see `dinomed.inferers.propagation`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dinomed.inferers.appearance import Appearance, Seen
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
NEAR_MM = 5.0
"""What lies this near to a label is what it stands out from."""
APPEARANCE = 0.5
"""Weight of the log-odds of a pixel's appearance beside those of what was carried to it."""
_SURE = 5.0
"""Log-odds beyond which a carried label is not believed."""
_SURE_BETWEEN = 7.0
_TRUST_POWER = 4


@dataclass
class LabelCarrier:
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
        self._appearance = Appearance(self._seen, {index: outlines[index] > 0.5 for index in known}, self.pixel_mm)
        self.shares = dict(outlines)
        distances = {index: signed_distance_mm(outline > 0.5, self.pixel_mm) for index, outline in outlines.items()}
        self._lower_unlike(outlines, distances)
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

    def _lower_unlike(self, outlines: dict[int, Tensor], distances: dict[int, Tensor]) -> None:
        """Call nothing unlike that differs by no more than the label itself varies or stands out from what is near."""
        within, beside = [], []
        for index, outline in outlines.items():
            picture = self._seen(index)[0]
            within.append(picture[outline > 0.5])
            beside.append(picture[(outline <= 0.5) & (distances[index] > -NEAR_MM)])
        inner, outer = (torch.cat(each)[:: max(1, sum(map(len, each)) // 500_000)] for each in (within, beside))
        if not len(inner):
            return
        contrast = float(inner.quantile(0.98) - inner.quantile(0.02))
        if len(outer):
            contrast = max(contrast, abs(float(inner.median() - outer.median())))
        apart = self.weights.unlike_contrast * contrast / self.weights.intensity
        self.weights = replace(self.weights, unlike=min(self.weights.unlike, -(apart**2)))

    def _working(self, picture: Tensor) -> Tensor:
        """Average a picture of the box over working pixels."""
        if self.steps == (1, 1):
            return picture
        short = [-size % step for size, step in zip(picture.shape, self.steps, strict=True)]
        padded = F.pad(picture[None, None], (0, short[1], 0, short[0]), mode="replicate")
        return F.avg_pool2d(padded, self.steps)[0, 0]

    def _seen(self, index: int) -> Seen:
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
        here: Seen,
        there: Seen,
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
            joined = trust * ((1 - way) * one + way * other) + (1 - trust) * shape
            doubtful = 4 * joined * (1 - joined)  # what both directions and the shape agree on stays
            self.shares[index] = self._judged(joined, _SURE_BETWEEN, self._seen(index), weight=doubtful)
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
            believed = self._judged(share, _SURE, here, doubt)
            won = believed > 0.5
            if not bool(won.any()):
                break
            self.shares[index] = believed
            confidence[index] = float(believed[won].mean())
        return confidence

    def _judged(
        self, share: Tensor, sure: float, here: Seen, doubt: Tensor | float = 0.0, weight: Tensor | float = 1.0
    ) -> Tensor:
        """Weigh what was carried to a slice against how the slice looks there."""
        carried = torch.logit(share, eps=1e-6).clamp(-sure, sure)
        return torch.sigmoid(carried + doubt + APPEARANCE * weight * self._appearance.log_odds(here))
