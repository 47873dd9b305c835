"""Bleedings of five kinds, drawn into label maps of the head where anatomy puts them.

Epidural blood is a lens under the skull, subdural blood a crescent along it or a band beside the falx, subarachnoid
blood fills sulci and cisterns, intraparenchymal blood is a lump in the brain's tissue with swelling around it, and
intraventricular blood lies low in the ventricles or fills them.

Source of the forms: Heit, Iv and Wintermark, "Imaging of Intracranial Hemorrhage", Journal of Stroke 19 (2017),
doi:10.5853/jos.2016.00563.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dinomed.data.head_tissues import CSF, EXTERNAL_CSF_CLASS, FIRST_OUTSIDE_CLASS, GREY_MATTER, NUM_CLASSES

KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
FIRST_BLEED_CLASS = NUM_CLASSES
OEDEMA_CLASS = FIRST_BLEED_CLASS + len(KINDS)
CALCIFIED_CLASS = OEDEMA_CLASS + 1
NUM_CT_CLASSES = CALCIFIED_CLASS + 1
SMALLEST_ML = {
    "epidural": 2.0,
    "intraparenchymal": 0.5,
    "intraventricular": 0.5,
    "subarachnoid": 1.5,
    "subdural": 2.0,
}
"""A drawn bleeding with less blood is drawn again."""

_VENTRICLE_CLASSES = tuple(1 + CSF.index(group) for group in ((4, 43), (5, 44), (14, 72), (15,)))
_CEREBELLAR_CORTEX = 1 + len(CSF) + GREY_MATTER.index((8, 47))
_RIM_MM = 4.0
"""Depth below the skull from which on fluid is counted as that of sulci and cisterns."""

Mask = npt.NDArray[np.bool_]
Point = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadAnatomy:
    """What the bleedings need to know of a head; arrays (X, Y, Z) with voxels of 1 mm in RAS order.

    Attributes:
        classes: Intensity classes, uint8.
        depth_mm: Distance to the inside of the skull, 0 outside of it, uint8.
        surface: Voxels at the inside of the skull above its base, (N, 3).
        tissue: Voxels of the brain's tissue away from its surface, (N, 3).
        fluid: Voxels of sulci and cisterns, (N, 3).
        centre: Centre of the skull's inside.
        midline: Where left and right meet, on the first axis.
        tentorium: Height of the top of the cerebellum.
    """

    classes: npt.NDArray[np.uint8]
    depth_mm: npt.NDArray[np.uint8]
    surface: npt.NDArray[np.int16]
    tissue: npt.NDArray[np.int16]
    fluid: npt.NDArray[np.int16]
    centre: Point
    midline: float
    tentorium: float

    @classmethod
    def of(cls, classes: npt.NDArray[np.uint8]) -> HeadAnatomy:
        """Work out the anatomy of a label map of intensity classes.

        Raises:
            ValueError: If it shows no brain, or a tiny one.
        """
        inside = (classes > 0) & (classes < FIRST_OUTSIDE_CLASS)
        solid = inside & (classes > len(CSF))
        if not solid.any():
            raise ValueError("the label map shows no tissue of the brain")
        inside = ndimage.binary_closing(np.pad(inside, 4), iterations=3)[4:-4, 4:-4, 4:-4] | inside
        depth = np.minimum(ndimage.distance_transform_edt(inside), 255).astype(np.uint8)
        solid_z = np.nonzero(solid.any(axis=(0, 1)))[0]
        base = solid_z[0] + 0.35 * (solid_z[-1] - solid_z[0])
        surface = np.argwhere(depth == 1)
        cerebellum = np.argwhere(classes == _CEREBELLAR_CORTEX)
        tissue = np.argwhere(solid & (depth > 8))
        if not len(tissue):
            raise ValueError("the brain that the label map shows is too small")
        fluid = np.argwhere((classes == EXTERNAL_CSF_CLASS) & (depth > _RIM_MM))
        fluid = fluid[fluid[:, 2] > solid_z[0] + 0.2 * (solid_z[-1] - solid_z[0])]
        return cls(
            classes,
            depth,
            surface[surface[:, 2] > base].astype(np.int16),
            tissue.astype(np.int16),
            fluid.astype(np.int16),
            np.array(ndimage.center_of_mass(solid)),
            float(np.median(np.argwhere(solid)[:, 0])),
            float(np.quantile(cerebellum[:, 2], 0.98)) if len(cerebellum) else float(base),
        )


def draw_bleedings(anatomy: HeadAnatomy, kinds: Sequence[str], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one bleeding of each of `kinds` into a copy of the anatomy's classes.

    Voxels with blood of kind k get the class `FIRST_BLEED_CLASS + KINDS.index(k)`, swollen tissue `OEDEMA_CLASS`.
    A kind for which no place is found within a few tries is left out: what counts is what the result holds.
    """
    drawn = anatomy.classes.copy()
    for kind in sorted(kinds, key=KINDS.index, reverse=True):  # lumps in the tissue over blood beside it
        for _ in range(4):
            box, blood, oedema = _DRAW[kind](anatomy, generator)
            if blood.sum() < 1000 * SMALLEST_ML[kind]:
                continue
            part = drawn[box]
            if oedema is not None:
                part[oedema & (part < FIRST_BLEED_CLASS)] = OEDEMA_CLASS
            part[blood] = FIRST_BLEED_CLASS + KINDS.index(kind)
            break
    return drawn


def draw_mimics(
    anatomy: HeadAnatomy, classes: npt.NDArray[np.uint8], generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw what is no bleeding into a copy of `classes`: now and then calcified spots, or swelling of another cause."""
    drawn = classes.copy()
    if generator.random() < 0.35:
        for _ in range(generator.integers(1, 4)):
            middle = np.array(
                [anatomy.midline, anatomy.centre[1] - 12, anatomy.centre[2] - 5]
            )  # about the pineal gland
            near = generator.random() < 0.5
            point = middle + generator.normal(0, [3, 4, 4]) if near else _pick(anatomy.tissue, generator)
            radius = generator.uniform(1.2, 3.5)
            box, (x, y, z) = _box(anatomy, point, radius + 1)
            spot = (x**2 + y**2 + z**2 < radius**2) & (drawn[box] > 0) & (drawn[box] < FIRST_BLEED_CLASS)
            drawn[box][spot] = CALCIFIED_CLASS
    if generator.random() < 0.15:
        box, _, swollen = _intraparenchymal(anatomy, generator)
        assert swollen is not None
        drawn[box][swollen & (drawn[box] < FIRST_BLEED_CLASS)] = OEDEMA_CLASS
    return drawn


Box = tuple[slice, slice, slice]
Drawn = tuple[Box, Mask, Mask | None]


def _box(anatomy: HeadAnatomy, centre: Point, radius_mm: float) -> tuple[Box, list[npt.NDArray[np.float32]]]:
    """Part of the head within `radius_mm` of a point on every axis, and the offsets from the point along each axis."""
    parts, offsets = [], []
    for axis, size in enumerate(anatomy.classes.shape):
        first = int(np.clip(np.floor(centre[axis] - radius_mm), 0, size - 1))
        last = int(np.clip(np.ceil(centre[axis] + radius_mm), first + 1, size))
        parts.append(slice(first, last))
        line = np.arange(first, last, dtype=np.float32) - np.float32(centre[axis])
        offsets.append(line.reshape([-1 if axis == other else 1 for other in range(3)]))
    return (parts[0], parts[1], parts[2]), offsets


def _pick(points: npt.NDArray[np.int16], generator: np.random.Generator) -> Point:
    return points[generator.integers(len(points))].astype(np.float64)


def _epidural(anatomy: HeadAnatomy, generator: np.random.Generator) -> Drawn:
    point = _pick(anatomy.surface, generator)
    for _ in range(20):  # beside the brain rather than above it
        if abs(point[0] - anatomy.midline) > 30:
            break
        point = _pick(anatomy.surface, generator)
    inward = anatomy.centre - point
    inward /= np.linalg.norm(inward)
    thickness, radius = generator.uniform(6, 25), generator.uniform(28, 55)
    centre = point - inward * (radius - thickness)
    box, (x, y, z) = _box(anatomy, centre, radius)
    return box, (x**2 + y**2 + z**2 < radius**2) & (anatomy.depth_mm[box] > 0), None


def _subdural(anatomy: HeadAnatomy, generator: np.random.Generator) -> Drawn:
    side = -1.0 if generator.random() < 0.5 else 1.0
    thickness = generator.uniform(4, 13)
    lateral = anatomy.surface[side * (anatomy.surface[:, 0] - anatomy.midline) > 25]
    point = _pick(lateral if len(lateral) else anatomy.surface, generator)
    extent = generator.uniform(50, 95)
    if generator.random() < 0.12:  # beside the falx
        point = np.array([anatomy.midline, anatomy.centre[1] + generator.uniform(-40, 40), anatomy.centre[2] + 30])
        box, (x, y, z) = _box(anatomy, point, extent / 2)
        spread = 1 - (y**2 + z**2) / (extent / 2) ** 2
        beside = (side * x > -0.5) & (side * x <= 0.6 * thickness * spread) & (spread > 0)
        return box, beside & (anatomy.depth_mm[box] > 0) & (anatomy.classes[box] <= EXTERNAL_CSF_CLASS + 2), None
    box, (x, y, z) = _box(anatomy, point, extent)
    left = side * (np.arange(box[0].start, box[0].stop) - anatomy.midline) > 3
    above = np.arange(box[2].start, box[2].stop) > anatomy.tentorium - 15
    limit = thickness * (1 - (x**2 + y**2 + z**2) / extent**2)
    depth = anatomy.depth_mm[box]
    return box, (depth > 0) & (depth <= limit) & left[:, None, None] & above[None, None, :], None


def _subarachnoid(anatomy: HeadAnatomy, generator: np.random.Generator) -> Drawn:
    at_base, radius = generator.random() < 0.4 or not len(anatomy.fluid), generator.uniform(18, 45)
    if not at_base:
        point = _pick(anatomy.fluid, generator)
    else:  # the cisterns
        point = np.array([anatomy.midline, anatomy.centre[1] + generator.uniform(0, 25), anatomy.tentorium - 15])
    box, (x, y, z) = _box(anatomy, point, radius)
    fluid = (anatomy.classes[box] == EXTERNAL_CSF_CLASS) & (anatomy.depth_mm[box] > _RIM_MM)
    edge = 1 + 0.25 * _noise(fluid.shape, generator, 10.0)
    return box, fluid & (x**2 + y**2 + z**2 < (radius * edge) ** 2), None


def _intraparenchymal(anatomy: HeadAnatomy, generator: np.random.Generator) -> Drawn:
    point = _pick(anatomy.tissue, generator)
    radii = np.clip(generator.lognormal(np.log(11), 0.4), 5, 28) * generator.uniform(0.7, 1.3, 3)
    box, offsets = _box(anatomy, point, 1.7 * radii.max())
    turn = np.linalg.qr(generator.standard_normal((3, 3)))[0] / radii[:, None]
    squares = [(sum(turn[i, j] * offsets[j] for j in range(3))) ** 2 for i in range(3)]
    distance = np.sqrt(squares[0] + squares[1] + squares[2])
    distance = distance + 0.22 * _noise(distance.shape, generator, 0.5 * float(radii.mean()))
    classes = anatomy.classes[box]
    within = (anatomy.depth_mm[box] > _RIM_MM) & (classes > 0) & ~np.isin(classes, _VENTRICLE_CLASSES)
    width = generator.uniform(0.0, 6.0) / radii.mean()
    oedema = (distance < 1 + width) & within & (classes > len(CSF))
    return box, (distance < 1) & within, oedema


def _intraventricular(anatomy: HeadAnatomy, generator: np.random.Generator) -> Drawn:
    box, (x, _, _) = _box(anatomy, anatomy.centre, 90)
    fluid = np.isin(anatomy.classes[box], _VENTRICLE_CLASSES[: generator.integers(2, 5)])
    choice = generator.integers(3)
    if choice < 2:  # one side only
        fluid &= (x + anatomy.centre[0] - anatomy.midline) * (1 if choice else -1) > 0
    if fluid.any() and generator.random() < 0.6:  # it sinks to the back of a patient who lies on it
        rows = np.argwhere(fluid)[:, 1]
        fluid[:, int(np.quantile(rows, generator.uniform(0.15, 0.6))) :] = False
    return box, fluid, None


def _noise(shape: tuple[int, ...], generator: np.random.Generator, knot_mm: float) -> npt.NDArray[np.float32]:
    """Smooth noise with knots that far apart, of standard deviation about 1 at the knots."""
    knots = [max(2, round(size / max(knot_mm, 2.0)) + 1) for size in shape]
    values = generator.standard_normal(knots).astype(np.float32)
    for axis, size in enumerate(shape):
        place = np.linspace(0, knots[axis] - 1, size, dtype=np.float32)
        low = np.minimum(place.astype(int), knots[axis] - 2)
        share = (place - low).reshape([-1 if axis == other else 1 for other in range(len(shape))])
        values = np.take(values, low, axis) * (1 - share) + np.take(values, low + 1, axis) * share
    return values


_DRAW = {
    "epidural": _epidural,
    "intraparenchymal": _intraparenchymal,
    "intraventricular": _intraventricular,
    "subarachnoid": _subarachnoid,
    "subdural": _subdural,
}
