"""What decides a synthetic scan, drawn at random: shape of the head, contrast, resolution, quality.

The method is SynthSeg: B. Billot et al., "SynthSeg: Segmentation of brain MRI scans of any contrast and resolution
without retraining", Medical Image Analysis 86 (2023), doi:10.1016/j.media.2023.102789. Tissue-coupled contrasts
(cerebrospinal fluid, grey and white matter in the order of T1, T2 or FLAIR) are drawn beside the fully random ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dinomed.data.head_tissues import (
    CSF,
    DEEP_GREY_MATTER,
    FIRST_OUTSIDE_CLASS,
    GREY_MATTER,
    NUM_CLASSES,
    WHITE_MATTER,
)

FIELD_MM = 256.0
"""Width of the field over which the knots of deformation and bias are spread."""

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class SynthesisSettings:
    """How far the drawn scans may differ from each other.

    Angles are in degrees, lengths in millimetres, intensities relative to a scan in [0, 1]; a value is the half-width
    of a uniform interval unless its name says otherwise.
    """

    rotation_deg: float = 12.0
    scaling: float = 0.12
    shear: float = 0.05
    elastic_std_mm: float = 2.5
    elastic_knot_mm: float = 32.0
    bias_std: float = 0.3
    bias_knot_mm: float = 64.0
    tissue_std: float = 0.05
    coupled_probability: float = 0.85
    low_resolution_probability: float = 0.25
    low_resolution_max_mm: float = 2.2
    thick_slice_probability: float = 0.2
    thick_slice_max_mm: float = 6.0
    noise_std: float = 0.05
    gamma_std: float = 0.25
    brain_only_probability: float = 0.3
    dark_background_probability: float = 0.85
    crop_probability: float = 0.1


@dataclass(frozen=True)
class ScanParameters:
    """Everything that decides a batch of B scans; all tensors have B as their first dimension.

    Attributes:
        affine: (B, 3, 3), from output millimetres to label-map millimetres, about the two centres.
        elastic_mm: (B, 3, K, K, K) displacements at knots spread over a field of 256 mm.
        log_bias: (B, J, J, J) logarithm of the bias field at its knots.
        means: (B, classes) mean intensity.
        stds: (B, classes) standard deviation of the intensity.
        spacing_mm: (B, 3) voxel size at which the scan is acquired.
        phase: (B, 3) offset of the first acquired voxel, in acquired voxels.
        noise_std: (B,) standard deviation of the acquisition noise.
        gamma: (B,) exponent.
        brain_only: (B,) 0 whole head, 1 brain with its fluid, 2 brain without the outer fluid.
        crop_mm: (B, 3, 2) lower and upper limit of the field of view about the output's centre.
        noise_seed: (B,) seed of the voxelwise noise.
    """

    affine: Tensor
    elastic_mm: Tensor
    log_bias: Tensor
    means: Tensor
    stds: Tensor
    spacing_mm: Tensor
    phase: Tensor
    noise_std: Tensor
    gamma: Tensor
    brain_only: Tensor
    crop_mm: Tensor
    noise_seed: Tensor

    def to(self, device: torch.device | str) -> ScanParameters:
        """Return the same parameters on `device`."""
        return replace(self, **{item.name: getattr(self, item.name).to(device) for item in fields(self)})


def draw_scan_parameters(
    batch_size: int, generator: torch.Generator, settings: SynthesisSettings | None = None
) -> ScanParameters:
    """Draw the parameters of `batch_size` scans from `generator` (a CPU generator)."""
    s = settings or SynthesisSettings()
    size = batch_size

    def uniform(*shape: int) -> Tensor:
        return torch.rand(size, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator)

    elastic_knots = round(FIELD_MM / s.elastic_knot_mm) + 1
    bias_knots = round(FIELD_MM / s.bias_knot_mm) + 1
    elastic_std = s.elastic_std_mm * uniform(1, 1, 1, 1)
    means, stds = _draw_contrast(uniform, normal, s)
    crop = torch.tensor([-1e4, 1e4]).expand(size, 3, 2).clone()
    cut_axis = (3 * uniform()).long().clamp(max=2)
    cut_side = (2 * uniform()).long().clamp(max=1)
    cut_at = 30 + 60 * uniform()
    for index in torch.nonzero(uniform() < s.crop_probability).flatten().tolist():
        side = int(cut_side[index])
        crop[index, int(cut_axis[index]), side] = cut_at[index] * (1 if side else -1)
    strip = torch.where(uniform() < s.brain_only_probability, 1 + (uniform() < 0.4).long(), torch.zeros(size).long())
    return ScanParameters(
        affine=_draw_affine(uniform, s),
        elastic_mm=elastic_std * normal(3, elastic_knots, elastic_knots, elastic_knots),
        log_bias=s.bias_std * uniform(1, 1, 1) * normal(bias_knots, bias_knots, bias_knots),
        means=means,
        stds=stds,
        spacing_mm=_draw_spacing(uniform, s),
        phase=uniform(3),
        noise_std=s.noise_std * uniform() ** 2,
        gamma=torch.exp(s.gamma_std * normal()),
        brain_only=strip,
        crop_mm=crop,
        noise_seed=torch.randint(2**62, (size,), generator=generator),
    )


def _draw_affine(uniform: Draw, s: SynthesisSettings) -> Tensor:
    """Rotation, scaling, shear and a coin for left-right mirroring, (B, 3, 3)."""
    angles = math.radians(s.rotation_deg) * (2 * uniform(3) - 1)
    matrix = torch.eye(3).expand(len(angles), 3, 3)
    for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cosine, cosine, -sine, sine
        matrix = matrix @ turn
    overall = 1 + s.scaling * (2 * uniform(1) - 1)
    scales = overall * (1 + 0.5 * s.scaling * (2 * uniform(3) - 1))
    shears = torch.eye(3) + s.shear * (2 * uniform(3, 3) - 1) * (1 - torch.eye(3))
    scales[:, 0] *= torch.where(uniform() < 0.5, -1.0, 1.0)
    return matrix @ shears @ torch.diag_embed(scales)


def _draw_contrast(uniform: Draw, normal: Draw, s: SynthesisSettings) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per intensity class: fully random, or coupled by tissue."""
    means = uniform(NUM_CLASSES)
    size = len(means)
    groups = (CSF, GREY_MATTER, DEEP_GREY_MATTER, WHITE_MATTER)
    tissue = torch.repeat_interleave(torch.arange(4), torch.tensor([len(group) for group in groups]))
    # Neighbouring tissues differ by at least a little: a scan that shows nothing teaches nothing.
    base = 0.05 + 0.3 * uniform(1) + torch.cumsum(torch.cat((torch.zeros(size, 1), 0.08 + 0.4 * uniform(2)), 1), 1)
    # Rows: where CSF, grey and white matter stand in the sorted draw, for T1, T2 and FLAIR-like scans.
    orders = torch.tensor([[0, 1, 2], [2, 1, 0], [0, 2, 1]])
    # T1 is what most scans are: half of the coupled ones; a third T2 and proton density, a sixth FLAIR.
    kind = uniform()
    order = orders[(kind > 1 / 2).long() + (kind > 5 / 6).long()]
    fluid, grey, white = (base.gather(1, order[:, k : k + 1]) for k in range(3))
    deep = grey + (white - grey) * uniform(1)
    coupled = torch.cat((fluid, grey, deep, white), dim=1)[:, tissue] + 0.04 * normal(len(tissue))
    keep = (uniform(1) < s.coupled_probability).expand(size, len(tissue))
    means[:, 1:FIRST_OUTSIDE_CLASS] = torch.where(keep, coupled, means[:, 1:FIRST_OUTSIDE_CLASS])
    stds = s.tissue_std * uniform(NUM_CLASSES) * (0.3 + 0.7 * uniform(1))
    dark = (uniform() < s.dark_background_probability).float()
    means[:, 0] *= 1 - dark + 0.05 * dark
    stds[:, 0] *= 1 - dark + 0.3 * dark
    return means.clamp(min=0), stds


def _draw_spacing(uniform: Draw, s: SynthesisSettings) -> Tensor:
    """Acquired voxel size, (B, 3): fine, coarse in all directions, or with thick slices along one axis."""
    coarse = 1 + (s.low_resolution_max_mm - 1) * uniform(1)
    spacing = torch.where(uniform(1) < s.low_resolution_probability, coarse, torch.ones_like(coarse)).repeat(1, 3)
    thick = 2 + (s.thick_slice_max_mm - 2) * uniform()
    axis = (3 * uniform()).long().clamp(max=2)
    for index in torch.nonzero(uniform() < s.thick_slice_probability).flatten().tolist():
        spacing[index, axis[index]] = torch.maximum(thick[index], spacing[index, axis[index]])
    return spacing
