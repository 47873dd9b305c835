"""Whole synthetic head scans with their labels, to evaluate on anatomies that training never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from dinomed.data.head_tissues import class_targets
from dinomed.data.scan_parameters import SynthesisSettings, draw_scan_parameters
from dinomed.data.synthesis import Box, synthesize_scans
from dinomed.data.synthetic_slices import read_classes
from dinomed.errors import InputError

MARGIN_MM = 16


class SyntheticScans(Sequence[dict[str, Any]]):
    """Synthetic scans at 1 mm in RAS order, drawn when they are asked for; the same for the same seed.

    Scan i shows label map i // scans_per_map. Hand it to a `monai.data.Dataset` as its data.

    Args:
        label_maps: files with FreeSurfer numbers.
        label_sources: for each target label the FreeSurfer numbers that it takes.
        scans_per_map: scans drawn from each label map.
        seed: seed of everything drawn.
        settings: how far the scans may differ.

    Raises:
        InputError: if there is no label map.
    """

    def __init__(
        self,
        label_maps: Sequence[str | Path],
        label_sources: Mapping[int, Sequence[int]],
        scans_per_map: int = 1,
        seed: int = 0,
        settings: SynthesisSettings | None = None,
    ) -> None:
        if not label_maps:
            raise InputError("there are no label maps to draw from; set dataset_dir to the folder that holds them")
        self.label_maps = [Path(path) for path in label_maps]
        self.targets = class_targets({int(label): numbers for label, numbers in label_sources.items()})
        self.scans_per_map = scans_per_map
        self.seed = seed
        self.settings = settings or SynthesisSettings()

    def __len__(self) -> int:
        return len(self.label_maps) * self.scans_per_map

    def __getitem__(self, index: int | slice) -> Any:
        """Draw one scan: "image" and "label", each a MetaTensor (1, X, Y, Z), float32 and uint8."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        path = self.label_maps[index // self.scans_per_map]
        classes, spacing_mm = read_classes(path)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        parameters = draw_scan_parameters(1, generator, self.settings)
        x, y, z = (int(count * step) + 2 * MARGIN_MM for count, step in zip(classes.shape, spacing_mm, strict=True))
        scans, drawn = synthesize_scans([classes], parameters, Box((x, y, z)), spacing_mm)
        affine = torch.eye(4, dtype=torch.float64)
        affine[:3, 3] = -(torch.tensor([x, y, z], dtype=torch.float64) - 1) / 2
        name = f"{path.name.split('.')[0]}_scan{index % self.scans_per_map}"
        meta = {"filename_or_obj": name, "original_affine": affine.clone(), "space": "RAS"}
        return {
            "image": MetaTensor(scans[0], affine=affine, meta=dict(meta)),
            "label": MetaTensor(self.targets[drawn[0].int()][None], affine=affine, meta=dict(meta)),
        }
