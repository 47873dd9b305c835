"""Volumes with labels, and the slices that are drawn in them, for `benchmarks/propagation.py`.

Synthetic head scans have the label map that they were drawn from on their own grid, so their truth is exact. A scan is
drawn in two forms: 1 mm isotropic, and acquired in axial slices of 3 mm (with their profile) of which every one is
kept. A CT comes with its label file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from dinomed.data.head_tissues import INTENSITY_GROUPS
from dinomed.data.scan_parameters import SynthesisSettings, draw_scan_parameters
from dinomed.data.synthesis import Box, synthesize_scans

Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

PAIRED = {
    2: "cerebral white matter", 3: "cerebral cortex", 4: "lateral ventricle", 5: "inferior lateral ventricle",
    7: "cerebellar white matter", 8: "cerebellar cortex", 10: "thalamus", 11: "caudate", 12: "putamen",
    13: "pallidum", 17: "hippocampus", 18: "amygdala", 26: "accumbens", 28: "ventral diencephalon",
}  # fmt: skip
RIGHT = {
    2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 26: 58, 28: 60,
}  # fmt: skip
SINGLE = {14: "third ventricle", 15: "fourth ventricle", 16: "brainstem", 72: "fifth ventricle", 85: "optic chiasm"}
BRAIN_STRUCTURES = {
    **{number: f"left {name}" for number, name in PAIRED.items()},
    **{RIGHT[number]: f"right {name}" for number, name in PAIRED.items()},
    **SINGLE,
}
"""FreeSurfer numbers that are propagated; fluid around the brain, vessels, lesions and the outer head are not."""

CROP_MARGIN_MM = 16
THICK_MM = 3

SETTINGS = SynthesisSettings(
    low_resolution_probability=0.0, thick_slice_probability=0.0, brain_only_probability=0.0, crop_probability=0.0
)
"""Whole heads at the stated resolution; shape, contrast, bias field, noise and gamma are drawn as for training."""


@dataclass(frozen=True)
class Case:
    """A volume and its true labels on one grid.

    Attributes:
        name: of the volume, with its form.
        volume: (X, Y, Z) float32, closest to RAS.
        truth: (X, Y, Z) uint8, 0 outside of the structures.
        affine: (4, 4) voxel to RAS millimetres.
        spacing_mm: (3,) voxel size.
        structures: name of each label in `truth`.
    """

    name: str
    volume: npt.NDArray[np.float32]
    truth: Labels
    affine: npt.NDArray[np.float64]
    spacing_mm: npt.NDArray[np.float64]
    structures: dict[int, str]


def head_cases(
    folder: Path, maps: Sequence[int] = (14, 15, 16), seed: int = 0, forms: Sequence[str] = ("1mm", "3mm")
) -> Iterator[Case]:
    """Draw a synthetic scan of each label map `training_seg_NN.nii.gz`, in each form."""
    numbers = [0, *(number for group in INTENSITY_GROUPS for number in group)]
    intensity_class = [0, *(k + 1 for k, group in enumerate(INTENSITY_GROUPS) for _ in group)]
    code_of = np.zeros(max(numbers) + 1, np.uint8)
    code_of[numbers] = np.arange(len(numbers))
    label_of = np.array([number if number in BRAIN_STRUCTURES else 0 for number in numbers], np.uint8)
    for index in maps:
        codes, spacing_mm = _read_codes(folder / f"training_seg_{index:02d}.nii.gz", code_of)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        drawn = draw_scan_parameters(1, generator, SETTINGS)
        # Left and right share an intensity class; with a class for each number the truth keeps them apart.
        drawn = replace(drawn, means=drawn.means[:, intensity_class], stds=drawn.stds[:, intensity_class])
        sizes = [int(n * step) + 2 * CROP_MARGIN_MM for n, step in zip(codes.shape, spacing_mm, strict=True)]
        for form in forms:
            step = {"1mm": 1, "3mm": THICK_MM}[form]
            parameters = replace(drawn, spacing_mm=torch.tensor([[1.0, 1.0, step]]), phase=torch.zeros(1, 3))
            scans, classes = synthesize_scans([codes], parameters, Box((sizes[0], sizes[1], sizes[2])), spacing_mm)
            truth = label_of[classes[0].numpy()]
            volume = scans[0, 0, :, :, ::step].numpy()  # the centres of the acquired slices
            spacing = np.array([1.0, 1.0, step])
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = [-(n - 1) / 2 for n in sizes]
            name = f"head{index:02d}_{form}"
            yield _case(name, volume, truth[:, :, ::step], affine, BRAIN_STRUCTURES)


def _read_codes(path: Path, code_of: Labels) -> tuple[torch.Tensor, tuple[float, float, float]]:
    """Read a label map in RAS order, cropped to its head, its numbers replaced by their codes."""
    image = nib.as_closest_canonical(nib.load(path))
    codes = code_of[np.asarray(image.dataobj).astype(np.int64)]
    used = [np.flatnonzero(codes.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    codes = codes[tuple(slice(found[0], found[-1] + 1) for found in used)]
    x, y, z = (float(zoom) for zoom in image.header.get_zooms())
    return torch.from_numpy(np.ascontiguousarray(codes)), (x, y, z)


def ct_case(scan: Path, labels: Path) -> Case:
    """Read a CT and its labels, which must lie on the same grid."""
    image, reference = (nib.as_closest_canonical(nib.load(path)) for path in (scan, labels))
    if image.shape != reference.shape or not np.allclose(image.affine, reference.affine, atol=1e-3):
        raise ValueError(f"{labels} lies on another grid than {scan}")
    truth = np.asarray(reference.dataobj).astype(np.uint8)
    names = {int(label): f"label {label}" for label in np.unique(truth) if label}
    for extension in nib.load(labels).header.extensions:  # TotalSegmentator writes its names into the file
        content: Any = extension.get_content()
        text = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
        found = re.findall(r'<Label Key="(\d+)"[^>]*><!\[CDATA\[(.*?)\]\]>', text)
        names |= {int(key): name.replace("_", " ") for key, name in found if int(key) in names}
    name = scan.name.removesuffix(".gz").removesuffix(".nii")
    return _case(name, image.get_fdata(dtype=np.float32), truth, image.affine, names)


def _case(name: str, volume: npt.NDArray[Any], truth: Labels, affine: Any, names: dict[int, str]) -> Case:
    present = {int(label): names[int(label)] for label in np.unique(truth) if label}
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    volume = np.ascontiguousarray(volume, dtype=np.float32)
    return Case(name, volume, np.ascontiguousarray(truth), np.asarray(affine, dtype=np.float64), spacing_mm, present)


def cases(
    head_labels: Path | None = None,
    ct: tuple[Path, Path] | None = None,
    maps: Sequence[int] = (14, 15, 16),
    seed: int = 0,
    forms: Sequence[str] = ("1mm", "3mm"),
) -> Iterator[Case]:
    """Yield the volumes to measure on, one at a time.

    Args:
        head_labels: folder of FreeSurfer label maps `training_seg_NN.nii.gz`.
        ct: a CT and its label file.
        maps: numbers of the label maps.
        seed: of the synthetic scans.
        forms: "1mm" and "3mm" (axial slices of 3 mm) of each of them.
    """
    if head_labels is not None:
        yield from head_cases(head_labels, maps, seed, forms)
    if ct is not None:
        yield ct_case(*ct)


def slices_to_draw(mask: Mask, axis: int, count: int) -> list[int]:
    """Choose `count` slices of a structure along `axis`.

    One slice is that of largest area. More lie at the fractions (i + 0.5) / count of the structure's extent; where the
    structure has a gap there, the nearest slice that shows it is taken. A structure may have fewer slices than that.
    """
    area = mask.sum(axis=tuple({0, 1, 2} - {axis}))
    shown = np.flatnonzero(area)
    if count == 1:
        return [int(area.argmax())]
    first, length = shown[0], shown[-1] - shown[0] + 1
    wanted = [first + int((i + 0.5) / count * length) for i in range(count)]
    return sorted({int(shown[np.abs(shown - index).argmin()]) for index in wanted})


def draw_slices(truth: Labels, labels: Sequence[int], axis: int, count: int) -> tuple[Labels, dict[int, list[int]]]:
    """Copy each label on its own slices.

    Args:
        truth: (X, Y, Z) labels.
        labels: those that are drawn.
        axis: 0 sagittal, 1 coronal, 2 axial.
        count: slices of each.

    Returns:
        (X, Y, Z) labels with nothing but the drawn ones, and the slices of each label. A slice that was chosen for
        one label does not show the others.
    """
    drawn = np.zeros_like(truth)
    slices = {}
    for label in labels:
        mask = truth == label
        slices[label] = slices_to_draw(mask, axis, count)
        place = tuple(slices[label] if k == axis else slice(None) for k in range(3))
        drawn[place] = np.where(mask[place], np.uint8(label), drawn[place])
    return drawn, slices
