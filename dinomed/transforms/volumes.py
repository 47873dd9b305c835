"""Loads scans into MONAI pipelines; the reading itself is in `volume_reading`, which needs neither torch nor MONAI."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from dinomed.transforms.label_files import write_labels
from dinomed.transforms.volume_folders import case_name, find_volumes, is_volume_path
from dinomed.transforms.volume_reading import Grid, Volume, read_grid, read_volume

__all__ = [
    "Grid",
    "LoadVolumed",
    "Volume",
    "case_name",
    "find_volumes",
    "is_volume_path",
    "read_grid",
    "read_volume",
    "to_meta_tensor",
    "write_labels",
]


class LoadVolumed(MapTransform):
    """Replace paths by the scans that they name, as `MetaTensor` (1, X, Y, Z) float32.

    Meta: `filename_or_obj`, `affine` and `original_affine` (4, 4) float64 voxel to RAS+ mm, `spatial_shape` (3,) int64
    and `space`, which is `RAS`.

    Args:
        keys: Entries that hold a path each.
        frame: Which volume of four-dimensional files, counted from 0.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        VolumeError: As `read_volume`. MONAI's `Compose` hides it as the `__cause__` of a `RuntimeError`.
    """

    def __init__(self, keys: KeysCollection, frame: int | None = None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.frame = frame

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy of `data` with a scan under each key."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            loaded[key] = to_meta_tensor(read_volume(loaded[key], self.frame))
        return loaded


def to_meta_tensor(volume: Volume) -> MetaTensor:
    """Scan as a `MetaTensor` (1, X, Y, Z) that shares its memory."""
    affine = torch.from_numpy(volume.affine.copy())
    meta = {
        "filename_or_obj": str(volume.path),
        "original_affine": affine.clone(),
        "spatial_shape": torch.tensor(volume.array.shape, dtype=torch.int64),
        "space": "RAS",
    }
    return MetaTensor(torch.from_numpy(volume.array).unsqueeze(0), affine=affine, meta=meta)
