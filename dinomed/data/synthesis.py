"""Head scans of random contrast, resolution and quality, made from label maps.

A network that never saw two scans of the same contrast has to learn anatomy instead of intensities.
`dinomed.data.scan_parameters.draw_scan_parameters` draws, and `synthesize_scans` is its deterministic twin: the same
label maps, parameters and box give the same scans. Any box of the output grid can be drawn by itself, so that a slab
of a few slices costs a fraction of a whole head. Anatomy, contrast and bias field in it are those of the whole scan;
voxelwise noise, and where the acquired voxels of a coarse scan begin, belong to the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dinomed.data.head_tissues import EXTERNAL_CSF_CLASS, FIRST_OUTSIDE_CLASS
from dinomed.data.scan_parameters import FIELD_MM, ScanParameters


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

    Raises:
        ValueError: if there are not as many label maps as parameters.
    """
    if len(classes) != len(parameters.affine):
        raise ValueError(f"{len(classes)} label maps do not go with the parameters of {len(parameters.affine)} scans")
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
    moved = interpolate_knots(p.elastic_mm.to(device), axes)
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
    image *= torch.exp(interpolate_knots(p.log_bias.to(device)[None], axes)[0])
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


def interpolate_knots(knots: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Interpolate (C, K, K, K) values, whose knots span the field of 256 mm, linearly at the grid of `axes`."""
    result = knots
    for axis, positions in enumerate(axes):
        count = knots.shape[axis + 1]
        index = ((positions / FIELD_MM + 0.5) * (count - 1)).clamp(0, count - 1)
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
