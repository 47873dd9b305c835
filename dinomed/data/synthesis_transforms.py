"""Synthesis as MONAI transforms: a random one that draws parameters, and the deterministic twin that applies them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable, Transform
from torch import Tensor

from dinomed.data.head_tissues import class_targets, intensity_classes
from dinomed.data.scan_parameters import ScanParameters, SynthesisSettings, draw_scan_parameters
from dinomed.data.synthesis import Box, synthesize_scans

SHAPE = (192, 224, 192)


class SynthesizeScand(Transform):
    """Make a scan from a FreeSurfer label map with given parameters; the same parameters give the same scan.

    The dictionary gains the scan, a MetaTensor (1, *shape) float32, and its label map becomes the deformed one on the
    same grid, (1, *shape) uint8. The grid has voxels of 1 mm, lies along the axes of the label map and shares its
    centre.

    Args:
        parameters: of one scan, as `draw_scan_parameters(1, ...)` gives them.
        label_sources: for each label of the result the FreeSurfer numbers that it takes.
        shape: of the scan, in voxels of 1 mm.
        label_key: a MetaTensor (1, X, Y, Z) of FreeSurfer and head tissue numbers, its axes to the right, to the front
            and up, on the device where the scan is to be made.
        image_key: where the scan goes.
    """

    def __init__(
        self,
        parameters: ScanParameters,
        label_sources: Mapping[int, Sequence[int]],
        shape: tuple[int, int, int] = SHAPE,
        label_key: str = "label",
        image_key: str = "image",
    ) -> None:
        self.parameters = parameters
        self.targets = class_targets({int(label): numbers for label, numbers in label_sources.items()})
        self.shape = shape
        self.label_key = label_key
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the scan and its label map.

        Raises:
            ValueError: if the label map is no MetaTensor of one channel, has other axes or unknown numbers.
        """
        labels = data[self.label_key]
        if not isinstance(labels, MetaTensor) or labels.ndim != 4 or labels.shape[0] != 1:
            raise ValueError(f"{self.label_key!r} must be a MetaTensor (1, X, Y, Z); load it with one channel in front")
        affine = labels.affine.to("cpu", torch.float64)
        axes = "".join(str(code) for code in nib.aff2axcodes(affine.numpy()))
        if axes != "RAS":
            raise ValueError(f"the axes of {self.label_key!r} are {axes}; put Orientationd(axcodes='RAS') before")
        spacing_mm = affine[:3, :3].norm(dim=0)
        classes = intensity_classes(labels.as_tensor()[0])
        scans, drawn = synthesize_scans([classes], self.parameters, Box(self.shape), spacing_mm.tolist())
        grid = self._grid(affine, spacing_mm, classes.shape)
        meta = {key: labels.meta[key] for key in ("filename_or_obj",) if key in labels.meta}
        targets = self.targets.to(drawn.device)[drawn.int()]
        out = dict(data)
        out[self.image_key] = MetaTensor(scans[0], affine=grid, meta=dict(meta))
        out[self.label_key] = MetaTensor(targets, affine=grid, meta=dict(meta))
        return out

    def _grid(self, affine: Tensor, spacing_mm: Tensor, size: Sequence[int]) -> Tensor:
        """Affine of the result: voxels of 1 mm along the same axes about the same centre."""
        grid = torch.eye(4, dtype=torch.float64)
        grid[:3, :3] = affine[:3, :3] / spacing_mm
        middle = (torch.tensor(size, dtype=torch.float64) - 1) / 2
        start = (torch.tensor(self.shape, dtype=torch.float64) - 1) / 2
        grid[:3, 3] = affine[:3, :3] @ middle + affine[:3, 3] - grid[:3, :3] @ start
        return grid


class RandSynthesizeScand(Randomizable, Transform):
    """Make a scan of random shape, contrast, resolution and quality from a FreeSurfer label map.

    Draws parameters, then hands them to `SynthesizeScand`. `set_random_state` seeds it, also through
    `monai.transforms.Compose`.

    Args:
        label_sources: for each label of the result the FreeSurfer numbers that it takes.
        settings: how far the drawn scans may differ.
        shape: of the scan, in voxels of 1 mm.
        label_key: as `SynthesizeScand` has it.
        image_key: where the scan goes.

    Attributes:
        parameters: what was drawn last.
    """

    def __init__(
        self,
        label_sources: Mapping[int, Sequence[int]],
        settings: SynthesisSettings | None = None,
        shape: tuple[int, int, int] = SHAPE,
        label_key: str = "label",
        image_key: str = "image",
    ) -> None:
        self.label_sources = label_sources
        self.settings = settings
        self.shape = shape
        self.label_key = label_key
        self.image_key = image_key
        self.parameters: ScanParameters | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw the parameters of the next scan."""
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
        self.parameters = draw_scan_parameters(1, generator, self.settings)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the scan and its label map; raises as `SynthesizeScand` does."""
        self.randomize()
        assert self.parameters is not None
        twin = SynthesizeScand(self.parameters, self.label_sources, self.shape, self.label_key, self.image_key)
        return twin(data)
