"""Classification by a bundle: of CTs by a head over embeddings, and of pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose, Transform
from torch import nn

from dinomed.bundle.config import resolve
from dinomed.bundle.running import bundle_version
from dinomed.bundle.scan_classifier import ScanClassifier, classifier_run
from dinomed.errors import InputError
from dinomed.inferers.precision import resolve_precision
from dinomed.predictor.loading import component_of, explaining, timed
from dinomed.transforms.classification_results import Classification
from dinomed.transforms.image_classification import (
    ImageClassification,
    assemble_image_classification,
    names_by_task,
)
from dinomed.transforms.image_reading import IMAGE_SUFFIXES
from dinomed.transforms.natural_images import refuse_scan
from dinomed.transforms.report import RunInfo, describe_run


class ScanClassification:
    """A head over the embeddings of a scan's slices; attributes as those of `Predictor`."""

    frame: int | None = None
    takes_pictures = False

    def __init__(self, root: Path, parser: ConfigParser, classifier: ScanClassifier, run: RunInfo) -> None:
        """Take what `open` has prepared."""
        self.root = root
        self.run = run
        self.classifier = classifier
        self.network: nn.Module = classifier.network
        self.device = classifier.extractor.device
        self.label_names = classifier.head.labels
        self._embed = resolve(parser, "preprocessing", root)

    @classmethod
    def open(
        cls, root: Path, parser: ConfigParser, checkpoint: Path, device: torch.device, overlay: str | None
    ) -> ScanClassification:
        """Load backbone and head; errors as those of `Predictor.from_bundle`."""
        classifier = component_of(parser, root, "classifier", ScanClassifier)
        run = classifier_run(classifier, root.name, bundle_version(root), checkpoint, overlay)
        return cls(root, parser, classifier, run)

    def check_request(self, **request: Any) -> None:
        """Refuse a request that is not possible with any scan."""
        self.classifier.check(**request)

    def classify(self, path: str | os.PathLike[str], case: str | None = None, **request: Any) -> Classification:
        """Classify a scan, see `Predictor.classify`."""
        if str(path).lower().endswith(IMAGE_SUFFIXES) and Path(path).is_file():
            raise InputError(
                f"{path} is a picture, and the bundle {self.root.name} reads CT (NIfTI, NRRD, MetaImage, DICOM)"
            )
        timings: dict[str, float | None] = {}
        with explaining(path, self.device):
            item = timed(timings, "embed", lambda: self._embed({"image": str(path)}))
            with torch.no_grad():
                logits = timed(timings, "head", lambda: self.network(item["image"][None].to(self.device))[0])
        return self.classifier.assemble(item, logits, self.run, timings, case, **request)


class PictureClassification:
    """A classifier of pictures; attributes as those of `Predictor`."""

    frame: int | None = None
    takes_pictures = True

    def __init__(
        self, root: Path, parser: ConfigParser, network: nn.Module, device: torch.device, run: RunInfo
    ) -> None:
        """Take what `open` has prepared."""
        self.root = root
        self.device = device
        self.run = run
        self.network = network
        self.label_names = names_by_task(resolve(parser, "label_names", root))
        self._preprocessing = component_of(parser, root, "preprocessing", Compose)
        self._inferer = component_of(parser, root, "inferer", Inferer)
        self._decide = component_of(parser, root, "decide", Transform)
        self._settings = {key: resolve(parser, key, root) for key in ("threshold", "top_k")}
        self._kind = str(resolve(parser, "task", root))

    @classmethod
    def open(
        cls, root: Path, parser: ConfigParser, checkpoint: Path, device: torch.device, overlay: str | None
    ) -> PictureClassification:
        """Load the network; errors as those of `Predictor.from_bundle`."""
        network = component_of(parser, root, "network", nn.Module)
        dtype = resolve_precision(str(resolve(parser, "precision", root)), device)
        parts = [component_of(parser, root, "inferer", Inferer), component_of(parser, root, "decide", Transform)]
        run = describe_run(
            *(root.name, bundle_version(root), checkpoint),
            overlay=overlay,
            device=device,
            precision=dtype,
            inference=parts,
            preprocessing=component_of(parser, root, "preprocessing", Compose),
        )
        return cls(root, parser, network, device, run)

    def check_request(self, **request: Any) -> None:
        """Refuse every request: there are no maps."""
        if asked := [name for name, value in request.items() if value]:
            raise InputError(f"the bundle {self.root.name} is for pictures and makes no maps; leave {asked[0]} out")

    def classify(self, path: str | os.PathLike[str], case: str | None = None, **request: Any) -> ImageClassification:
        """Classify a picture, see `Predictor.classify`."""
        refuse_scan(path)
        timings: dict[str, float | None] = {}
        with explaining(path, self.device), torch.no_grad():
            item = timed(timings, "load", lambda: self._preprocessing({"image": str(path)}))
            batch = item["image"].as_tensor()[None].to(self.device)
            logits = timed(timings, "infer", lambda: self._inferer(batch, self.network))
            one = {task: each[0] for task, each in logits.items()} if isinstance(logits, dict) else logits[0]
            probabilities = timed(timings, "decide", lambda: self._decide({**item, "pred": one})["pred"])
        answer = assemble_image_classification(
            *(item["image"], probabilities, self.label_names, self.run),
            kind=self._kind,
            path=Path(path),
            timings_s=timings,
            **self._settings,
        )
        answer.case = case or answer.case
        return answer
