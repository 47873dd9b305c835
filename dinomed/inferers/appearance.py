"""How a drawn label looks: log-odds of every pixel by its intensities and features, learnt from the drawn slices alone.

A logistic regression with a ridge penalty tells the pixels of the label from those around it. Its inputs are the mean
intensities of a pixel's surroundings of two sizes, each as one of 16 levels, and the backbone's features. It is solved
anew for each label, in a few Newton steps; the backbone stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        slices: Those that are drawn.
        masks: (A, B) bool of each; where none of them shows both the label and something else, all log-odds are 0.
        pixel_mm: Size of the pixels.
    """

    def __init__(self, slices: Sequence[Seen], masks: Sequence[Tensor], pixel_mm: tuple[float, float]) -> None:
        near = torch.cat([(signed_distance_mm(mask, pixel_mm) > -AROUND_MM).flatten() for mask in masks])
        chosen = torch.nonzero(near).flatten()
        chosen = chosen[:: -(-len(chosen) // _LARGEST)]
        label = torch.cat([mask.flatten() for mask in masks])[chosen]
        self._weights: Tensor | None = None
        if bool(label.all()) or not bool(label.any()):
            return
        values = torch.cat([_average(picture, _SIDES[0]).flatten() for picture, _ in slices])
        values = values[:: -(-len(values) // _LARGEST)]
        self._levels = values.quantile(torch.linspace(0, 1, _LEVELS + 1)[1:-1].to(values))
        if slices[0][1] is not None:
            tokens = torch.cat([features.flatten(1) for _, features in slices if features is not None], dim=1)
            self._mean, self._unit = tokens.mean(1), tokens.std(1).mean().clamp(min=1e-6)
        inputs = torch.cat([self._inputs(each) for each in slices])[chosen]
        self._weights = _logistic_regression(inputs, label.to(inputs))

    def log_odds(self, seen: Seen) -> Tensor:
        """Log-odds (A, B) of the label in a slice, from -LIMIT to LIMIT."""
        if self._weights is None:
            return torch.zeros_like(seen[0])
        return (self._inputs(seen) @ self._weights).reshape(seen[0].shape).clamp(-LIMIT, LIMIT)

    def _inputs(self, seen: Seen) -> Tensor:
        """(pixels, inputs), the last of them 1."""
        picture, features = seen
        levels = [torch.bucketize(_average(picture, side).flatten(), self._levels) for side in _SIDES]
        parts = [F.one_hot(each, _LEVELS).to(picture) for each in levels]
        if features is not None:
            parts.append((features.flatten(1).T - self._mean) / self._unit)
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
