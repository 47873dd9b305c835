"""How a drawn label looks: log-odds of every pixel by its intensities and features, learnt from the drawn slices alone.

A logistic regression with a ridge penalty tells the pixels of the label from those around it. Its inputs are the mean
intensities of a pixel's surroundings of two sizes, each as one of 16 levels, and the backbone's features. It is solved
anew for each label, in a few Newton steps; the backbone stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dinomed.inferers.shapes import signed_distance_mm

AROUND_MM = 15.0
"""How far from the label pixels count as its surroundings."""
LIMIT = 3.0
"""Largest log-odds, since what a slice does not show is not known."""
RIDGE = 0.003
"""Weight of the squared coefficients beside the mean log loss."""
_SIDES = (3, 7)
_LEVELS = 16
_NEWTON_STEPS = 8
_LARGEST = 200_000

Seen = tuple[Tensor, Tensor | None]
"""Intensities (A, B) and features (D, A, B) of a slice."""


class Appearance:
    """What tells a label from its surroundings on its drawn slices; label and surroundings count the same.

    Args:
        see: Gives intensities and features of a slice by its index.
        masks: (A, B) bool of each drawn slice; where none of them shows both the label and something else, all log-odds
            are 0.
        pixel_mm: Size of the pixels.
    """

    def __init__(self, see: Callable[[int], Seen], masks: Mapping[int, Tensor], pixel_mm: tuple[float, float]) -> None:
        self._weights: Tensor | None = None
        near = {
            index: torch.nonzero((signed_distance_mm(mask, pixel_mm) > -AROUND_MM).flatten()).flatten()
            for index, mask in masks.items()
        }
        every = max(1, -(-sum(len(each) for each in near.values()) // _LARGEST))
        near = {index: each[::every] for index, each in near.items()}
        label = torch.cat([mask.flatten()[near[index]] for index, mask in masks.items()])
        if bool(label.all()) or not bool(label.any()):
            return
        # Slice by slice, so that many of them do not need much memory.
        averages, tokens = [], []
        for index, chosen in near.items():
            picture, features = see(index)
            averages.append(torch.stack([_average(picture, side).flatten()[chosen] for side in _SIDES]))
            if features is not None:
                tokens.append(features.flatten(1)[:, chosen])
        means = torch.cat(averages, dim=1)
        self._levels = means[0].quantile(torch.linspace(0, 1, _LEVELS + 1)[1:-1].to(means))
        found = torch.cat(tokens, dim=1) if tokens else None
        if found is not None:
            self._mean, self._unit = found.mean(1), found.std(1).mean().clamp(min=1e-6)
        self._weights = _logistic_regression(self._inputs(means, found), label.to(means))

    def log_odds(self, seen: Seen) -> Tensor:
        """Log-odds (A, B) of the label in a slice, from -LIMIT to LIMIT."""
        picture, features = seen
        if self._weights is None:
            return torch.zeros_like(picture)
        means = torch.stack([_average(picture, side).flatten() for side in _SIDES])
        inputs = self._inputs(means, None if features is None else features.flatten(1))
        return (inputs @ self._weights).reshape(picture.shape).clamp(-LIMIT, LIMIT)

    def _inputs(self, means: Tensor, tokens: Tensor | None) -> Tensor:
        """(pixels, inputs), the last of them 1, from mean intensities (sides, pixels) and features (D, pixels)."""
        parts = [F.one_hot(torch.bucketize(each, self._levels), _LEVELS).to(means) for each in means]
        if tokens is not None:
            parts.append((tokens.T - self._mean) / self._unit)
        return torch.cat([*parts, torch.ones_like(parts[0][:, :1])], dim=1)


def _average(picture: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(picture[None, None], side, 1, side // 2, count_include_pad=False)[0, 0]


def _logistic_regression(inputs: Tensor, label: Tensor) -> Tensor:
    """Weights (inputs,) of balanced logistic regression with a ridge penalty on all but the last."""
    share = label.mean()
    counts = torch.where(label > 0, 0.5 / share, 0.5 / (1 - share)) / len(label)
    ridge = torch.full_like(inputs[0], RIDGE)
    ridge[-1] = 1e-6
    weights = torch.zeros_like(inputs[0])
    for _ in range(_NEWTON_STEPS):
        found = torch.sigmoid(inputs @ weights)
        slope = inputs.T @ (counts * (found - label)) + ridge * weights
        bend = (inputs * (counts * (found * (1 - found) + 1e-3))[:, None]).T @ inputs + torch.diag(ridge)
        weights = weights - torch.linalg.solve(bend, slope)
    return weights
