"""Labels of one slice from those of the next: every pixel takes the vote of the pixels around its place there.

A vote weighs by similarity, as in label propagation through videos (Caron et al., "Emerging Properties in
Self-Supervised Vision Transformers", ICCV 2021, arXiv:2104.14294): here of the backbone's features, of the intensities
of small patches (Coupé et al., NeuroImage 54 (2011), doi:10.1016/j.neuroimage.2010.09.018), and of place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_STEPS = 5
"""Places along an axis to each side of the middle that are looked at; further apart in a larger window."""


@dataclass(frozen=True)
class VoteWeights:
    """How much each kind of difference counts.

    Attributes:
        feature: Difference of cosine similarities that divides a weight by e; None leaves them out of the vote.
        intensity: Likewise the root mean square difference of 3 x 3 patches, in units of the noise.
        place_mm: Standard deviation of the nearness.
        unlike: Weight of a further vote against the label, which wins where a pixel is like none of the others: its
            logarithm, to be compared with minus the sum of the squared differences in the units above.
        unlike_contrast: But no pixel is unlike that differs by less than this part of the contrast of the label: the
            range of its intensities, or their distance from those beside it, whichever is larger. 0 leaves `unlike`
            alone.
    """

    feature: float | None = 0.2
    intensity: float = 1.5
    place_mm: float = 4.0
    unlike: float = -30.0
    unlike_contrast: float = 0.3


def window_offsets(reach_mm: float, spacing_mm: tuple[float, float]) -> list[tuple[int, int]]:
    """Places of a window in pixels, at most 11 along each axis; the middle is among them."""
    lines = []
    for each in spacing_mm:
        reach = max(1, round(reach_mm / each))
        step = max(1, math.ceil(reach / _STEPS))
        side = range(step, max(step, reach // step * step) + 1, step)
        lines.append([-k for k in reversed(side)] + [0, *side])
    return [(i, j) for i in lines[0] for j in lines[1]]


def windows(picture: Tensor, offsets: list[tuple[int, int]]) -> list[Tensor]:
    """The picture (C, A, B) seen from every offset: entry k at (a, b) is the picture at (a, b) + offset k.

    Beyond its border it is as on it.
    """
    reach = [max(max(abs(each[axis]) for each in offsets), 1) for axis in (0, 1)]
    padded = F.pad(picture[None], (reach[1], reach[1], reach[0], reach[0]), mode="replicate")[0]
    a, b = picture.shape[1:]
    return [padded[:, reach[0] + i : reach[0] + i + a, reach[1] + j : reach[1] + j + b] for i, j in offsets]


def noise_level(picture: Tensor) -> Tensor:
    """Estimate the standard deviation of a picture's noise (A, B), by what is left of it after its smooth parts.

    Source: Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64 (1996); with the
    median, which edges do not disturb.
    """
    if min(picture.shape) < 3:
        return picture.new_zeros(())
    line = picture.new_tensor([1.0, -2.0, 1.0])
    rest = F.conv2d(picture[None, None], torch.outer(line, line)[None, None])
    return 1.4826 * rest.abs().median() / 6


def vote(
    share: Tensor,
    intensities: tuple[Tensor, Tensor],
    features: tuple[Tensor, Tensor] | None,
    spacing_mm: tuple[float, float],
    reach_mm: float,
    weights: VoteWeights,
) -> Tensor:
    """Carry a label to the next slice; what is not the label is the other candidate.

    Args:
        share: (A, B) share of the label in each pixel of the slice that it comes from.
        intensities: (A, B) of the slice that it goes to, and of the one that it comes from.
        features: (D, A, B) of unit length, likewise; None where they are not to count.
        spacing_mm: Of the pixels.
        reach_mm: Half the window's side.
        weights: Of the differences.

    Returns:
        (A, B) share of the label in each pixel of the slice that it goes to.
    """
    offsets = window_offsets(reach_mm, spacing_mm)
    here, there = intensities
    seen = windows(there[None], offsets)
    squares = torch.cat([(here[None] - each) ** 2 for each in seen])
    score = -F.avg_pool2d(squares[:, None], 3, 1, 1, count_include_pad=False)[:, 0] / weights.intensity**2
    if features is not None and weights.feature is not None:
        alike = [(features[0] * each).sum(0) for each in windows(features[1], offsets)]
        score += (torch.stack(alike) - 1) / weights.feature
    far_mm2 = torch.tensor([(i * spacing_mm[0]) ** 2 + (j * spacing_mm[1]) ** 2 for i, j in offsets])
    score -= (far_mm2 / (2 * weights.place_mm**2)).to(score)[:, None, None]
    votes = torch.cat(windows(share[None], offsets))
    # With the vote for "like none of these", which is not the label.
    score = torch.cat([score, score.new_full((1, *score.shape[1:]), weights.unlike)])
    return (score.softmax(0)[:-1] * votes).sum(0)
