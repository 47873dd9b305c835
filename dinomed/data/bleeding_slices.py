"""Training slices of synthetic head CTs with and without bleeding, drawn afresh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform

from dinomed.data.bleeding import FIRST_BLEED_CLASS, KINDS, OEDEMA_CLASS, HeadAnatomy, draw_bleedings, draw_mimics
from dinomed.data.synthetic_ct import CTParameters, draw_ct_parameters, scan_slices
from dinomed.data.synthetic_slices import read_classes
from dinomed.errors import InputError, VolumeError
from dinomed.inferers.planes import slices_along

WITHOUT_BLEEDING = 0.4
"""Share of the heads without any bleeding."""


def draw_kinds(generator: np.random.Generator, without: float = WITHOUT_BLEEDING) -> list[str]:
    """Draw which kinds of bleeding a head has: none, one, or two or three together."""
    if generator.random() < without:
        return []
    count = 1 + int(generator.random() < 0.3) + int(generator.random() < 0.1)
    return sorted(generator.choice(KINDS, size=count, replace=False).tolist(), key=KINDS.index)


@lru_cache(maxsize=64)
def read_anatomy(path: Path) -> HeadAnatomy:
    """Read a FreeSurfer label map with voxels of 1 mm for drawing bleedings; each file is read once.

    Raises:
        VolumeError: If it cannot be read, has other voxels, or shows no brain.
    """
    classes, spacing_mm = read_classes(path)
    if not np.allclose(spacing_mm, 1.0, atol=0.05):
        raise VolumeError(f"{path}: its voxels are {spacing_mm} mm; bleedings are drawn into label maps of 1 mm")
    try:
        return HeadAnatomy.of(classes.numpy())
    except ValueError as error:
        raise VolumeError(f"{path}: {error}; give FreeSurfer label maps of whole heads") from error


class DrawBleedingSlices(Randomizable, Transform):
    """Draw a batch of axial slices of synthetic CTs, whatever it is called with; the same for the same random state.

    Give it to `dinomed.data.sampling.SeededDataset` as its transform.

    Args:
        label_maps: Files with FreeSurfer numbers, 1 mm.
        heads_per_item: Synthetic heads in a batch.
        slices_per_head: Slices of each.
        without_bleeding: Share of the heads without any bleeding.
        through_blood: Share of a head's slices that lie where its blood is, if there is any.
        windows_hu: Three windows, one a channel, as `FeatureSettings` has them.
        mean: Of the channels after windowing to [0, 1].
        std: Likewise.
        size: Rows and columns.

    Raises:
        InputError: If there is no label map.
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        label_maps: Sequence[str | Path],
        windows_hu: Sequence[Sequence[float]],
        mean: Sequence[float],
        std: Sequence[float],
        heads_per_item: int = 4,
        slices_per_head: int = 8,
        size: int = 288,
        without_bleeding: float = WITHOUT_BLEEDING,
        through_blood: float = 0.5,
    ) -> None:
        if not label_maps:
            raise InputError("there are no label maps to draw from; set dataset_dir to the folder that holds them")
        if heads_per_item < 1 or slices_per_head < 1:
            raise ValueError(
                f"heads_per_item and slices_per_head must be 1 or more, not {heads_per_item}, {slices_per_head}"
            )
        self.label_maps = [Path(path) for path in label_maps]
        self.windows_hu = [(float(low), float(high)) for low, high in windows_hu]
        self.mean, self.std = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))
        self.heads_per_item = heads_per_item
        self.slices_per_head = slices_per_head
        self.size = size
        self.without_bleeding = without_bleeding
        self.through_blood = through_blood

    def __call__(self, data: Any = None) -> list[dict[str, Any]]:
        """Return a list of dictionaries: "image" (3, size, size) and "label" (1, size, size) uint8, the kind or 0."""
        generator = np.random.default_rng(int(self.R.randint(2**31)))
        return [item for _ in range(self.heads_per_item) for item in self._head(generator)]

    def _head(self, generator: np.random.Generator) -> list[dict[str, Any]]:
        path = self.label_maps[int(generator.integers(len(self.label_maps)))]
        anatomy = read_anatomy(path)
        drawn = draw_mimics(
            anatomy, draw_bleedings(anatomy, draw_kinds(generator, self.without_bleeding), generator), generator
        )
        parameters = draw_ct_parameters(generator)
        slices, shown = scan_slices(
            torch.from_numpy(drawn), parameters, self._heights(drawn, parameters, generator), self.size
        )
        upright = slices_along(slices.permute(1, 2, 0), 2)[:, None]
        image = torch.cat([((upright - low) / (high - low)).clamp(0, 1) for low, high in self.windows_hu], dim=1)
        image = (image - self.mean) / self.std
        labels = slices_along(shown.permute(1, 2, 0), 2)[:, None].to(torch.uint8)
        return [{"image": image[i], "label": labels[i], "source": path.name} for i in range(len(image))]

    def _heights(self, drawn: Any, parameters: CTParameters, generator: np.random.Generator) -> list[float]:
        """Draw where to cut: a share of the slices through blood where there is any, the others anywhere."""
        size = drawn.shape[2]
        anywhere = generator.uniform(0.15 * size, size - 4, self.slices_per_head) - (size - 1) / 2
        blood = np.argwhere((drawn >= FIRST_BLEED_CLASS) & (drawn < OEDEMA_CLASS))
        count = round(self.through_blood * self.slices_per_head)
        if len(blood) and count:
            places = blood[generator.integers(len(blood), size=count)] - (np.array(drawn.shape) - 1) / 2
            turned = torch.linalg.solve(parameters.affine.double(), torch.from_numpy(places.T)).numpy()
            anywhere[: len(places)] = turned[2] + generator.normal(0, 2, len(places))
        return [float(height) for height in anywhere]
