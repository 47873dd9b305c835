"""What a person asks for in the viewer: the labels of a scan, and labels drawn on some slices carried through it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from dinomed.errors import InputError
from dinomed.inferers.planes import PLANE_AXES
from dinomed.label_app.models import LabelModel
from dinomed.label_app.predictions import Predictions, facts_of
from dinomed.label_app.submissions import Labels, named, numbers_by_name, read_labels
from dinomed.transforms.provenance import to_json
from dinomed.transforms.volumes import case_name, read_grid, write_labels

PLANES = ("found by itself", *PLANE_AXES)
"""That labels may be drawn in."""
Answer = tuple[str, dict[str, Any]]


class Segment(InferTask):
    """Automatic segmentation by a bundle, the same voxels as `dinomed segment`."""

    def __init__(self, model: LabelModel, predictions: Predictions) -> None:
        super().__init__(InferType.SEGMENTATION, model.labels, 3, model.description)
        self.model = model
        self.predictions = predictions

    def is_valid(self) -> bool:
        """Whether there are weights."""
        return self.model.weights.is_file()

    def get_path(self, validate: bool = True) -> str:
        """File of the weights in use."""
        return str(self.model.weights)

    def __call__(self, request: Mapping[str, Any]) -> Answer:
        """Segment `request["image"]`, a path: the label map's path, and what is known of it."""
        found = self.predictions.make(self.model, request["image"])
        copy = new_file(request["image"])
        shutil.copy(found.labels, copy)
        return copy, {"label_names": self.model.labels, "model": self.model.name, **found.facts}


class Propagate(InferTask):
    """Labels drawn on one or a few slices, carried through the volume by the backbone's features.

    The type is that of the viewer's tools for scribbles, the only ones in Slicer's module that send what is drawn.
    """

    def __init__(self, models: Mapping[str, LabelModel]) -> None:
        super().__init__(
            *(InferType.SCRIBBLES, [], 3, "carries labels drawn on some slices through the volume"),
            config={"backbone_of": list(models), "plane": list(PLANES)},
        )
        self.models = models

    def is_valid(self) -> bool:
        """Always: it needs no trained head."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> Answer:
        """Carry `request["label"]` through `request["image"]`, both paths.

        Where Slicer names one of several segments, that one alone is carried, and is 1 in the answer.

        Raises:
            InputError: If nothing is drawn, it lies on another grid, or a setting is unknown.
        """
        if not request.get("label"):
            raise InputError("propagate needs a label map with the request; draw on one or a few slices first")
        name = _chosen(request, "backbone_of", list(self.models))
        plane = _chosen(request, "plane", PLANES)
        grid = read_grid(request["image"])
        labels = read_labels(request["label"], grid, "what is drawn")
        names = numbers_by_name(request.get("label_info"))
        selected = request.get("selected_label_name")
        if names and selected:
            labels = only(labels, names, str(selected))
            names = {1: str(selected)}
        with tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder) / "drawn.nii.gz"
            write_labels(labels, grid, drawn)
            predictor = self.models[name].predictor()
            chosen = None if plane == PLANES[0] else plane
            with named(drawn, "what is drawn"):
                prediction = predictor.propagate(request["image"], drawn, plane=chosen, label_names=names)
        answer = new_file(request["image"])
        write_labels(prediction.labels, prediction.grid, answer)
        present = [int(value) for value in np.unique(labels) if value]
        values = {names.get(value, f"label {value}"): value for value in present}
        facts = {**facts_of(prediction), "inference": to_json(prediction.run.inference)}
        return answer, {"label_names": values, "model": "propagate", **facts}


def _chosen(request: Mapping[str, Any], key: str, offered: Sequence[str]) -> str:
    """One of the values that are offered, the first where none is named; viewers may send the list.

    Raises:
        InputError: If it is none of them.
    """
    given = request.get(key) or offered[0]
    value = given[0] if isinstance(given, list) else given
    if value not in offered:
        raise InputError(f"{key} is {value!r}; choose from {', '.join(offered)}")
    return str(value)


def only(labels: Labels, names: Mapping[int, str], selected: str) -> Labels:
    """Keep one segment, and what was painted as its foreground: 1 where they are.

    Raises:
        InputError: If there is nothing of it.
    """
    wanted = [number for number, name in names.items() if name in (selected, "foreground_scribbles")]
    chosen: Labels = np.isin(labels, wanted).astype(np.uint8)
    if not chosen.any():
        raise InputError(f"nothing of {selected!r} is drawn; draw it on one or a few slices first")
    return chosen


def new_file(image: str) -> str:
    """Name of a new file for a scan's label map; MONAI Label removes it when it is sent."""
    with tempfile.NamedTemporaryFile(prefix=f"{case_name(image)}_", suffix="_seg.nii.gz", delete=False) as file:
        return file.name
