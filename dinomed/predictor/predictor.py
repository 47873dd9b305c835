"""The one class that everything goes through: a bundle's model, loaded once, asked scan by scan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinomed.bundle.config import config_file, overlay_file, resolve
from dinomed.bundle.locate import find_bundle
from dinomed.bundle.settings import check_overlay
from dinomed.errors import InputError, WeightsError
from dinomed.inferers.precision import PRECISIONS
from dinomed.predictor.choices import choose_device, choose_planes
from dinomed.predictor.classification import PictureClassification, ScanClassification
from dinomed.predictor.loading import read_parser
from dinomed.predictor.propagation import LabelPropagation
from dinomed.predictor.segmentation import Segmentation
from dinomed.transforms.classification_results import Classification
from dinomed.transforms.image_classification import ImageClassification
from dinomed.transforms.image_results import ImagePrediction, ImageResultPaths
from dinomed.transforms.report import RunInfo
from dinomed.transforms.results import Prediction, ResultPaths


class Predictor:
    """A bundle's model, loaded once.

    Attributes:
        run: Model, device and settings, as every report states them.
        label_names: Name of each label value, background 0 included, or of each class; of several tasks by task.
        frame: Frame of 4-D scans that the bundle or its overlay takes where none is asked for.
        takes_pictures: Whether the bundle is for photographs and other flat pictures, not for scans.
        network: What was trained: of a bundle that classifies scans, the head.
    """

    def __init__(self, work: Segmentation | ScanClassification | PictureClassification) -> None:
        """Take what `from_bundle` has prepared."""
        self._work = work
        self._propagation: LabelPropagation | None = None
        self.root: Path = work.root
        self.device: torch.device = work.device
        self.run: RunInfo = work.run
        self.network: nn.Module = work.network
        self.label_names: Any = work.label_names
        self.frame: int | None = work.frame
        self.takes_pictures: bool = work.takes_pictures

    @property
    def classifies(self) -> bool:
        """Whether the bundle answers with classes rather than with a label map."""
        return not isinstance(self._work, Segmentation)

    @classmethod
    def from_bundle(
        cls,
        bundle: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: str = "auto",
        planes: str | Sequence[str] | None = None,
        overlay: str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        tta: bool = False,
    ) -> Predictor:
        """Load a bundle.

        Args:
            bundle: Folder of the bundle, or its name.
            device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
            precision: "float32", "bfloat16" or "auto", which takes the bundle's choice.
            planes: Planes to look along, such as "axial" or "axial,coronal"; None takes the bundle's choice.
            overlay: A variant of the bundle by name, or a YAML file that is merged after its inference config.
            weights: File to take instead of the bundle's own weights.
            batch_size: Slices, windows or pictures at a time; None takes the bundle's choice.
            tta: Average over scales and the mirrored picture, in bundles that offer it.

        Raises:
            BundleError: If the bundle or the overlay is absent or does not hold together.
            WeightsError: If the weights are absent, damaged or belong to another network.
            InputError: If the device, precision, planes or batch size cannot be used.
        """
        chosen = choose_device(device)
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"the batch size must be 1 or more, not {batch_size}")
        root = find_bundle(bundle)
        files = [config_file(root, "inference"), *([] if overlay is None else [overlay_file(root, overlay)])]
        overrides: dict[str, Any] = {
            "precision": None if precision == "auto" else precision,
            "planes": None if planes is None else list(choose_planes(planes)),
            "ckpt_path": None if weights is None else str(Path(weights).expanduser()),
            "tta": True if tta else None,
        }
        chosen_ids = {key: value for key, value in overrides.items() if value is not None}
        parser = read_parser(root, files, {"device": chosen, **chosen_ids}, batch_size)
        if overlay is not None:
            check_overlay(root, files[-1], parser)
        checkpoint = Path(str(resolve(parser, "ckpt_path", root)))
        if weights is None and not checkpoint.is_file():
            raise WeightsError(
                f"{checkpoint}: there is no such weights file; the bundle {root.name} comes without weights or lost "
                f"them: train it (`dinomed train {root.name}`) and name the file that this writes, such as --weights "
                "runs/train/best.pt"
            )
        given = (root, parser, checkpoint, chosen, None if overlay is None else Path(overlay).stem)
        if "classifier" in parser:
            return cls(ScanClassification.open(*given))
        return cls(PictureClassification.open(*given) if "task" in parser else Segmentation.open(*given))

    def segment(
        self, path: str | os.PathLike[str], frame: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Prediction | ImagePrediction:
        """Segment one scan, or one picture with a bundle for pictures.

        Args:
            path: Volume file or DICOM series folder; or a picture.
            frame: Frame of a 4-D scan, from 0; None where there is only one, or the bundle's choice is meant.
            progress: Called with the slices (views, of a picture) done and their number.

        Returns:
            Labels on the scan's own grid or at the picture's own size, with amounts, confidence and timings.

        Raises:
            VolumeError: If the scan cannot be read or segmented.
            InputError: If the picture cannot be read, the bundle is for something else, or the memory does not suffice.
            DinomedError: If the network's output is not finite.
        """
        return self._segmentation().segment(path, frame, progress)

    def propagate(
        self,
        path: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        frame: int | None = None,
        plane: str | None = None,
        beyond: bool = True,
        progress: Callable[[int, int], None] | None = None,
        label_names: Mapping[int, str] | None = None,
    ) -> Prediction:
        """Carry labels that are drawn on a few slices through a scan, with the bundle's frozen backbone alone.

        Args:
            path: Volume file or DICOM series folder.
            labels: Label map on the scan's own grid with whole numbers from 1 to 255 on one slice or more. A label is
                taken to be drawn completely on every slice where it is drawn at all.
            frame: Frame of a 4-D scan, from 0; None where there is only one, or the bundle's choice is meant.
            plane: That the labels are drawn in: "axial", "coronal" or "sagittal"; None finds it.
            beyond: Carry labels beyond their outermost drawn slices; False fills only what lies between.
            progress: Called with the labels done and their number.
            label_names: Names of labels for the table and the warnings; those without one are "label 1" and so on.

        Returns:
            Labels on the scan's own grid; the drawn slices are as they were drawn. `run.inference` says how far both
            directions agree in every slice.

        Raises:
            VolumeError: If the scan or the labels cannot be read, lie on different grids, or no label is drawn.
            InputError: If the bundle cannot do it, the plane is unknown, or the memory does not suffice.
        """
        if self._propagation is None:
            self._propagation = LabelPropagation(self._segmentation())
        return self._propagation.propagate(path, labels, frame, plane, beyond, progress, label_names)

    def classify(
        self, path: str | os.PathLike[str], case: str | None = None, **request: Any
    ) -> Classification | ImageClassification:
        """Classify one scan, or one picture with a bundle for pictures.

        Args:
            path: Volume file or DICOM series folder; or a picture.
            case: Name of the results; None names them after the file.
            request: For a scan: `maps` ("rollout", "gradient", "occlusion"), `map_slices`, `map_label` and
                `reference` ("center" or "ROW,COLUMN"), see `dinomed.bundle.scan_classifier.ScanClassifier`.

        Returns:
            Probabilities with what is known of them; `save(folder)` writes them.

        Raises:
            VolumeError: If the scan cannot be read.
            InputError: If the picture cannot be read, the bundle is for something else, or the request is not possible.
        """
        self.check_request(**request)
        assert not isinstance(self._work, Segmentation)
        return self._work.classify(path, case, **request)

    def check_request(self, **request: Any) -> None:
        """Refuse what `classify` could not do with any scan.

        Raises:
            InputError: As `classify`.
        """
        if isinstance(self._work, Segmentation):
            raise InputError(f"the bundle {self.root.name} segments; use `segment`, or a bundle that classifies")
        self._work.check_request(**request)

    def result_paths(self, folder: str | os.PathLike[str], case: str) -> ResultPaths | ImageResultPaths:
        """Return where `save` puts the results of a segmented case."""
        return self._segmentation().result_paths(folder, case)

    def _segmentation(self) -> Segmentation:
        if isinstance(self._work, Segmentation):
            return self._work
        raise InputError(f"the bundle {self.root.name} classifies; use `classify`, or a bundle that segments")
