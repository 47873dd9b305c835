"""The transforms of a classification bundle: what the network sees of a picture, probabilities, and the results."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional

from dinomed.errors import OutputError
from dinomed.transforms.image_classification import (
    ImageClassification,
    LabelNames,
    assemble_image_classification,
    names_by_task,
)
from dinomed.transforms.report import describe_run
from dinomed.transforms.results import StageTimes
from dinomed.transforms.volume_checks import cause_of, shown

TABLE = "predictions.csv"


class CentreSquared(MapTransform):
    """Resize pictures so that their shorter side is `resize` pixels and cut a square out of their centre.

    Linear, with a filter where the picture shrinks: `Resize` and `CenterCrop` of torchvision, except that what would be
    cut off is not resized first, so that a very long picture takes no memory. The meta data stay the picture's.

    Args:
        keys: Pictures (C, H, W), floating point.
        resize: Pixels of the shorter side.
        size: Pixels of the square's sides, at most `resize`.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        ValueError: If the numbers make no sense.
    """

    def __init__(
        self, keys: KeysCollection = "image", resize: int = 256, size: int = 224, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not (type(resize) is int and type(size) is int and 1 <= size <= resize):
            raise ValueError(
                f"a picture of {resize!r} pixels cannot give a square of {size!r}; take resize >= size >= 1"
            )
        self.resize = resize
        self.size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy of `data` with the squares."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            square = _centre(image.as_tensor() if isinstance(image, MetaTensor) else image)
            side = square.shape[-1]
            if side != self.resize:
                target = (self.resize, self.resize)
                square = functional.interpolate(
                    square[None], target, mode="bilinear", align_corners=False, antialias=self.resize < side
                )[0]
            start = round((self.resize - self.size) / 2)
            cut = square[:, start : start + self.size, start : start + self.size].contiguous()
            out[key] = MetaTensor(cut, meta=image.meta) if isinstance(image, MetaTensor) else cut
        return out


def _centre(image: Tensor) -> Tensor:
    """Cut the longer side of (C, H, W) to the shorter one."""
    side = min(image.shape[-2:])
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[:, top : top + side, left : left + side]


class ToProbabilitiesd(MapTransform):
    """Turn logits (K,), or those of each task, into float32 probabilities.

    Args:
        keys: Logits.
        kind: "multilabel" takes the sigmoid of each, "multiclass" and "multitask" the softmax of all of a task.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        ValueError: If the kind is unknown.
    """

    def __init__(
        self, keys: KeysCollection = "pred", kind: str = "multiclass", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if kind not in ("multiclass", "multilabel", "multitask"):
            raise ValueError(f"the kind {kind!r} is unknown; choose from multiclass, multilabel, multitask")
        self.kind = kind

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy of `data` with probabilities."""
        out = dict(data)
        for key in self.key_iterator(out):
            logits = out[key]
            if isinstance(logits, Mapping):
                out[key] = {task: self._of(each) for task, each in logits.items()}
            else:
                out[key] = self._of(logits)
        return out

    def _of(self, logits: Tensor) -> Tensor:
        plain = torch.as_tensor(logits).as_subclass(Tensor).float()
        return plain.sigmoid() if self.kind == "multilabel" else plain.softmax(dim=-1)


class NameCased(MapTransform):
    """Add the entries "case" and "patient", by which a report knows its rows, from "name" and "subject" of the item.

    MONAI's evaluators keep of an item only what a postprocessing transform adds.
    """

    def __init__(self, keys: KeysCollection = "pred", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy of `data` with both."""
        return {**data, "case": str(data["name"]), "patient": str(data.get("subject") or "")}


class SaveImageClassificationd(MapTransform):
    """Write the results of a picture inside a MONAI bundle, exactly as `ImageClassification.save` does.

    Args:
        keys: Probabilities, as `ToProbabilitiesd` leaves them.
        image_key: The network's input (3, h, w), whose meta data name the picture.
        output_dir: Folder of the results; made if absent.
        label_names: Names of the classes, of several tasks by task.
        kind: "multiclass", "multilabel" or "multitask".
        threshold: Of "multilabel": labels at or above it are decided for.
        top_k: Classes that are listed and drawn.
        bundle_name: Name of the model in the report.
        bundle_version: Its version.
        preprocessing_summary: The preprocessing chain itself, or a description of it.
        inference_summary: The inferer and what makes probabilities.
        overwrite: Replace results of the same name; without it they are an error.
        weights_path: File of the weights, named and identified by its checksum in the report.
        overlay: Name of a variant of the bundle.
        device: Where the network ran.
        precision: How it computed, as a word or a dtype.
        stage_times: What measured the stages before, such as `dinomed.handlers.timings.StageTimes`.
        allow_missing_keys: Leave out keys that are absent instead of raising.

    Attributes:
        rows: Of the table, one for each picture so far.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        image_key: Hashable = "image",
        output_dir: str | os.PathLike[str] = ".",
        label_names: LabelNames = (),
        kind: str = "multiclass",
        threshold: float = 0.5,
        top_k: int = 5,
        bundle_name: str = "",
        bundle_version: str = "",
        preprocessing_summary: Any = (),
        inference_summary: Any = (),
        overwrite: bool = True,
        weights_path: str | os.PathLike[str] | None = None,
        overlay: str | None = None,
        device: Any = None,
        precision: str | torch.dtype | None = None,
        stage_times: StageTimes | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if type(top_k) is not int or top_k < 1:
            raise ValueError(f"top_k must be a whole number from 1 on, not {top_k!r}")
        self.image_key = image_key
        self.output_dir = Path(output_dir)
        self.label_names = names_by_task(label_names)
        self.kind = kind
        self.threshold = threshold
        self.top_k = top_k
        self.overwrite = overwrite
        self.stage_times = stage_times
        self.rows: list[dict[str, Any]] = []
        self.run = describe_run(
            *(bundle_name, bundle_version, weights_path),
            overlay=overlay,
            device=device,
            precision=precision,
            inference=inference_summary,
            preprocessing=preprocessing_summary,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the results of each key and pass the data on unchanged."""
        if self.stage_times is not None:
            self.stage_times.lap("decide")
        timings_s = None if self.stage_times is None else self.stage_times.timings_s
        for key in self.key_iterator(dict(data)):
            result = assemble_image_classification(
                data[self.image_key],
                data[key],
                self.label_names,
                self.run,
                kind=self.kind,
                threshold=self.threshold,
                top_k=self.top_k,
                timings_s=timings_s,
            )
            result.save(self.output_dir, self.overwrite)
            self.rows.append(result.row())
        if self.stage_times is not None:
            self.stage_times.lap("write")  # which is no part of the next picture's stages
        return dict(data)

    def write_table(self) -> Path:
        """Write `predictions.csv` with a row for each picture.

        Raises:
            OutputError: If it exists and may not be replaced, or cannot be written.
        """
        return write_predictions(self.rows, self.output_dir, self.overwrite)


def write_predictions(
    results: list[dict[str, Any]] | list[ImageClassification], folder: str | os.PathLike[str], overwrite: bool = False
) -> Path:
    """Write `predictions.csv`: a row for each picture with what was decided and the probability of every class.

    Args:
        results: Classifications, or their rows.
        folder: Made if absent.
        overwrite: Replace a table that is there; without it that is an error.

    Raises:
        OutputError: If it exists and may not be replaced, or cannot be written.
    """
    path = Path(folder) / TABLE
    if path.exists() and not overwrite:
        raise OutputError(f"{shown(path)} exists already; pass overwrite (--overwrite) or choose another output folder")
    rows = [each.row() if isinstance(each, ImageClassification) else each for each in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{TABLE}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{shown(path)} cannot be written ({cause_of(error)}); check output_dir") from error
    return path
