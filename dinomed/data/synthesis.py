"""Head scans of random contrast, resolution and quality, drawn from label maps.

A network that never saw two scans of the same contrast has to learn anatomy instead of intensities. The method is
SynthSeg: B. Billot et al., "SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without
retraining", Medical Image Analysis 86 (2023), doi:10.1016/j.media.2023.102789. Tissue-coupled contrasts (cerebrospinal
fluid, grey and white matter in the order of T1, T2 or FLAIR) are drawn beside the fully random ones.

`draw_scan_parameters` draws, `synthesize_scans` is its deterministic twin: the same label maps and parameters give the
same scans, on any box of the output grid, so a slab of a few slices costs a fraction of a whole head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

#: FreeSurfer numbers that share one intensity distribution (left and right together), by tissue. Numbers 502 to 530
#: are tissue outside the brain as the SynthSeg training maps use them.
CSF = ((4, 43), (5, 44), (14, 72), (15,), (24, 136, 137, 163, 164))
GREY_MATTER = ((3, 42), (8, 47), (17, 53), (18, 54))
DEEP_GREY_MATTER = ((10, 49), (11, 50), (12, 51), (13, 52), (26, 58), (28, 60))
WHITE_MATTER = ((2, 41), (7, 46), (16,), (25, 57), (30, 62), (85,))
OUTSIDE_BRAIN = ((502,), (506,), (507,), (508,), (509,), (511,), (512,), (514,), (515,), (516,), (530,))
INTENSITY_GROUPS = (*CSF, *GREY_MATTER, *DEEP_GREY_MATTER, *WHITE_MATTER, *OUTSIDE_BRAIN)
EXTERNAL_CSF_CLASS = 1 + CSF.index((24, 136, 137, 163, 164))
FIRST_OUTSIDE_CLASS = 1 + len(INTENSITY_GROUPS) - len(OUTSIDE_BRAIN)
NUM_CLASSES = 1 + len(INTENSITY_GROUPS)
_FIELD_MM = 256.0

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class SynthesisSettings:
    """How far the drawn scans may differ from each other.

    Angles are in degrees, lengths in millimetres, intensities relative to a scan in [0, 1]; a value is the half-width
    of a uniform interval unless its name says otherwise.
    """

    rotation_deg: float = 20.0
    scaling: float = 0.15
    shear: float = 0.08
    elastic_std_mm: float = 4.0
    elastic_knot_mm: float = 32.0
    bias_std: float = 0.4
    bias_knot_mm: float = 64.0
    tissue_std: float = 0.1
    coupled_probability: float = 0.5
    low_resolution_probability: float = 0.4
    low_resolution_max_mm: float = 2.5
    thick_slice_probability: float = 0.35
    thick_slice_max_mm: float = 7.0
    noise_std: float = 0.07
    gamma_std: float = 0.35
    brain_only_probability: float = 0.3
    dark_background_probability: float = 0.7
    crop_probability: float = 0.15


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


@dataclass(frozen=True)
class Box:
    """The part of the output to draw: shape in voxels, centre and voxel size in output millimetres (RAS)."""

    shape: tuple[int, int, int]
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    step_mm: float = 1.0

    def positions_mm(self, axis: int, device: torch.device) -> Tensor:
        """Positions of the voxel centres along `axis`, (shape[axis],)."""
        size = self.shape[axis]
        steps = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
        return steps * self.step_mm + self.centre_mm[axis]


def intensity_classes(labels: Tensor) -> Tensor:
    """Replace FreeSurfer numbers by intensity classes.

    Args:
        labels: integer tensor of any shape.

    Returns:
        uint8 tensor of the same shape: 0 background, then one class per entry of `INTENSITY_GROUPS`.

    Raises:
        ValueError: if a label belongs to no group.
    """
    table = torch.full((max(max(group) for group in INTENSITY_GROUPS) + 1,), 255, dtype=torch.uint8)
    table[0] = 0
    for index, group in enumerate(INTENSITY_GROUPS):
        table[list(group)] = index + 1
    if int(labels.min()) < 0 or int(labels.max()) >= len(table):
        raise ValueError(f"labels run from {int(labels.min())} to {int(labels.max())}; known are 0 to {len(table) - 1}")
    classes = table[labels.long()]
    if bool((classes == 255).any()):
        unknown = sorted(set(labels[classes == 255].unique().tolist()))
        raise ValueError(f"labels {unknown} are no FreeSurfer or head tissue numbers; add them to INTENSITY_GROUPS")
    return classes


def class_targets(label_sources: dict[int, Sequence[int]]) -> Tensor:
    """Build the table from intensity class to target label.

    Args:
        label_sources: for each target label the FreeSurfer numbers that it takes; what is named nowhere becomes 0.

    Returns:
        (classes,) uint8 table.

    Raises:
        ValueError: if numbers that share an intensity class are sent to different targets.
    """
    target_of = {number: target for target, numbers in label_sources.items() for number in numbers}
    table = torch.zeros(NUM_CLASSES, dtype=torch.uint8)
    for index, group in enumerate(INTENSITY_GROUPS):
        targets = {target_of.get(number, 0) for number in group}
        if len(targets) > 1:
            raise ValueError(f"FreeSurfer numbers {group} share intensities; send them to one label, not {targets}")
        table[index + 1] = targets.pop()
    return table


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

    elastic_knots = round(_FIELD_MM / s.elastic_knot_mm) + 1
    bias_knots = round(_FIELD_MM / s.bias_knot_mm) + 1
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
    base = uniform(3).sort(dim=1).values
    # Rows: where CSF, grey and white matter stand in the sorted draw, for T1, T2 and FLAIR-like scans.
    orders = torch.tensor([[0, 1, 2], [2, 1, 0], [0, 2, 1]])
    order = orders[(3 * uniform()).long().clamp(max=2)]
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


def synthesize_scans(
    classes: Sequence[Tensor], parameters: ScanParameters, box: Box, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> tuple[Tensor, Tensor]:
    """Draw the part `box` of B scans on a 1 mm RAS grid.

    Args:
        classes: B label maps of intensity classes, each (X, Y, Z) uint8 in RAS order; their sizes may differ.
        parameters: what `draw_scan_parameters` gave, for a batch of B.
        box: which part of the output to draw.
        spacing_mm: voxel size of the label maps.

    Returns:
        The scans, (B, 1, *box.shape) float32, not below 0, and the classes on the same grid, (B, *box.shape) uint8.
        Where the brain was cut out or the field of view ends, the class is 0.
    """
    scans, targets = [], []
    for index, label_map in enumerate(classes):
        one = replace(parameters, **{f.name: getattr(parameters, f.name)[index] for f in fields(parameters)})
        drawn = _sample_classes(label_map, one, box, spacing_mm)
        scans.append(_draw_image(drawn, one, box)[None])
        targets.append(drawn)
    return torch.stack(scans), torch.stack(targets)


def _sample_classes(classes: Tensor, p: ScanParameters, box: Box, spacing_mm: Sequence[float]) -> Tensor:
    """Deform a label map onto the box with nearest-neighbour look-up; unknown space is class 0."""
    device = classes.device
    axes = [box.positions_mm(axis, device) for axis in range(3)]
    moved = _interpolate_knots(p.elastic_mm.to(device), axes)
    affine = p.affine.to(device)
    flat = torch.zeros(box.shape, dtype=torch.long, device=device)
    inside = torch.ones(box.shape, dtype=torch.bool, device=device)
    grids = [axes[k].view([-1 if k == j else 1 for j in range(3)]) for k in range(3)]
    warped = [grids[k] + moved[k] for k in range(3)]
    for axis, size in enumerate(classes.shape):
        position = affine[axis, 0] * warped[0] + affine[axis, 1] * warped[1] + affine[axis, 2] * warped[2]
        index = (position / spacing_mm[axis] + (size - 1) / 2).round_().long()
        inside &= (index >= 0) & (index < size)
        flat = flat * size + index.clamp_(0, size - 1)
    drawn = torch.where(inside, classes.reshape(-1)[flat], torch.zeros((), dtype=torch.uint8, device=device))
    for axis in range(3):
        seen = (axes[axis] >= p.crop_mm[axis, 0]) & (axes[axis] <= p.crop_mm[axis, 1])
        drawn *= seen.view([-1 if axis == j else 1 for j in range(3)])
    if int(p.brain_only) > 0:
        drawn[drawn >= FIRST_OUTSIDE_CLASS] = 0
    if int(p.brain_only) > 1:
        drawn[drawn == EXTERNAL_CSF_CLASS] = 0
    return drawn


def _draw_image(classes: Tensor, p: ScanParameters, box: Box) -> Tensor:
    """Intensities of a deformed label map: tissue, acquisition, bias field, noise and gamma, (X, Y, Z)."""
    device = classes.device
    noise = torch.Generator(device=device).manual_seed(int(p.noise_seed))
    means, stds = p.means.to(device), p.stds.to(device)
    if int(p.brain_only) > 0:  # a scan whose brain was cut out is exactly zero elsewhere
        means, stds = means.clone(), stds.clone()
        means[0], stds[0] = 0.0, 0.0
    index = classes.int()
    image = torch.randn(box.shape, generator=noise, device=device)
    image.mul_(stds[index]).add_(means[index]).clamp_(min=0)
    axes = [box.positions_mm(axis, device) for axis in range(3)]
    image *= torch.exp(_interpolate_knots(p.log_bias.to(device)[None], axes)[0])
    expand: list[Tensor] = []
    for axis in range(3):
        acquired = float(p.spacing_mm[axis]) / box.step_mm
        shrink, grow = _acquisition_matrices(box.shape[axis], acquired, float(p.phase[axis]), device)
        image = torch.movedim(torch.tensordot(shrink, image, dims=([1], [axis])), 0, axis)
        expand.append(grow)
    image += float(p.noise_std) * torch.randn(image.shape, generator=noise, device=device)
    image.abs_()  # noise of a magnitude image stays positive in air
    for axis in range(3):
        image = torch.movedim(torch.tensordot(expand[axis], image, dims=([1], [axis])), 0, axis)
    # The brightest tissue, not the brightest voxel, is the unit: then a scan's parts fit together.
    image = (image / (means + stds).amax().clamp(min=1e-3)) ** p.gamma.to(device)
    if int(p.brain_only) > 0:
        image = image * (classes > 0)
    return image.contiguous()


def _interpolate_knots(knots: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Interpolate (C, K, K, K) values, whose knots span the field of 256 mm, linearly at the grid of `axes`."""
    result = knots
    for axis, positions in enumerate(axes):
        count = knots.shape[axis + 1]
        index = ((positions / _FIELD_MM + 0.5) * (count - 1)).clamp(0, count - 1)
        weights = (1 - (index[:, None] - torch.arange(count, device=knots.device)).abs()).clamp(min=0)
        result = torch.movedim(torch.tensordot(weights, result, dims=([1], [axis + 1])), 0, axis + 1)
    return result


def _acquisition_matrices(size: int, spacing: float, phase: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Slice profile and sampling (acquired, size), and linear interpolation back (size, acquired); in voxels."""
    fine = torch.arange(size, dtype=torch.float32, device=device)
    count = max(1, math.ceil((size - phase * spacing) / spacing)) if spacing > 1 else size
    centres = fine if spacing <= 1 else (torch.arange(count, device=device) + phase) * spacing
    sigma = 0.42 * max(spacing, 0.8)
    shrink = torch.exp(-0.5 * ((centres[:, None] - fine[None]) / sigma) ** 2)
    shrink /= shrink.sum(dim=1, keepdim=True).clamp(min=1e-12)
    index = ((fine - centres[0]) / max(spacing, 1.0)).clamp(0, count - 1)
    grow = (1 - (index[:, None] - torch.arange(count, device=device)).abs()).clamp(min=0)
    return shrink, grow
