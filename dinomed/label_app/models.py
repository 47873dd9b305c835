"""The bundles that segment scans, each with the weights of the moment."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from dinomed.bundle.config import config_file, read_configs, resolve
from dinomed.bundle.locate import BundleInfo, list_bundles
from dinomed.errors import DinomedError, WeightsError
from dinomed.predictor import Predictor
from dinomed.transforms.provenance import file_sha256
from dinomed.transforms.report import name_labels

logger = logging.getLogger(__name__)

SCANS_ONLY = ("decide", "planes", "label_names")
"""Ids of an inference config that all three are there only where scans are segmented."""

Signature = tuple[Path, int, int, int]


class LabelModel:
    """A bundle, loaded when it is first asked and again when its weights are others.

    Attributes:
        name: Of the bundle and of the model in MONAI Label.
        root: Folder of the bundle.
        folder: Where fine-tuned weights and trainings lie.
        label_names: Name of each label value, background 0 included.
    """

    def __init__(self, info: BundleInfo, folder: Path, device: str = "auto") -> None:
        if info.weights is None:
            raise WeightsError(f"the bundle {info.name} has no weights; put them into {info.root / 'models'}")
        parser = read_configs(info.root, [config_file(info.root, "inference")])
        self.name, self.root, self.folder, self.device = info.name, info.root, folder, device
        self.description = info.description
        self.label_names = name_labels(resolve(parser, "label_names", info.root))
        self.shipped = info.weights
        self._loaded: tuple[Signature, Predictor] | None = None
        self._checksum: tuple[Signature, str] | None = None
        self._lock = threading.Lock()

    @property
    def labels(self) -> dict[str, int]:
        """Value of each label by name, without the background."""
        return {name: value for value, name in sorted(self.label_names.items()) if value}

    @property
    def fine_tuned(self) -> Path:
        """Where a training puts its weights."""
        return self.folder / "model.pt"

    @property
    def weights(self) -> Path:
        """The weights that are used now."""
        return self.fine_tuned if self.fine_tuned.is_file() else self.shipped

    def weights_sha256(self) -> str:
        """Checksum of the weights that are used now."""
        signature = _signature(self.weights)
        if self._checksum is None or self._checksum[0] != signature:
            self._checksum = (signature, file_sha256(signature[0]))
        return self._checksum[1]

    def predictor(self) -> Predictor:
        """Return the loaded bundle.

        Raises:
            DinomedError: As `Predictor.from_bundle`.
        """
        with self._lock:
            signature = _signature(self.weights)
            if self._loaded is None or self._loaded[0] != signature:
                logger.info("loading %s with %s", self.name, signature[0])
                predictor = Predictor.from_bundle(self.root, device=self.device, weights=signature[0])
                self._loaded = (signature, predictor)
            return self._loaded[1]


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); train again or put it back") from error
    return path, status.st_mtime_ns, status.st_size, status.st_ino


def find_models(folder: Path, device: str = "auto") -> dict[str, LabelModel]:
    """Return the bundles that segment scans and have weights, by name.

    Args:
        folder: Of the workspace, whose `model/<bundle>` each gets.
        device: As `Predictor.from_bundle` takes it.
    """
    found: dict[str, LabelModel] = {}
    for info in list_bundles():
        try:
            parser = read_configs(info.root, [config_file(info.root, "inference")])
            if all(key in parser for key in SCANS_ONLY):
                found[info.name] = LabelModel(info, folder / info.name, device)
        except DinomedError as error:
            logger.warning("the bundle %s is left out: %s", info.name, error)
    return found
