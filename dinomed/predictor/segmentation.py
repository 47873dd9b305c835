"""Segmentation by a bundle: a label map on the scan's own grid, or of a picture's own size."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose, Transform
from torch import nn

from dinomed.bundle.checkpoint import load_network
from dinomed.bundle.config import resolve
from dinomed.bundle.running import bundle_version
from dinomed.bundle.settings import read_settings
from dinomed.errors import BundleError, InputError
from dinomed.inferers.precision import resolve_precision
from dinomed.predictor.loading import component_of, explaining, picture_settings, timed
from dinomed.transforms.geometry import ToNetworkGridd
from dinomed.transforms.image_labels import LabelsAtImageSized
from dinomed.transforms.image_reading import IMAGE_SUFFIXES
from dinomed.transforms.image_results import ImagePrediction, ImageResultPaths, assemble_image_prediction
from dinomed.transforms.natural_images import refuse_scan
from dinomed.transforms.report import RunInfo, describe_run, name_labels
from dinomed.transforms.results import Prediction, ResultPaths, assemble_prediction

INFERENCE: tuple[tuple[str, Any], ...] = (("inferer", Inferer), ("decide", Transform))


class Segmentation:
    """A segmenting bundle's network and the steps around it; attributes as those of `Predictor`.

    Attributes:
        run: Model, device and settings, as every report states them.
        label_names: Name of each label value, background 0 included.
        frame: Frame of 4-D scans that the bundle or its overlay takes where none is asked for.
        takes_pictures: Whether the bundle is for photographs and other flat pictures, not for scans.
    """

    def __init__(
        self, root: Path, parser: ConfigParser, network: nn.Module, device: torch.device, run: RunInfo
    ) -> None:
        """Take what `Predictor.from_bundle` has prepared."""
        self.root = root
        self.device = device
        self.run = run
        self.network = network
        self.label_names = name_labels(resolve(parser, "label_names", root))
        self._parser = parser
        self._frame = None if "frame" not in parser else resolve(parser, "frame", root)
        self.frame = self._frame
        self._preprocessing = component_of(parser, root, "preprocessing", Compose)
        self._inferer = component_of(parser, root, "inferer", Inferer)
        self._decide = component_of(parser, root, "decide", Transform)
        self.takes_pictures = isinstance(self._decide, LabelsAtImageSized)
        self._background = None if "background_label" not in parser else resolve(parser, "background_label", root)

    @classmethod
    def open(
        cls, root: Path, parser: ConfigParser, checkpoint: Path, device: torch.device, overlay: str | None
    ) -> Segmentation:
        """Load the network and describe the run; errors as those of `Predictor.from_bundle`."""
        settings = read_settings(parser, root) if "planes" in parser else picture_settings(parser, root)
        dtype = resolve_precision(settings.precision, device)
        preprocessing = component_of(parser, root, "preprocessing", Compose)
        network = load_network(component_of(parser, root, "network_def", nn.Module), checkpoint, device)
        run = describe_run(
            *(root.name, bundle_version(root), checkpoint),
            overlay=overlay,
            device=device,
            precision=dtype,
            planes=settings.planes,
            class_groups=settings.class_groups,
            inference=[component_of(parser, root, *each) for each in INFERENCE],
            preprocessing=preprocessing,
        )
        return cls(root, parser, network, device, run)

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
            InputError: If the picture cannot be read, the bundle is for the other of the two, or the memory does not
                suffice.
            DinomedError: If the network's output is not finite.
        """
        self.check_kind(path)
        frame = self.frame if frame is None else frame
        self._choose_frame(frame)
        self._inferer.progress = progress or False
        timings: dict[str, float | None] = {}
        with explaining(path, self.device), torch.no_grad():
            item = timed(timings, "load", lambda: self._preprocessing({"image": str(path)}, end=1))
            item = timed(timings, "preprocess", lambda: self._preprocessing(item, start=1))
            item["pred"] = timed(timings, "infer", lambda: self._infer(item["image"]))
            labels = timed(timings, "labels", lambda: self._decide(item)["pred"])
        del item["pred"]  # the probabilities of all classes, the largest thing here
        image = item["image"]
        if self.takes_pictures:
            return assemble_image_prediction(
                *(image, labels, self.label_names, self.run),
                path=Path(path),
                background_label=self._background,
                timings_s=timings,
            )
        return assemble_prediction(
            image, labels, self.label_names, self.run, path=Path(path), frame=frame, timings_s=timings
        )

    def result_paths(self, folder: str | os.PathLike[str], case: str) -> ResultPaths | ImageResultPaths:
        """Return where `save` puts the results of a case."""
        return (ImageResultPaths if self.takes_pictures else ResultPaths).of(folder, case)

    def check_kind(self, path: str | os.PathLike[str]) -> None:
        """Refuse a scan where the bundle is for pictures, and the reverse, by the file's name.

        Raises:
            InputError: With the bundle that may have been meant.
        """
        if self.takes_pictures:
            refuse_scan(path)
        elif str(path).lower().endswith(IMAGE_SUFFIXES) and Path(path).is_file():
            raise InputError(
                f"{path} is a picture, and the bundle {self.root.name} reads scans (NIfTI, NRRD, MetaImage, MGH, "
                "DICOM); take a bundle for pictures, such as ade20k_segmentation (see `dinomed bundle list`)"
            )

    def native_preprocessing(self, frame: int | None) -> Compose:
        """Return the preprocessing with the scan's own voxels, in RAS order, in place of the network's grid."""
        self._choose_frame(frame)
        return Compose(
            [
                ToNetworkGridd(each.keys, None) if isinstance(each, ToNetworkGridd) else each
                for each in self._preprocessing.transforms
            ]
        )

    def _infer(self, image: Any) -> torch.Tensor:
        probs: torch.Tensor = self._inferer(image.as_tensor()[None].to(self.device), self.network)[0]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return probs

    def _choose_frame(self, frame: int | None) -> None:
        """Rebuild the preprocessing where another frame is asked for than last time."""
        if frame == self._frame:
            return
        if "frame" not in self._parser:
            if self.takes_pictures:
                raise InputError(f"the bundle {self.root.name} is for pictures, which have no frames; leave frame out")
            raise BundleError(f"the bundle {self.root.name} takes no frame; its inference config lacks the id 'frame'")
        self._parser["frame"] = frame
        self._preprocessing = resolve(self._parser, "preprocessing", self.root)
        self._frame = frame
