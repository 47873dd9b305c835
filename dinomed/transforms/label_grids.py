"""Reference label maps on the grid of the scan that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from dinomed.errors import VolumeError
from dinomed.transforms.labels import map_labels
from dinomed.transforms.volumes import read_volume

logger = logging.getLogger(__name__)

Affine = npt.NDArray[np.float64]


def labels_on_grid(
    labels: npt.NDArray[np.integer[Any]], affine: Affine, shape: tuple[int, int, int], target_affine: Affine
) -> npt.NDArray[np.integer[Any]]:
    """Look up the nearest label at every voxel of another grid, slice by slice; 0 outside the label map.

    Args:
        labels: (X, Y, Z) label map.
        affine: (4, 4), its voxels to millimetres.
        shape: of the other grid.
        target_affine: (4, 4), the other grid's voxels to the same millimetres.

    Returns:
        Label map of the given shape.
    """
    if labels.shape == shape and np.allclose(affine, target_affine, atol=1e-4):
        return labels
    matrix = np.linalg.solve(affine, target_affine)
    result = np.zeros(shape, dtype=labels.dtype)
    rows, columns = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for index in range(shape[0]):
        voxels = [np.rint(m[0] * index + m[1] * rows + m[2] * columns + m[3]).astype(np.int64) for m in matrix[:3]]
        inside = np.logical_and.reduce([(v >= 0) & (v < n) for v, n in zip(voxels, labels.shape, strict=True)])
        result[index][inside] = labels[tuple(v[inside] for v in voxels)]
    return result


def covers(shape: tuple[int, ...], affine: Affine, other_shape: tuple[int, ...], other_affine: Affine) -> bool:
    """Whether a grid holds the voxel centres of another one, but for two of its own voxels at the edges.

    Args:
        shape: of the grid.
        affine: (4, 4), its voxels to millimetres.
        other_shape: of the other grid.
        other_affine: (4, 4), the other grid's voxels to the same millimetres.
    """
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in other_shape))], dtype=np.float64)
    places = np.linalg.solve(affine, other_affine @ corners.T)[:3].T
    return bool(((places > -2.5) & (places < np.array(shape) + 1.5)).all())


class LoadReferenceLabelsd(MapTransform):
    """Read a label map and bring it to a grid of a scan that `ToNetworkGridd` has prepared.

    Args:
        keys: Entries that hold a path each; they become uint8 MetaTensors (1, X, Y, Z).
        image_key: The scan, whose meta data hold `native_shape` and `native_affine`.
        mapping: Label of each number in the file; other numbers become 0. None takes the numbers as they are.
        on_network_grid: Whether to take the network's grid, for training, in place of the scan's own.
        num_classes: Labels must be below it; None for any up to 255.
        allow_missing_keys: Whether entries may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str,
        mapping: Mapping[int | str, int] | None = None,
        on_network_grid: bool = False,
        num_classes: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.mapping = mapping
        self.on_network_grid = on_network_grid
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with label maps under the keys.

        Raises:
            VolumeError: If a file cannot be read, does not hold whole numbers, or holds others than the labels.
        """
        out = dict(data)
        image = out[self.image_key]
        shape = tuple(int(n) for n in (image.shape[1:] if self.on_network_grid else image.meta["native_shape"]))
        affine = np.asarray(image.affine if self.on_network_grid else image.meta["native_affine"], dtype=np.float64)
        for key in self.key_iterator(out):
            volume = read_volume(out[key])
            values = np.rint(volume.array)
            if not np.array_equal(values, volume.array):
                raise VolumeError(f"{volume.path}: holds numbers that are not whole; give a label map as reference")
            numbers = torch.from_numpy(values.astype(np.int32))
            if self.mapping is not None:
                numbers = map_labels(numbers, self.mapping)
            last = (256 if self.num_classes is None else self.num_classes) - 1
            if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) <= last:
                raise VolumeError(
                    f"{volume.path}: labels run from {int(numbers.min())} to {int(numbers.max())}, not within 0 to "
                    f"{last}; give the label of each number"
                )
            if not covers(volume.array.shape, volume.affine, shape, affine):
                logger.warning(
                    "%s covers only a part of the scan %s: all beyond it counts as background",
                    volume.path,
                    image.meta.get("filename_or_obj", ""),
                )
            mapped = numbers.to(torch.uint8).numpy()
            on_grid = labels_on_grid(mapped, volume.affine, (shape[0], shape[1], shape[2]), affine)
            out[key] = MetaTensor(torch.from_numpy(on_grid)[None], affine=torch.from_numpy(affine.copy()))
        return out
