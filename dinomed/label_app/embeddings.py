"""One vector for each scan, from the backbone of a bundle, kept by weights and scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from dinomed.bundle.config import config_file, read_configs, resolve
from dinomed.data.features import FeatureExtractor, FeatureSettings, choose_slices
from dinomed.data.series_checks import MARK_DIGITS, content_mark
from dinomed.errors import BundleError, DinomedError
from dinomed.handlers.whole_files import write_file
from dinomed.inferers.planes import slice_inputs
from dinomed.label_app.models import LabelModel
from dinomed.networks.backbones import TimmBackbone
from dinomed.predictor.loading import explaining
from dinomed.transforms.provenance import file_sha256

SLICES = 16
"""Axial slices that a scan is known by, spread from end to end."""
SIDE = 160
"""Pixels of their sides."""
AXIAL = 2

Vector = npt.NDArray[np.float32]


class Embeddings:
    """A folder of vectors.

    Args:
        folder: Made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._extractors: dict[str, tuple[FeatureExtractor, Any]] = {}
        self._backbones: dict[str, str] = {}

    def known(self, model: LabelModel, scan: str | Path) -> Vector | None:
        """Return a scan's vector if it was made before.

        Raises:
            InputError: If the scan cannot be read.
        """
        entry = self._entry(model, scan)
        if not entry.is_file():
            return None
        vector = np.frombuffer(entry.read_bytes(), dtype="<f4")
        return vector if vector.size and np.isfinite(vector).all() else None

    def make(self, model: LabelModel, scan: str | Path) -> Vector:
        """Return a scan's vector: mean of its slices' class and mean patch tokens, of length 1.

        Raises:
            InputError: If the scan cannot be read, or the bundle's network has no DINOv3 backbone.
        """
        found = self.known(model, scan)
        if found is not None:
            return found
        extractor, preprocessing = self._extractor(model)
        try:
            with explaining(scan, extractor.device):
                image = preprocessing({"image": str(scan)})["image"].as_tensor()[0]
                chosen = choose_slices(image.shape[AXIAL], 1, SLICES)
                rows = extractor.embed(_square(slice_inputs(image, AXIAL, chosen, 1), float(image.min())))
        except RuntimeError as error:
            raise DinomedError(f"{scan} cannot be embedded: {error}") from error
        mean = rows.mean(axis=0, dtype=np.float64)
        vector: Vector = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype("<f4")
        write_file(self._entry(model, scan), vector.tobytes())
        return vector

    def _extractor(self, model: LabelModel) -> tuple[FeatureExtractor, Any]:
        """The frozen backbone and the preprocessing of a bundle; trainings here leave both as they are."""
        if model.name not in self._extractors:
            predictor = model.predictor()
            inner: Any = getattr(predictor.network, "backbone", None)
            inner = getattr(inner, "backbone", inner)
            if not isinstance(inner, TimmBackbone):
                raise BundleError(f"the network of {model.name} has no DINOv3 backbone; choose another strategy")
            parser = read_configs(model.root, [config_file(model.root, "inference")])
            preprocessing = resolve(parser, "preprocessing", model.root)
            extractor = FeatureExtractor(inner, FeatureSettings(pool="both", resize=SIDE), predictor.device, "float32")
            self._extractors[model.name] = (extractor, preprocessing)
        return self._extractors[model.name]

    def _entry(self, model: LabelModel, scan: str | Path) -> Path:
        if model.name not in self._backbones:
            self._backbones[model.name] = file_sha256(model.shipped)[:MARK_DIGITS]
        return self.folder / model.name / self._backbones[model.name] / f"{content_mark(scan)}.f4"


def _square(slices: Tensor, air: float) -> Tensor:
    """Lay slices (n, channels, rows, columns) in the middle of squares, so that resizing keeps their proportions."""
    rows, columns = slices.shape[-2:]
    side = max(rows, columns)
    above, left = (side - rows) // 2, (side - columns) // 2
    return functional.pad(slices, (left, side - columns - left, above, side - rows - above), value=air)


def least_like(candidates: Mapping[str, Vector], labelled: Sequence[Vector]) -> tuple[str, float]:
    """Choose the candidate farthest from its nearest labelled one, or the most typical where none is labelled.

    Args:
        candidates: Vectors of length 1 by name.
        labelled: Vectors of length 1.

    Returns:
        Name, and its cosine distance to the nearest labelled scan, or the mean distance to all candidates.
    """
    names = list(candidates)
    vectors = np.stack([candidates[name] for name in names])
    if labelled:
        nearest = (1 - vectors @ np.stack(labelled).T).min(axis=1)
        index = int(nearest.argmax())
        return names[index], max(0.0, float(nearest[index]))
    mean = (1 - vectors @ vectors.T).mean(axis=1)
    index = int(mean.argmin())
    return names[index], max(0.0, float(mean[index]))
