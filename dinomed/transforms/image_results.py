"""The last transform of a bundle for pictures: it writes what `ImagePrediction.save` writes."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from dinomed.transforms.image_prediction import ImagePrediction, ImageResultPaths, write_image_results
from dinomed.transforms.report import RunInfo, describe_run, name_labels
from dinomed.transforms.results import StageTimes

__all__ = ["ImagePrediction", "ImageResultPaths", "SaveImageSegmentationd", "assemble_image_prediction"]


class SaveImageSegmentationd(MapTransform):
    """Write the results of a picture inside a MONAI bundle, exactly as `ImagePrediction.save` does.

    Args:
        keys: Label map (1, H, W) at the picture's size, as `LabelsAtImageSized` leaves it.
        image_key: The network's input (3, h, w), whose meta data name the picture.
        output_dir: Folder of the results; made if absent.
        label_names: Names by label value, as a sequence or a mapping.
        bundle_name: Name of the model in the report.
        bundle_version: Its version.
        preprocessing_summary: The preprocessing chain itself, or a description of it.
        inference_summary: The inferer and the transform that decides the labels.
        overwrite: Replace results of the same name; without it they are an error.
        weights_path: File of the weights, named and identified by its checksum in the report.
        overlay: Name of a variant of the bundle.
        device: Where the network ran.
        precision: How it computed, as a word or a dtype.
        background_label: Label that overlays leave unpainted; None for none.
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
        inference_summary: Any = (),
        overwrite: bool = True,
        weights_path: str | os.PathLike[str] | None = None,
        overlay: str | None = None,
        device: Any = None,
        precision: str | torch.dtype | None = None,
        background_label: int | None = None,
        stage_times: StageTimes | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.output_dir = Path(output_dir)
        self.label_names = name_labels(label_names)
        self.overwrite = overwrite
        self.background_label = background_label
        self.stage_times = stage_times
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
            self.stage_times.lap("labels")
        timings_s = None if self.stage_times is None else self.stage_times.timings_s
        for key in self.key_iterator(dict(data)):
            prediction = assemble_image_prediction(
                data[self.image_key],
                data[key],
                self.label_names,
                self.run,
                background_label=self.background_label,
                timings_s=timings_s,
            )
            write_image_results(prediction, self.output_dir, self.overwrite)
        return dict(data)


def assemble_image_prediction(
    image: Any,
    labels: Any,
    label_names: Mapping[int, str],
    run: RunInfo,
    *,
    path: Path | None = None,
    background_label: int | None = None,
    timings_s: dict[str, float | None] | None = None,
) -> ImagePrediction:
    """Put together what the transforms of a bundle know about one picture.

    Args:
        image: MetaTensor (3, h, w) that the network saw; its `filename_or_obj` names the picture.
        labels: MetaTensor (1, H, W) at the picture's size, with `mean_confidence` by class.
        label_names: Names by label value.
        run: Model, device and settings.
        path: The picture; by default what `image` says.
        background_label: Label that overlays leave unpainted; None for none.
        timings_s: Seconds per stage, as far as they are known.
    """
    confidence = torch.as_tensor(labels.meta["mean_confidence"]).tolist()
    return ImagePrediction(
        path=path or Path(str(image.meta["filename_or_obj"])),
        labels=labels.as_tensor()[0].cpu().numpy(),
        label_names=label_names,
        mean_confidence={value: None if each != each else each for value, each in enumerate(confidence)},
        network_size=(int(image.shape[-2]), int(image.shape[-1])),
        run=run,
        background_label=background_label,
        timings_s=dict(timings_s or {}),
    )
