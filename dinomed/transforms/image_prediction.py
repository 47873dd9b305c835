"""The segmentation of one picture, and its results: label map, overlay, side-by-side picture and a JSON report.

They are made in a hidden folder beside their destination and then renamed, the report last, so that a report is never
there without the others; each PNG says that dinomed made it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinomed.errors import OutputError
from dinomed.transforms.image_picture import draw_overlay, draw_side_by_side
from dinomed.transforms.image_reading import IMAGE_SUFFIXES, read_image
from dinomed.transforms.palette import voc_colours
from dinomed.transforms.provenance import software_versions, to_json
from dinomed.transforms.report import LOW_CONFIDENCE, STAGES, RunInfo, to_text
from dinomed.transforms.staged_results import is_own_png, picture_facts, save_png, staged_results
from dinomed.transforms.volume_checks import shown

__all__ = [
    "ImagePrediction",
    "ImageResultPaths",
    "build_image_report",
    "is_own_png",
    "picture_name",
    "write_image_results",
    "write_label_png",
]

SCHEMA = "dinomed-image-segmentation-1"
NOTABLE_SHARE = 0.01
"""Part of the picture from which on a doubtful class is worth a warning."""

LABELS, OVERLAY, SIDE_BY_SIDE, REPORT = "_seg.png", "_seg_overlay.png", "_seg_side_by_side.png", "_seg.json"


def picture_name(path: str | os.PathLike[str]) -> str:
    """Name of a picture for its results: the file's without its ending."""
    name = Path(path).name
    ending = next(
        (suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix) and len(name) > len(suffix)), ""
    )
    return name[: len(name) - len(ending)]


@dataclass(frozen=True)
class ImageResultPaths:
    """Where the four results of a picture lie."""

    labels: Path
    overlay: Path
    side_by_side: Path
    report: Path

    @classmethod
    def of(cls, folder: str | os.PathLike[str], case: str) -> ImageResultPaths:
        """Return the paths of a picture's results in a folder."""
        root = Path(folder)
        return cls(*(root / f"{case}{ending}" for ending in (LABELS, OVERLAY, SIDE_BY_SIDE, REPORT)))

    def existing(self) -> list[Path]:
        """Return those that are there."""
        return [path for path in astuple(self) if path.exists()]


@dataclass(eq=False)
class ImagePrediction:
    """The segmentation of one picture at its own size, with what is needed to report and draw it.

    Attributes:
        path: The picture.
        labels: (H, W) uint8, or int32 with more than 255 classes; upright, as a viewer shows the picture.
        label_names: Name of each label value.
        mean_confidence: Mean probability of the winning label over the label's pixels; None where it is absent.
        network_size: Height and width of what the network saw at scale 1.
        run: Model, device and settings.
        background_label: Label that overlays leave unpainted; None for none.
        timings_s: Seconds per stage: load, preprocess, infer, labels, and write after saving.
        case: The name that the results carry.
        table: One row per label value: value, name, pixels, share, mean_confidence.
    """

    path: Path
    labels: NDArray[Any]
    label_names: Mapping[int, str]
    mean_confidence: Mapping[int, float | None]
    network_size: tuple[int, int]
    run: RunInfo
    background_label: int | None = None
    timings_s: dict[str, float | None] = field(default_factory=dict)
    case: str = ""
    table: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.case = self.case or picture_name(self.path)
        counts = np.bincount(self.labels.ravel())
        values = sorted(set(self.label_names) | {int(value) for value in np.flatnonzero(counts)})
        pixels = {value: int(counts[value]) if value < len(counts) else 0 for value in values}
        self.table = [
            {
                "value": value,
                "name": self.label_names.get(value, f"label {value}"),
                "pixels": pixels[value],
                "share": pixels[value] / self.labels.size,
                "mean_confidence": to_json(self.mean_confidence.get(value)) if pixels[value] else None,
            }
            for value in values
        ]

    @property
    def shares(self) -> dict[str, float]:
        """Part of the picture by the label's name, the largest first; labels that do not occur are left out."""
        found = sorted((row for row in self.table if row["pixels"]), key=lambda row: -row["pixels"])
        return {row["name"]: row["share"] for row in found}

    @property
    def confidence(self) -> dict[str, float | None]:
        """Mean confidence by the label's name, None where the label is absent."""
        return {row["name"]: row["mean_confidence"] for row in self.table}

    @property
    def warnings(self) -> list[str]:
        """What a reader should know: classes that cover much and are doubtful."""
        doubtful = [
            f"{row['name']} ({row['mean_confidence']:.2f})"
            for row in self.table
            if row["share"] >= NOTABLE_SHARE
            and row["mean_confidence"] is not None
            and row["mean_confidence"] < LOW_CONFIDENCE
        ]
        return [f"mean confidence below {LOW_CONFIDENCE}, check by eye: {', '.join(doubtful)}"] if doubtful else []

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> ImageResultPaths:
        """Write label map, overlay, side-by-side picture and report.

        Args:
            folder: Made if absent.
            overwrite: Replace results of the same name; without it they are an error.

        Raises:
            OutputError: If results exist and may not be replaced, or the folder cannot be written.
        """
        return write_image_results(self, folder, overwrite)


def write_image_results(
    prediction: ImagePrediction, folder: str | os.PathLike[str], overwrite: bool = False
) -> ImageResultPaths:
    """Write the four results of a picture; arguments and errors as those of `ImagePrediction.save`."""
    started_s = time.perf_counter()
    paths = ImageResultPaths.of(folder, prediction.case)
    pixels = np.rint(read_image(prediction.path).transpose(1, 2, 0) * 255.0).astype(np.uint8)
    if pixels.shape[:2] != prediction.labels.shape:
        raise OutputError(f"{shown(prediction.path)} has changed since it was segmented; segment it again")
    with staged_results(astuple(paths), prediction.case, overwrite) as stage:
        write_label_png(prediction.labels, stage / paths.labels.name)
        background = prediction.background_label
        save_png(draw_overlay(pixels, prediction.labels, background), stage / paths.overlay.name)
        beside = draw_side_by_side(pixels, prediction.labels, prediction.table, background)
        save_png(beside, stage / paths.side_by_side.name)
        prediction.timings_s["write"] = time.perf_counter() - started_s
        (stage / paths.report.name).write_text(to_text(build_image_report(prediction, paths)), encoding="utf-8")
    return paths


def write_label_png(labels: NDArray[Any], path: Path) -> None:
    """Write a label map as a PNG of one channel: 8 bits with VOC's colours as its palette, or 16 bits of grey.

    Args:
        labels: (H, W) uint8, or wider integers below 65536.
        path: File to write.

    Raises:
        OSError: If it cannot be written.
    """
    if labels.dtype == np.uint8:
        height, width = labels.shape
        image = Image.frombytes("P", (width, height), np.ascontiguousarray(labels).tobytes())
        image.putpalette(voc_colours().ravel().tolist())
    else:
        image = Image.fromarray(labels.astype(np.uint16))
    save_png(image, path)


def build_image_report(prediction: ImagePrediction, paths: ImageResultPaths) -> dict[str, Any]:
    """Return the report of one picture, made of strict JSON values only."""
    height, width = prediction.labels.shape
    run = prediction.run
    report = {
        "schema": SCHEMA,
        "case": shown(prediction.case),
        "input": {"name": shown(prediction.path.name), **picture_facts(prediction.path)},
        "outputs": {
            "labels": shown(paths.labels.name),
            "overlay": shown(paths.overlay.name),
            "side_by_side": shown(paths.side_by_side.name),
            "report": shown(paths.report.name),
        },
        "model": run.model(),
        "run": run.settings(),
        "software": software_versions(),
        "preprocessing": list(run.preprocessing),
        "inference": list(run.inference),
        "size": {"height": height, "width": width},
        "network_size": {"height": prediction.network_size[0], "width": prediction.network_size[1]},
        "labels": prediction.table,
        "timings_s": {stage: prediction.timings_s.get(stage) for stage in STAGES},
        "warnings": prediction.warnings,
    }
    clean: dict[str, Any] = to_json(report)
    return clean
