"""From a bundle and a scan to a label map on its own grid, or from a photograph to one of its size: the only way in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose, Transform
from torch import nn

from dinomed.bundle.causes import own_error
from dinomed.bundle.checkpoint import load_network
from dinomed.bundle.config import config_file, overlay_file, read_configs, resolve
from dinomed.bundle.locate import find_bundle, read_metadata
from dinomed.bundle.settings import InferenceSettings, check_overlay, read_settings
from dinomed.errors import BundleError, DinomedError, InputError, WeightsError
from dinomed.inferers.planes import PLANE_AXES
from dinomed.inferers.precision import PRECISIONS, resolve_precision
from dinomed.transforms.image_labels import LabelsAtImageSized
from dinomed.transforms.image_reading import IMAGE_SUFFIXES
from dinomed.transforms.image_results import ImagePrediction, ImageResultPaths, assemble_image_prediction
from dinomed.transforms.natural_images import refuse_scan
from dinomed.transforms.provenance import describe_transforms, file_sha256
from dinomed.transforms.report import RunInfo, name_labels
from dinomed.transforms.results import Prediction, ResultPaths, assemble_prediction

__all__ = [
    "ImagePrediction",
    "ImageResultPaths",
    "Prediction",
    "Predictor",
    "ResultPaths",
    "choose_device",
    "choose_planes",
]

Component = TypeVar("Component")

INFERENCE: tuple[tuple[str, Any], ...] = (("inferer", Inferer), ("decide", Transform))


class Predictor:
    """A bundle's network, loaded once, and the steps around it.

    Attributes:
        run: Model, device and settings, as every report states them.
        label_names: Name of each label value, background 0 included.
        frame: Frame of 4-D scans that the bundle or its overlay takes where none is asked for.
        takes_pictures: Whether the bundle is for photographs and other flat pictures, not for scans.
    """

    def __init__(
        self, root: Path, parser: ConfigParser, network: nn.Module, device: torch.device, run: RunInfo
    ) -> None:
        """Take what `from_bundle` has prepared."""
        self.root = root
        self.device = device
        self.run = run
        self.network = network
        self.label_names = name_labels(resolve(parser, "label_names", root))
        self._parser = parser
        self._frame = None if "frame" not in parser else resolve(parser, "frame", root)
        self.frame = self._frame
        self._preprocessing = _component(parser, root, "preprocessing", Compose)
        self._inferer = _component(parser, root, "inferer", Inferer)
        self._decide = _component(parser, root, "decide", Transform)
        self.takes_pictures = isinstance(self._decide, LabelsAtImageSized)
        self._background = None if "background_label" not in parser else resolve(parser, "background_label", root)

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
        """Load a segmentation bundle.

        Args:
            bundle: Folder of the bundle, or its name.
            device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
            precision: "float32", "bfloat16" or "auto", which takes the bundle's choice.
            planes: Planes to look along, such as "axial" or "axial,coronal"; None takes the bundle's choice.
            overlay: A variant of the bundle by name, or a YAML file that is merged after its inference config.
            weights: File to take instead of the bundle's own weights.
            batch_size: Slices or windows at a time; None takes the bundle's choice.
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
            "batch_size": batch_size,
            "ckpt_path": None if weights is None else str(Path(weights).expanduser()),
            "tta": True if tta else None,
        }
        chosen_ids = {key: value for key, value in overrides.items() if value is not None}
        parser = _read_parser(root, files, {"device": chosen, **chosen_ids})
        if overlay is not None:
            check_overlay(root, files[-1], parser)
        settings = read_settings(parser, root) if "planes" in parser else _picture_settings(parser, root)
        checkpoint = Path(str(resolve(parser, "ckpt_path", root)))
        if weights is None and not checkpoint.is_file():
            raise WeightsError(
                f"{checkpoint}: there is no such weights file; the bundle {root.name} comes without weights or lost "
                f"them: train it (`dinomed train {root.name}`) and name the file that this writes, such as --weights "
                "runs/train/best.pt"
            )
        dtype = resolve_precision(settings.precision, chosen)
        preprocessing = _component(parser, root, "preprocessing", Compose)
        network = load_network(_component(parser, root, "network_def", nn.Module), checkpoint, chosen)
        run = RunInfo(
            bundle=root.name,
            version=str(read_metadata(root).get("version", "")),
            overlay=None if overlay is None else Path(overlay).stem,
            weights_file=checkpoint.name,
            weights_sha256=file_sha256(checkpoint),
            device=str(chosen),
            precision=str(dtype).removeprefix("torch."),
            planes=settings.planes,
            class_groups=settings.class_groups,
            inference=tuple(describe_transforms([_component(parser, root, *each) for each in INFERENCE])),
            preprocessing=tuple(describe_transforms(preprocessing)),
        )
        return cls(root, parser, network, chosen, run)

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
        try:
            with torch.no_grad():
                item = _timed(timings, "load", lambda: self._preprocessing({"image": str(path)}, end=1))
                item = _timed(timings, "preprocess", lambda: self._preprocessing(item, start=1))
                item["pred"] = _timed(timings, "infer", lambda: self._infer(item["image"]))
                labels = _timed(timings, "labels", lambda: self._decide(item)["pred"])
        except (RuntimeError, MemoryError) as error:
            explained = _explained(error, path, self.device)
            if explained is None:
                raise
            raise explained from None
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


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is there.

    Raises:
        InputError: If it is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"device {name!r} is unknown; choose auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise InputError(f"device {name!r} was asked for, but PyTorch sees no CUDA GPU; use --device cpu or auto")
        if index and int(index) >= count:
            raise InputError(f"device {name!r} was asked for, but there are only cuda:0 to cuda:{count - 1}")
    return torch.device(name)


def choose_planes(planes: str | Sequence[str]) -> tuple[str, ...]:
    """Turn "axial,coronal" or a sequence of names into planes.

    Raises:
        InputError: If one is unknown or named twice, or there is none.
    """
    names = [name.strip() for name in (planes.split(",") if isinstance(planes, str) else planes)]
    allowed = ", ".join(sorted(PLANE_AXES))
    for name in names or [""]:
        if name not in PLANE_AXES:
            raise InputError(f"plane {name!r} is unknown; choose one or more of {allowed}, separated by commas")
    if len(set(names)) != len(names):
        raise InputError(f"planes {','.join(names)} name one plane twice; choose each of {allowed} at most once")
    return tuple(names)


def _read_parser(root: Path, files: Sequence[Path], overrides: dict[str, Any]) -> ConfigParser:
    """Read the inference config, after refusing settings that the bundle has not and MONAI would take in silence."""
    parser = read_configs(root, files)
    for key, words in (("tta", "no test-time augmentation"), ("planes", "no planes; it is for flat pictures")):
        if key in overrides and key not in parser:
            raise InputError(f"the bundle {root.name} has {words}; leave --{key} out")
    return read_configs(root, files, overrides)


def _picture_settings(parser: ConfigParser, root: Path) -> InferenceSettings:
    """Read the settings of a bundle for pictures.

    Raises:
        BundleError: If one is absent or cannot be used.
    """
    names = name_labels(resolve(parser, "label_names", root))
    outputs, precision = resolve(parser, "num_classes", root), resolve(parser, "precision", root)
    if len(names) != max(2, int(outputs)):
        raise BundleError(
            f"the configuration of {root.name} has {len(names)} label_names for {outputs} outputs of the network; "
            "give one name for each"
        )
    if precision not in PRECISIONS:
        raise BundleError(f"precision {precision!r} of {root.name} is unknown; choose from {', '.join(PRECISIONS)}")
    return InferenceSettings(precision, (), names, None, None)


def _component(parser: ConfigParser, root: Path, key: str, kind: type[Component]) -> Component:
    """Build an id of the config and check what it is, so that a wrong one is refused before a scan is read."""
    component = resolve(parser, key, root)
    if isinstance(component, kind) and not (kind is Compose and len(getattr(component, "transforms", ())) < 2):
        return component
    wanted = (
        "a Compose of the loading and at least one more transform"
        if kind is Compose
        else f"of the kind {kind.__name__}"
    )
    raise BundleError(f"{key} of the bundle {root.name} must be {wanted}, not {type(component).__name__}; correct it")


def _timed(timings: dict[str, float | None], stage: str, work: Callable[[], Any]) -> Any:
    started_s = time.perf_counter()
    result = work()
    timings[stage] = time.perf_counter() - started_s
    return result


def _explained(error: BaseException, path: str | os.PathLike[str], device: torch.device) -> DinomedError | None:
    """Find the sentence inside what MONAI wrapped, or make one where the memory ran out."""
    own = own_error(error)
    if own is not None:
        return own
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(cause):
        return InputError(
            f"{path}: the memory of the {device.type} does not suffice for it; "
            "use a smaller --batch-size, another --device, or a machine with more memory"
        )
    return None
