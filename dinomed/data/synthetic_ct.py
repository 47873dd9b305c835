"""CT scans of the head drawn from label maps: tissue in Hounsfield units, thick tilted slices, noise and streaks.

Attenuation of the tissues: Bushberg et al., "The Essential Physics of Medical Imaging", 3rd edition, 2011, chapter 10,
and for clotted blood Parizel et al., "Intracranial hemorrhage: principles of CT and MRI interpretation", European
Radiology 11 (2001), doi:10.1007/s003300000800.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dinomed.data.bleeding import CALCIFIED_CLASS, FIRST_BLEED_CLASS, KINDS, NUM_CT_CLASSES, OEDEMA_CLASS
from dinomed.data.head_tissues import (
    CSF,
    DEEP_GREY_MATTER,
    EXTERNAL_CSF_CLASS,
    FIRST_OUTSIDE_CLASS,
    GREY_MATTER,
    OUTSIDE_BRAIN,
    WHITE_MATTER,
)
from dinomed.data.scan_parameters import SynthesisSettings, draw_scan_parameters
from dinomed.data.synthesis import interpolate_knots

SLICE_MM = (2.5, 6.0)
IN_PLANE_MM = (0.66, 0.9)
SMALLEST_AREA_MM2 = 25.0
"""Blood in a slice from which on the slice counts as showing its kind."""

# Lowest and highest mean in HU, and the standard deviation within a tissue, of the classes outside the brain by their
# numbers in the label maps. Soft tissue (507) is a mixture of fat and muscle, see `_soft_tissue`.
_OUTSIDE_HU = {
    502: (38.0, 50.0, 3.0),  # arteries
    506: (5.0, 18.0, 2.0),  # eyes
    507: (0.0, 0.0, 0.0),
    508: (25.0, 40.0, 3.0),  # optic nerves
    509: (-200.0, 40.0, 60.0),  # mucosa and air of the nose
    511: (-20.0, 60.0, 15.0),  # skin
    512: (25.0, 40.0, 2.0),  # spinal cord
    514: (42.0, 66.0, 3.0),  # veins and sinuses
    515: (900.0, 1500.0, 120.0),  # dense bone
    516: (250.0, 650.0, 120.0),  # spongy bone
    530: (20.0, 45.0, 5.0),
}
_SOFT_CLASS = FIRST_OUTSIDE_CLASS + OUTSIDE_BRAIN.index((507,))
_BONE_CLASSES = (FIRST_OUTSIDE_CLASS + OUTSIDE_BRAIN.index((515,)), FIRST_OUTSIDE_CLASS + OUTSIDE_BRAIN.index((516,)))
_FAT_HU, _MUSCLE_HU, _AIR_HU = -95.0, 55.0, -1000.0


@dataclass(frozen=True, eq=False)
class CTParameters:
    """Everything that decides how a head is scanned.

    Attributes:
        affine: (3, 3) from scan millimetres to label-map millimetres, about the two centres: size, turn, gantry tilt.
        elastic_mm: (3, K, K, K) displacements at knots over 256 mm.
        means_hu: (classes,) attenuation of each class.
        stds_hu: (classes,) texture of each class.
        slice_mm: Thickness and distance of the slices.
        in_plane_mm: Side of a voxel in the slices' plane.
        blur_mm: Standard deviation of the point spread in the plane.
        noise_hu: Standard deviation of the noise.
        streaks_hu: Strength of the streaks between dense bones.
        filling: Share of blood in fluid that blood has mixed with (subarachnoid).
        holder_mm: Radius and thickness of the shell that the head lies in; thickness 0 for none.
        holder_hu: Its attenuation.
        seed: Of texture and noise.
    """

    affine: Tensor
    elastic_mm: Tensor
    means_hu: Tensor
    stds_hu: Tensor
    slice_mm: float
    in_plane_mm: float
    blur_mm: float
    noise_hu: float
    streaks_hu: float
    filling: float
    holder_mm: tuple[float, float]
    holder_hu: float
    seed: int


def draw_ct_parameters(generator: np.random.Generator) -> CTParameters:
    """Draw how a head is scanned: position, tilt, tissues, thickness, noise."""
    seed = int(generator.integers(2**62))
    settings = SynthesisSettings(rotation_deg=8.0, scaling=0.1, shear=0.03, elastic_std_mm=2.0, crop_probability=0.0)
    shape = draw_scan_parameters(1, torch.Generator().manual_seed(seed), settings)
    tilt = math.radians(generator.uniform(-18, 18)) if generator.random() < 0.6 else 0.0
    turn = torch.eye(3)
    turn[1, 1] = turn[2, 2] = math.cos(tilt)
    turn[1, 2], turn[2, 1] = -math.sin(tilt), math.sin(tilt)
    means, stds = _draw_tissues(generator)
    return CTParameters(
        affine=shape.affine[0] @ turn,
        elastic_mm=shape.elastic_mm[0],
        means_hu=means,
        stds_hu=stds,
        slice_mm=float(generator.uniform(*SLICE_MM)),
        in_plane_mm=float(generator.uniform(*IN_PLANE_MM)),
        blur_mm=float(generator.uniform(0.5, 1.1)),
        noise_hu=float(generator.uniform(1.0, 5.0)),
        streaks_hu=float(generator.uniform(0.0, 10.0)),
        filling=float(generator.uniform(0.7, 1.0)),
        holder_mm=(float(generator.uniform(104, 118)), float(generator.uniform(2, 9) * (generator.random() < 0.5))),
        holder_hu=float(generator.uniform(-700, 150)),
        seed=seed,
    )


def _draw_tissues(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in HU of each class."""

    def near(centre: float, spread: float) -> float:
        return float(np.clip(generator.normal(centre, spread), centre - 2.5 * spread, centre + 2.5 * spread))

    means, stds = torch.zeros(NUM_CT_CLASSES), torch.zeros(NUM_CT_CLASSES)
    means[0] = _AIR_HU
    fluid, grey, white = near(7, 2), near(37, 1.8), near(29, 1.8)
    groups = [*([fluid] * len(CSF)), *([grey] * len(GREY_MATTER)), *([grey - 0.5] * len(DEEP_GREY_MATTER))]
    groups += [white] * len(WHITE_MATTER)
    for index, value in enumerate(groups):
        means[1 + index] = value + generator.normal(0, 0.7)
        stds[1 + index] = 1.0
    means[EXTERNAL_CSF_CLASS] = near(13, 3)  # with vessels and membranes in it
    for index, (number,) in enumerate(OUTSIDE_BRAIN):
        low, high, std = _OUTSIDE_HU[number]
        means[FIRST_OUTSIDE_CLASS + index] = generator.uniform(low, high)
        stds[FIRST_OUTSIDE_CLASS + index] = std
    for index in range(len(KINDS)):
        means[FIRST_BLEED_CLASS + index] = near(64, 7)
        stds[FIRST_BLEED_CLASS + index] = generator.uniform(1, 4)
    means[OEDEMA_CLASS], stds[OEDEMA_CLASS] = near(22, 3), 1.5
    means[CALCIFIED_CLASS], stds[CALCIFIED_CLASS] = generator.uniform(90, 400), 20.0
    if generator.random() < 0.05:  # contrast medium in the vessels
        for number in (502, 514):
            means[FIRST_OUTSIDE_CLASS + OUTSIDE_BRAIN.index((number,))] = generator.uniform(90, 200)
    return means, stds


def scan_slices(
    classes: Tensor, parameters: CTParameters, heights_mm: Sequence[float], size: int = 288
) -> tuple[Tensor, Tensor]:
    """Scan slices of a head.

    Args:
        classes: (X, Y, Z) uint8 with voxels of 1 mm in RAS order, as `draw_bleedings` gives them.
        parameters: How it is scanned.
        heights_mm: Where the slices lie, upward from the head's centre.
        size: Rows and columns of a slice.

    Returns:
        The slices in HU, (N, size, size) float32, first axis of each to the right and second to the front, and how many
        square millimetres of each kind of blood every slice shows on average over its thickness, (N, size, size) int8:
        the kind that covers most of each voxel, 0 for none.
    """
    p = parameters
    random = torch.Generator().manual_seed(p.seed)
    steps = max(2, round(p.slice_mm / 1.5))
    within = (torch.arange(steps) + 0.5) / steps - 0.5
    heights = (torch.tensor(list(heights_mm))[:, None] + within * p.slice_mm).flatten()
    drawn = _sample(classes, p, heights, size)
    texture = torch.randn(drawn.shape, generator=random)
    image = p.means_hu[drawn.int()] + p.stds_hu[drawn.int()] * texture
    image = _soft_tissue(image, drawn, random)
    line = (torch.arange(size) - (size - 1) / 2) * p.in_plane_mm
    radius = (line[:, None] ** 2 + line[None] ** 2).sqrt()
    shell = ((radius - p.holder_mm[0]).abs() < p.holder_mm[1] / 2) & (line[None] < -20)  # behind the head
    image = torch.where(shell & (drawn == 0), p.holder_hu, image)
    subarachnoid = FIRST_BLEED_CLASS + KINDS.index("subarachnoid")
    thinned = p.filling * image + (1 - p.filling) * p.means_hu[EXTERNAL_CSF_CLASS]
    image = torch.where(drawn == subarachnoid, thinned, image)
    slices = image.view(len(heights_mm), steps, size, size).mean(1)
    slices = _blurred(slices, p.blur_mm / p.in_plane_mm)
    bone = torch.zeros_like(drawn, dtype=torch.bool)
    for bone_class in _BONE_CLASSES:
        bone |= drawn == bone_class
    share = bone.view(len(heights_mm), steps, size, size).float().mean(1)
    slices = slices + _noise(share, p, random)
    kinds = (drawn.view(len(heights_mm), steps, size, size).int() - FIRST_BLEED_CLASS + 1).clamp(min=0)
    kinds[kinds > len(KINDS)] = 0
    most, shown = torch.zeros_like(kinds[:, 0]), torch.zeros_like(kinds[:, 0])
    for index in range(1, len(KINDS) + 1):
        count = (kinds == index).sum(1, dtype=torch.int32)
        shown = torch.where(count > most, index, shown)
        most = torch.maximum(most, count)
    shown = torch.where(2 * most >= steps, shown, 0).to(torch.int8)
    return slices.clamp_(-1024.0, 3071.0), shown


def kinds_shown(shown: Tensor, in_plane_mm: float) -> Tensor:
    """Say which kinds of blood slices (N, rows, cols) show: (N, kinds) bool."""
    areas = torch.stack([(shown == index + 1).sum((1, 2)) for index in range(len(KINDS))], dim=1)
    return areas * in_plane_mm**2 >= SMALLEST_AREA_MM2


def _sample(classes: Tensor, p: CTParameters, heights_mm: Tensor, size: int) -> Tensor:
    """Look the classes up on planes, (planes, size, size) uint8; beyond the label map there is air."""
    line = (torch.arange(size) - (size - 1) / 2) * p.in_plane_mm
    moved = interpolate_knots(p.elastic_mm, [line, line, heights_mm]).permute(0, 3, 1, 2)
    x, y = line[None, :, None] + moved[0], line[None, None, :] + moved[1]
    z = heights_mm[:, None, None] + moved[2]
    flat = torch.zeros(x.shape, dtype=torch.long)
    inside = torch.ones(x.shape, dtype=torch.bool)
    for axis, count in enumerate(classes.shape):
        place = p.affine[axis, 0] * x + p.affine[axis, 1] * y + p.affine[axis, 2] * z
        index = (place + (count - 1) / 2).round_().long()
        inside &= (index >= 0) & (index < count)
        flat = flat * count + index.clamp_(0, count - 1)
    return torch.where(inside, classes.reshape(-1)[flat], torch.zeros((), dtype=torch.uint8))


def _soft_tissue(image: Tensor, drawn: Tensor, random: torch.Generator) -> Tensor:
    """Fill soft tissue with fat and muscle, whose borders are smooth."""
    knots = torch.randn(1, 1, 4, 28, 28, generator=random)
    field = F.interpolate(knots, size=tuple(drawn.shape), mode="trilinear", align_corners=True)[0, 0]
    mixture = _FAT_HU + (_MUSCLE_HU - _FAT_HU) * (0.5 + 2 * field).clamp(0, 1)
    return torch.where(drawn == _SOFT_CLASS, mixture, image)


def _noise(bone: Tensor, p: CTParameters, random: torch.Generator) -> Tensor:
    """Noise with a grain, and streaks along rows (to the left and right) through much dense bone."""
    grain = _blurred(torch.randn(bone.shape, generator=random), 0.7)
    noise = p.noise_hu * grain / grain.std().clamp(min=1e-6)
    load = (bone.mean(1, keepdim=True) * 6).clamp(max=1.5) ** 2  # along the first axis, which goes to the right
    rows = torch.randn(len(bone), 1, bone.shape[2], generator=random)
    tilted = F.interpolate(torch.randn(len(bone), 1, 6, bone.shape[2] // 4, generator=random), bone.shape[1:])[:, 0]
    return noise + p.streaks_hu * load * _blurred(0.6 * rows + 0.6 * tilted, 1.2)


def _blurred(slices: Tensor, sigma: float) -> Tensor:
    """Blur slices (N, rows, cols) with a Gaussian, in both directions where they have any extent."""
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    out = slices[:, None]
    out = F.conv2d(F.pad(out, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    if slices.shape[1] > 1:
        out = F.conv2d(F.pad(out, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))
    return out[:, 0]
