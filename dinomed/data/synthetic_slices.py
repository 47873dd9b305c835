"""Training slices drawn afresh from label maps, the same for the same seed, epoch and index."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dinomed.data.head_tissues import FIRST_OUTSIDE_CLASS, class_targets, intensity_classes
from dinomed.data.scan_parameters import SynthesisSettings, draw_scan_parameters
from dinomed.data.synthesis import Box, synthesize_scans
from dinomed.errors import InputError, VolumeError
from dinomed.inferers.planes import PLANE_AXES, slice_inputs
from dinomed.transforms.intensity import foreground_percentiles, window_hu

Transform = Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]]
_WHOLE_HEAD = Box((52, 52, 52), step_mm=5.0)


def find_label_maps(folder: str | Path, exclude: Sequence[str] = ()) -> list[Path]:
    """List the label maps of a folder, sorted by name.

    Args:
        folder: where `*.nii.gz` or `*.nii` files lie.
        exclude: file names to leave out, for example those kept for validation.

    Raises:
        InputError: if the folder does not exist, holds no label map, or misses an excluded one.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; set dataset_dir to the folder that holds the label maps")
    found = sorted(
        path for pattern in ("*.nii.gz", "*.nii") for path in root.glob(pattern) if not path.name.startswith(".")
    )
    if not found:
        raise InputError(f"{root}: no label maps (*.nii.gz) here; set dataset_dir to the folder that holds them")
    missing = set(exclude) - {path.name for path in found}
    if missing:
        raise InputError(
            f"{root}: the label maps {', '.join(sorted(missing))} are named in the configuration but not there; "
            "correct validation_maps"
        )
    return [path for path in found if path.name not in exclude]


def read_classes(path: Path) -> tuple[Tensor, tuple[float, float, float]]:
    """Read a FreeSurfer label map as intensity classes in RAS order, cropped to its head.

    Returns:
        (X, Y, Z) uint8 classes and the voxel size in millimetres.

    Raises:
        VolumeError: if the file is no label map that synthesis knows, or shows no head.
    """
    path = path.expanduser()
    try:
        image = nib.as_closest_canonical(nib.load(path))
        values = np.asanyarray(image.dataobj)
        if values.ndim != 3 or not np.array_equal(values, np.rint(values)):
            raise ValueError("it is no three-dimensional map of whole numbers")
        classes = intensity_classes(torch.from_numpy(values.astype(np.int32)))
        if not bool(classes.any()):
            raise ValueError("it holds nothing but background")
    except Exception as error:  # nibabel raises anything from OSError to zlib.error on a damaged file
        raise VolumeError(f"{path}: cannot be used as a label map ({error}); give FreeSurfer label maps") from error
    for axis in range(3):
        used = torch.nonzero(classes.amax(dim=[k for k in range(3) if k != axis])).flatten()
        classes = classes.narrow(axis, int(used[0]), int(used[-1] - used[0]) + 1)
    zooms = image.header.get_zooms()
    return classes.contiguous(), (float(zooms[0]), float(zooms[1]), float(zooms[2]))


IN_PLANE_WANDER_MM = 10.0


class SyntheticSlices(Dataset[list[dict[str, Any]]]):
    """Slices of synthetic head scans, `slices_per_item` at a time.

    An item is one batch: its slices share their plane size and come from `slices_per_item / slices_per_scan`
    scans of different heads, planes and contrasts. Collate with `monai.data.list_data_collate`, batch size 1.

    Args:
        label_maps: files with FreeSurfer numbers.
        label_sources: for each target label the FreeSurfer numbers that it takes.
        intensity: dictionary transform of the scan after percentile normalisation (key "image", (1, X, Y, Z)), the
            same as in inference.
        length: items in an epoch.
        slices_per_item: slices in an item.
        slices_per_scan: slices cut from one synthetic scan.
        sizes: in-plane sizes in voxels of 1 mm, one drawn per item.
        planes: names of the planes to cut.
        neighbours: slices on each side that become input channels.
        percentiles: lower and upper percentile of the whole scan's foreground that become 0 and 1.
        seed: seed of everything drawn.
        settings: how far the scans may differ.

    Raises:
        ValueError: if the numbers do not fit each other.
        InputError: if there is no label map.
    """

    def __init__(
        self,
        label_maps: Sequence[str | Path],
        label_sources: Mapping[int, Sequence[int]],
        intensity: Transform,
        length: int,
        slices_per_item: int = 8,
        slices_per_scan: int = 2,
        sizes: Sequence[int] = (160, 192, 224),
        planes: Sequence[str] = ("axial", "coronal", "sagittal"),
        neighbours: int = 1,
        percentiles: tuple[float, float] = (0.5, 99.5),
        seed: int = 0,
        settings: SynthesisSettings | None = None,
    ) -> None:
        if slices_per_item % slices_per_scan:
            raise ValueError(f"slices_per_item {slices_per_item} is no multiple of slices_per_scan {slices_per_scan}")
        if unknown := set(planes) - set(PLANE_AXES):
            raise ValueError(f"planes {sorted(unknown)} are unknown; choose from {sorted(PLANE_AXES)}")
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes must be one or more in-plane sizes in voxels, not {sizes}")
        if not label_maps:
            raise InputError("there are no label maps to draw from; set dataset_dir to the folder that holds them")
        self.classes = [(*read_classes(Path(path)), str(path)) for path in label_maps]
        self.targets = class_targets({int(label): numbers for label, numbers in label_sources.items()})
        self.intensity = intensity
        self.length = length
        self.scans_per_item = slices_per_item // slices_per_scan
        self.slices_per_scan = slices_per_scan
        self.sizes = tuple(sizes)
        self.planes = tuple(planes)
        self.neighbours = neighbours
        self.percentiles = (float(percentiles[0]), float(percentiles[1]))
        self.seed = seed
        self.settings = settings or SynthesisSettings()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's items are drawn; call it before the data loader starts the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """Draw one item.

        Returns:
            A list of dictionaries with "image" (channels, rows, columns) float32, "label" (1, rows, columns) uint8 and
            "source", the label map that the scan was drawn from.
        """
        if not 0 <= index < self.length:
            raise IndexError(index)
        entropy = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy))
        size = self._choose(generator, self.sizes)
        item: list[dict[str, Any]] = []
        for _ in range(self.scans_per_item):
            item += self._draw_slices(generator, size)
        return item

    @staticmethod
    def _choose(generator: torch.Generator, options: Sequence[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    def _draw_slices(self, generator: torch.Generator, size: int) -> list[dict[str, Any]]:
        """Draw one slab of a head and cut its slices."""
        classes, spacing_mm, source = self._choose(generator, self.classes)
        axis = PLANE_AXES[self._choose(generator, self.planes)]
        gap = 3  # slices of one slab stand a little apart, so that they differ
        margin = self.neighbours + 2
        shape = [size, size, size]
        shape[axis] = (self.slices_per_scan - 1) * gap + 1 + 2 * margin
        centre = self._draw_centre(generator, classes, spacing_mm, axis, size)
        box = Box((shape[0], shape[1], shape[2]), centre)
        parameters = draw_scan_parameters(1, generator, self.settings)
        scans, drawn = synthesize_scans([classes], parameters, box, spacing_mm)
        # The percentiles are those of the whole scan, as in inference; a coarse drawing of it is enough.
        whole, _ = synthesize_scans([classes], parameters, _WHOLE_HEAD, spacing_mm)
        low, high = foreground_percentiles(whole, *self.percentiles)
        scan = window_hu(scans[0], low, max(high, low + 1e-6))
        scan = torch.as_tensor(self.intensity({"image": scan})["image"])[0]
        labels = self.targets[drawn[0].int()]
        indices = [margin + gap * k for k in range(self.slices_per_scan)]
        images = slice_inputs(scan, axis, indices, self.neighbours)
        masks = slice_inputs(labels, axis, indices, neighbours=0)
        pairs = zip(images, masks, strict=True)
        return [{"image": image, "label": mask, "source": source} for image, mask in pairs]

    @staticmethod
    def _draw_centre(
        generator: torch.Generator, classes: Tensor, spacing_mm: Sequence[float], axis: int, size: int
    ) -> tuple[float, float, float]:
        """Draw where the window lies: mostly on the brain, one time in eight anywhere in the head."""
        anywhere, *draws = torch.rand(4, generator=generator).tolist()
        centre = []
        for k, (count, step) in enumerate(zip(classes.shape, spacing_mm, strict=True)):
            low, high = (0, count) if anywhere < 0.125 else _brain_extent(classes, k)
            low_mm, high_mm = (low - count / 2) * step, (high - count / 2) * step
            half = (high_mm - low_mm) / 2
            # In the plane the window stays near the brain's middle, where inference sees it too.
            reach = half if k == axis else IN_PLANE_WANDER_MM
            centre.append((low_mm + high_mm) / 2 + reach * (2 * draws[k] - 1))
        return centre[0], centre[1], centre[2]


def _brain_extent(classes: Tensor, axis: int) -> tuple[int, int]:
    """First and past-the-last position along `axis` at which a coarse look at the map shows brain."""
    coarse = classes[::4, ::4, ::4]
    brain = (coarse > 0) & (coarse < FIRST_OUTSIDE_CLASS)
    used = torch.nonzero(brain.amax(dim=[k for k in range(3) if k != axis])).flatten()
    return (int(used[0]) * 4, int(used[-1]) * 4 + 4) if len(used) else (0, classes.shape[axis])
