"""From a bundle and a scan to a label map on the scan's own grid: the only way in for the command line and services."""

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

from dinomed.bundle.checkpoint import load_network
from dinomed.bundle.config import config_file, overlay_file, own_error, read_configs, resolve
from dinomed.bundle.locate import find_bundle, read_metadata
from dinomed.bundle.settings import check_overlay, read_settings
from dinomed.errors import BundleError, DinomedError, InputError
from dinomed.inferers.planes import PLANE_AXES
from dinomed.inferers.precision import PRECISIONS, resolve_precision
from dinomed.transforms.provenance import describe_transforms, file_sha256
from dinomed.transforms.report import RunInfo, name_labels
from dinomed.transforms.results import Prediction, ResultPaths, assemble_prediction

__all__ = ["Prediction", "Predictor", "ResultPaths", "choose_device", "choose_planes"]

Component = TypeVar("Component")


class Predictor:
    """A bundle's network, loaded once, and the steps around it.

    Attributes:
        run: Model, device and settings, as every report states them.
        label_names: Name of each label value, background 0 included.
        frame: Frame of 4-D scans that the bundle or its overlay takes where none is asked for.
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
    ) -> Predictor:
        """Load a segmentation bundle.

        Args:
            bundle: Folder of the bundle, or its name.
            device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
            precision: "float32", "bfloat16" or "auto", which takes the bundle's choice.
            planes: Planes to look along, such as "axial" or "axial,coronal"; None takes the bundle's choice.
            overlay: A variant of the bundle by name, or a YAML file that is merged after its inference config.
            weights: File to take instead of the bundle's own weights.
            batch_size: Slices at a time; None takes the bundle's choice.

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
        overrides: dict[str, Any] = {"device": chosen}
        if precision != "auto":
            overrides["precision"] = precision
        if planes is not None:
            overrides["planes"] = list(choose_planes(planes))
        if batch_size is not None:
            overrides["batch_size"] = batch_size
        if weights is not None:
            overrides["ckpt_path"] = str(Path(weights).expanduser())
        parser = read_configs(root, files, overrides)
        if overlay is not None:
            check_overlay(root, files[-1], parser)
        settings = read_settings(parser, root)
        checkpoint = Path(str(resolve(parser, "ckpt_path", root)))
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
            inference=tuple(
                describe_transforms(
                    [_component(parser, root, "inferer", Inferer), _component(parser, root, "decide", Transform)]
                )
            ),
            preprocessing=tuple(describe_transforms(preprocessing)),
        )
        return cls(root, parser, network, chosen, run)

    def segment(
        self, path: str | os.PathLike[str], frame: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Prediction:
        """Segment one scan.

        Args:
            path: Volume file or DICOM series folder.
            frame: Frame of a 4-D scan, from 0; None where there is only one, or the bundle's choice is meant.
            progress: Called with the slices done and their number.

        Returns:
            Labels on the scan's own grid, with volumes, confidence and timings.

        Raises:
            VolumeError: If the scan cannot be read or segmented.
            InputError: If the memory does not suffice.
            DinomedError: If the network's output is not finite.
        """
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
        return assemble_prediction(
            item["image"], labels, self.label_names, self.run, path=Path(path), frame=frame, timings_s=timings
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
            f"{path}: the memory of the {device.type} does not suffice for this scan; "
            "use a smaller --batch-size, another --device, or a machine with more memory"
        )
    return None
