"""Training slices of scans and their label maps, cut and changed at random."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from torch import Tensor
from torch.nn import functional

from dinomed.errors import InputError
from dinomed.inferers.planes import PLANE_AXES, slice_inputs

Change = Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]]


class DrawSlices(Randomizable, Transform):
    """Draw a batch of slices from scans, whatever it is called with; the same for the same random state.

    A slice comes from any scan and plane. A share of the slices is drawn by label: first a label that the scan has,
    then a slice that shows it, so that small organs are seen as often as large ones; the others lie anywhere. Each is a
    window of one size, which lies at random in a larger slice or around a smaller one.

    Give it to `dinomed.data.sampling.SeededDataset` as its transform.

    Args:
        scans: Items with "image" (1, X, Y, Z) in [0, 1] and "label" (1, X, Y, Z) uint8, both on the network grid;
            `monai.data.CacheDataset` reads each once.
        slices_per_item: Slices in a batch.
        size: Rows and columns of a window in voxels.
        planes: Names of the planes to cut.
        neighbours: Slices on each side that become input channels.
        by_label: Share of the slices drawn by label.
        change: Random dictionary transform of a slice before its intensities are normalised, such as a `Compose` of
            MONAI's; None for none.
        intensity: Transform of the slice's intensities at the end, the same as in inference; None for none.

    Raises:
        ValueError: If a number is out of range or a plane unknown.
        InputError: If there is no scan.
    """

    def __init__(
        self,
        scans: Sequence[Mapping[str, Any]],
        slices_per_item: int = 8,
        size: int = 128,
        planes: Sequence[str] = ("axial",),
        neighbours: int = 1,
        by_label: float = 0.5,
        change: Change | None = None,
        intensity: Change | None = None,
    ) -> None:
        if unknown := set(planes) - set(PLANE_AXES):
            raise ValueError(f"planes {sorted(unknown)} are unknown; choose from {sorted(PLANE_AXES)}")
        if slices_per_item < 1 or size < 1 or not 0 <= by_label <= 1:
            raise ValueError(
                f"slices_per_item and size must be 1 or more and by_label in [0, 1], not {slices_per_item}, {size} and "
                f"{by_label}"
            )
        if not len(scans):
            raise InputError("there are no scans to draw slices from; set dataset_dir to scans with label maps")
        self.scans = scans
        self.slices_per_item = slices_per_item
        self.size = size
        self.axes = [PLANE_AXES[plane] for plane in planes]
        self.neighbours = neighbours
        self.by_label = by_label
        self.change = change
        self.intensity = intensity
        self._shown: dict[tuple[int, int], Tensor] = {}

    def __call__(self, data: Any = None) -> list[dict[str, Any]]:
        """Return a list of dictionaries: "image" (channels, size, size), "label" (1, size, size), and their case."""
        return [self._draw() for _ in range(self.slices_per_item)]

    def _draw(self) -> dict[str, Any]:
        index = int(self.R.randint(len(self.scans)))
        axis = self.axes[int(self.R.randint(len(self.axes)))]
        scan = self.scans[index]
        image, labels = (torch.as_tensor(scan[key]).as_subclass(Tensor)[0] for key in ("image", "label"))
        position = self._position(index, axis, labels)
        both = torch.cat(
            [
                slice_inputs(image, axis, [position], self.neighbours)[0].float(),
                slice_inputs(labels, axis, [position], neighbours=0)[0].float(),
            ]
        )
        both = self._window(both)
        out: dict[Hashable, Any] = {"image": both[:-1], "label": both[-1:]}
        if self.change is not None:
            seed = int(self.R.randint(2**31))
            if isinstance(self.change, Randomizable):
                self.change.set_random_state(seed)
            out = dict(self.change(out))
        if self.intensity is not None:
            out = dict(self.intensity(out))
        meta = getattr(scan["image"], "meta", {})
        return {
            "image": torch.as_tensor(out["image"]).as_subclass(Tensor).float().contiguous(),
            "label": torch.as_tensor(out["label"]).as_subclass(Tensor).round().to(torch.uint8).contiguous(),
            "source": str(meta.get("filename_or_obj", f"scan {index}")),
        }

    def _position(self, index: int, axis: int, labels: Tensor) -> int:
        """Draw where to cut: at a label drawn from all that the scan has, or anywhere."""
        if self.R.random_sample() < self.by_label:
            shown = self._labels_by_slice(index, axis, labels)
            present = np.flatnonzero(shown.any(0).numpy())
            if present.size:
                label = int(present[self.R.randint(present.size)])
                positions = np.flatnonzero(shown[:, label].numpy())
                return int(positions[self.R.randint(positions.size)])
        return int(self.R.randint(labels.shape[axis]))

    def _labels_by_slice(self, index: int, axis: int, labels: Tensor) -> Tensor:
        """Tell which labels each slice shows, the background left out: (slices, 256) bool."""
        key = (index, axis)
        if key not in self._shown:
            planes = labels.movedim(axis, 0).flatten(1)
            counts = torch.stack([torch.bincount(plane.int(), minlength=256) for plane in planes])
            counts[:, 0] = 0
            self._shown[key] = counts > 0
        return self._shown[key]

    def _window(self, slices: Tensor) -> Tensor:
        """Cut a window out of (channels, rows, columns), or lay the slices in one; 0 around them."""
        for axis in (1, 2):
            room = self.size - slices.shape[axis]
            if room < 0:
                slices = slices.narrow(axis, int(self.R.randint(1 - room)), self.size)
            elif room > 0:
                before = int(self.R.randint(room + 1))
                pads = (before, room - before) if axis == 2 else (0, 0, before, room - before)
                slices = functional.pad(slices, pads)
        return slices
