"""Small label maps of heads made of ellipsoids, with FreeSurfer and head tissue numbers."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

LABEL_SOURCES = {
    1: [4, 43, 5, 44, 14, 72, 15, 24, 136, 137, 163, 164],
    2: [3, 42],
    3: [2, 41, 25, 57, 30, 62, 85],
    4: [10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58, 28, 60],
    5: [7, 46, 8, 47],
    6: [16],
    7: [502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530],
}

# Number, centre and radii of each ellipsoid as parts of half the map, later ones inside earlier ones.
ELLIPSOIDS = (
    (530, (0.0, 0.0, 0.0), (0.95, 0.97, 0.96)),
    (502, (0.0, 0.0, 0.0), (0.86, 0.9, 0.9)),
    (24, (0.0, 0.0, 0.05), (0.75, 0.8, 0.8)),
    (3, (0.0, 0.0, 0.05), (0.68, 0.74, 0.74)),
    (2, (0.0, 0.0, 0.05), (0.55, 0.6, 0.6)),
    (4, (0.0, 0.1, 0.1), (0.12, 0.3, 0.15)),
    (10, (-0.25, 0.0, 0.0), (0.14, 0.2, 0.15)),
    (49, (0.25, 0.0, 0.0), (0.14, 0.2, 0.15)),
    (16, (0.0, -0.1, -0.5), (0.14, 0.14, 0.25)),
    (8, (-0.25, -0.4, -0.5), (0.2, 0.2, 0.2)),
    (47, (0.25, -0.4, -0.5), (0.2, 0.2, 0.2)),
)


def head_numbers(size: int = 48, seed: int = 0) -> np.ndarray:
    """Return a map (size, size, size) in RAS order; the seed moves the whole head a little."""
    shift = np.random.default_rng(seed).normal(0, 0.03, 3)
    axes = (np.arange(size) - (size - 1) / 2) / (size / 2)
    grid = np.stack(np.meshgrid(axes, axes, axes, indexing="ij"), -1) - shift
    numbers = np.zeros((size,) * 3, np.int32)
    for number, centre, radii in ELLIPSOIDS:
        inside = (((grid - np.array(centre)) / np.array(radii)) ** 2).sum(-1) < 1
        numbers[inside] = number
    right = grid[..., 0] > 0
    numbers[right & (numbers == 3)] = 42
    numbers[right & (numbers == 2)] = 41
    return numbers


def write_map(path: Path, numbers: np.ndarray, codes: str = "LIA", voxel_mm: float = 1.0) -> Path:
    """Write a map given in RAS order as NIfTI, its voxels stored in another order."""
    image = nibabel.Nifti1Image(numbers, np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), path)
    return path


def write_maps(folder: Path, count: int = 3, size: int = 48) -> list[Path]:
    """Write maps of different heads, named as the training maps."""
    return [write_map(folder / f"training_seg_{i + 1:02d}.nii.gz", head_numbers(size, i)) for i in range(count)]
