"""The last transform of a segmentation bundle: it writes what `Prediction.save` writes."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from dinomed.transforms.prediction import Prediction, ResultPaths, write_results
from dinomed.transforms.report import RunInfo, describe_run, name_labels
from dinomed.transforms.volumes import read_grid

__all__ = ["Prediction", "ResultPaths", "SaveSegmentationd", "assemble_prediction", "write_results"]


class StageTimes(Protocol):
    """Seconds that the stages before took."""

    timings_s: dict[str, float | None]

    def lap(self, stage: str) -> None:
        """Note that a stage has ended."""
        ...


class SaveSegmentationd(MapTransform):
    """Write the results of a case inside a MONAI bundle, exactly as `Prediction.save` does.

    Args:
        keys: Label map (1, X, Y, Z) on the scan's grid, as `LabelsToNativeGridd` leaves it.
        image_key: The network's input (1, X, Y, Z), whose meta data names the scan.
        output_dir: Folder of the results; made if absent.
        label_names: Names by label value, as a sequence or a mapping.
        bundle_name: Name of the model in the report and the picture.
        bundle_version: Its version.
        preprocessing_summary: The preprocessing chain itself, or a description of it.
        inference_summary: The inferer and the transform that decides the labels.
        overwrite: Replace results of the same name; without it they are an error.
        weights_path: File of the weights, named and identified by its checksum in the report.
        overlay: Name of a variant of the bundle.
        device: Where the network ran.
        precision: How it computed, as a word or a dtype.
        planes: Planes that it saw.
        class_groups: Outputs of the network that make each label; None where each is a label.
        frame: Frame of a 4-D scan.
        stage_times: What measured the stages before, such as `dinomed.handlers.timings.StageTimes`.
        allow_missing_keys: Leave out keys that are absent instead of raising.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        image_key: Hashable = "image",
        output_dir: str | os.PathLike[str] = ".",
        label_names: Mapping[Any, Any] | Sequence[str] = (),
        bundle_name: str = "",
        bundle_version: str = "",
        preprocessing_summary: Any = (),
        overwrite: bool = True,
        weights_path: str | os.PathLike[str] | None = None,
        overlay: str | None = None,
        device: Any = None,
        precision: str | torch.dtype | None = None,
        planes: Sequence[str] | str | None = None,
        class_groups: Sequence[Sequence[int]] | None = None,
        frame: int | None = None,
        stage_times: StageTimes | None = None,
        inference_summary: Any = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.output_dir = Path(output_dir)
        self.label_names = name_labels(label_names)
        self.overwrite = overwrite
        self.frame = frame
        self.stage_times = stage_times
        self.run = describe_run(
            *(bundle_name, bundle_version, weights_path),
            overlay=overlay,
            device=device,
            precision=precision,
            planes=planes,
            class_groups=class_groups,
            inference=inference_summary,
            preprocessing=preprocessing_summary,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the three results of each key and pass the data on unchanged."""
        if self.stage_times is not None:
            self.stage_times.lap("labels")
        timings_s = None if self.stage_times is None else self.stage_times.timings_s
        for key in self.key_iterator(dict(data)):
            prediction = assemble_prediction(
                data[self.image_key], data[key], self.label_names, self.run, frame=self.frame, timings_s=timings_s
            )
            write_results(prediction, self.output_dir, self.overwrite)
        return dict(data)


def assemble_prediction(
    image: Any,
    labels: Any,
    label_names: Mapping[int, str],
    run: RunInfo,
    *,
    path: Path | None = None,
    frame: int | None = None,
    timings_s: dict[str, float | None] | None = None,
) -> Prediction:
    """Put together what the transforms of a bundle know about one case.

    Args:
        image: MetaTensor (1, X, Y, Z) on the network grid; its `filename_or_obj` names the scan.
        labels: MetaTensor (1, X, Y, Z) of label values on the scan's grid, with `mean_confidence` per label.
        label_names: Names by label value.
        run: Model, device and settings.
        path: The scan; by default what `image` says.
        frame: Frame of a 4-D scan.
        timings_s: Seconds per stage, as far as they are known.
    """
    path = path or Path(str(image.meta["filename_or_obj"]))
    confidence = torch.as_tensor(labels.meta["mean_confidence"]).tolist()
    return Prediction(
        path=path,
        labels=labels.as_tensor()[0].to("cpu", torch.uint8).numpy(),
        grid=read_grid(path),
        label_names=label_names,
        mean_confidence={value: None if each != each else each for value, each in enumerate(confidence)},
        image=image.as_tensor()[0].to("cpu", torch.float32).numpy(),
        image_affine=np.asarray(image.affine, dtype=np.float64),
        run=run,
        frame=frame,
        timings_s=dict(timings_s or {}),
    )
