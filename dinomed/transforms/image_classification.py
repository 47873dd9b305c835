"""The classes of one picture, and its results: a JSON report and the picture beside bars of the likeliest classes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed.errors import OutputError
from dinomed.transforms.image_chart import draw_classes
from dinomed.transforms.image_prediction import picture_name
from dinomed.transforms.image_reading import read_image
from dinomed.transforms.provenance import software_versions, to_json
from dinomed.transforms.report import RunInfo, to_text
from dinomed.transforms.staged_results import picture_facts, save_png, staged_results
from dinomed.transforms.volume_checks import shown

SCHEMA = "dinomed-image-classification-1"
CLASS_PICTURE, CLASS_REPORT = "_class.png", "_class.json"
TASK = "label"
"""Name of the only task of a network that has one."""

STAGES = ("load", "infer", "decide", "write")
DOUBTFUL = 0.5
"""Below this probability of its likeliest class a picture's class is more likely wrong than right."""

LabelNames = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ClassResultPaths:
    """Where the two results of a picture lie."""

    picture: Path
    report: Path

    @classmethod
    def of(cls, folder: str | os.PathLike[str], case: str) -> ClassResultPaths:
        """Return the paths of a picture's results in a folder."""
        return cls(*(Path(folder) / f"{case}{ending}" for ending in (CLASS_PICTURE, CLASS_REPORT)))

    def existing(self) -> list[Path]:
        """Return those that are there."""
        return [path for path in astuple(self) if path.exists()]


@dataclass(eq=False)
class ImageClassification:
    """The classes of one picture, with what is needed to report and draw them.

    Attributes:
        path: The picture.
        probabilities: Of each class (K,), by task; a single task is called "label".
        label_names: Names of the classes in the same order, by task.
        kind: "multiclass" (probabilities of a task sum to 1), "multilabel" (each stands by itself) or "multitask".
        network_size: Height and width of what the network saw.
        run: Model, device and settings.
        threshold: Of "multilabel": labels at or above it are decided for.
        top_k: Classes that are listed and drawn, the likeliest first.
        timings_s: Seconds per stage: load, infer, decide, and write after saving.
        case: The name that the results carry.
    """

    path: Path
    probabilities: Mapping[str, Sequence[float]]
    label_names: Mapping[str, Sequence[str]]
    kind: str
    network_size: tuple[int, int]
    run: RunInfo
    threshold: float = 0.5
    top_k: int = 5
    timings_s: dict[str, float | None] = field(default_factory=dict)
    case: str = ""

    def __post_init__(self) -> None:
        self.case = self.case or picture_name(self.path)
        for task, names in self.label_names.items():
            given = len(self.probabilities.get(task, ()))
            if len(names) != given:
                raise ValueError(f"{len(names)} label_names of {task} do not fit {given} probabilities")

    def top(self, task: str = TASK) -> list[tuple[str, float]]:
        """Return the likeliest classes of a task with their probabilities; of equals the first."""
        values = self.probabilities[task]
        order = sorted(range(len(values)), key=lambda number: (-values[number], number))[: self.top_k]
        return [(self.label_names[task][number], float(values[number])) for number in order]

    def predicted(self, task: str = TASK) -> list[str]:
        """Return what was decided for: the likeliest class, or of "multilabel" all labels from the threshold on."""
        if self.kind != "multilabel":
            return [self.top(task)[0][0]]
        pairs = zip(self.label_names[task], self.probabilities[task], strict=True)
        return [name for name, probability in pairs if probability >= self.threshold]

    @property
    def warnings(self) -> list[str]:
        """What a reader should know: decisions that are doubtful."""
        if self.kind == "multilabel":
            return []
        doubtful = [(task, *self.top(task)[0]) for task in self.label_names if self.top(task)[0][1] < DOUBTFUL]
        return [
            f"the likeliest class{'' if task == TASK else f' of {task}'}, {name}, has a probability of only "
            f"{probability:.2f}; check by eye"
            for task, name, probability in doubtful
        ]

    def row(self) -> dict[str, Any]:
        """Return the picture's row of a table: case, image, and of each task what was decided and all probabilities."""
        row: dict[str, Any] = {"case": shown(self.case), "image": shown(self.path)}
        for task, names in self.label_names.items():
            prefix = "" if task == TASK else f"{task}_"
            row[f"{prefix}predicted"] = "|".join(self.predicted(task))
            row[f"{prefix}probability"] = round(self.top(task)[0][1], 6)
            pairs = zip(names, self.probabilities[task], strict=True)
            row |= {f"{prefix}prob_{name}": round(float(probability), 6) for name, probability in pairs}
        return row

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> ClassResultPaths:
        """Write the report and the picture with bars of the likeliest classes.

        Args:
            folder: Made if absent.
            overwrite: Replace results of the same name; without it they are an error.

        Raises:
            InputError: If the picture is gone.
            OutputError: If results exist and may not be replaced, or the folder cannot be written.
        """
        started_s = time.perf_counter()
        paths = ClassResultPaths.of(folder, self.case)
        if any(os.path.realpath(path) == os.path.realpath(self.path) for path in astuple(paths)):
            raise OutputError(f"{shown(self.path)} would be replaced by a result; choose another output folder")
        pixels = np.rint(read_image(self.path).transpose(1, 2, 0) * 255.0).astype(np.uint8)
        with staged_results(astuple(paths), self.case, overwrite) as stage:
            save_png(draw_classes(pixels, self._bars(), shown(self.path.name)), stage / paths.picture.name)
            self.timings_s["write"] = time.perf_counter() - started_s
            report = to_text(build_class_report(self, paths))
            (stage / paths.report.name).write_text(report, encoding="utf-8")
        return paths

    def _bars(self) -> list[tuple[str, list[tuple[str, float, bool]]]]:
        return [
            (
                "" if task == TASK else task,
                [(name, probability, name in self.predicted(task)) for name, probability in self.top(task)],
            )
            for task in self.label_names
        ]


def build_class_report(result: ImageClassification, paths: ClassResultPaths) -> dict[str, Any]:
    """Return the report of one picture, made of strict JSON values only."""
    report = {
        "schema": SCHEMA,
        "case": shown(result.case),
        "input": {"name": shown(result.path.name), **picture_facts(result.path)},
        "outputs": {"picture": shown(paths.picture.name), "report": shown(paths.report.name)},
        "model": result.run.model(),
        "run": {"device": result.run.device, "precision": result.run.precision},
        "software": software_versions(),
        "preprocessing": list(result.run.preprocessing),
        "inference": list(result.run.inference),
        "network_size": {"height": result.network_size[0], "width": result.network_size[1]},
        "kind": result.kind,
        "threshold": result.threshold if result.kind == "multilabel" else None,
        "tasks": [
            {
                "name": task,
                "predicted": result.predicted(task),
                "top": [
                    {"rank": rank, "name": name, "probability": probability}
                    for rank, (name, probability) in enumerate(result.top(task), start=1)
                ],
                "probabilities": dict(zip(names, map(float, result.probabilities[task]), strict=True)),
            }
            for task, names in result.label_names.items()
        ],
        "timings_s": {stage: result.timings_s.get(stage) for stage in STAGES},
        "warnings": result.warnings,
    }
    clean: dict[str, Any] = to_json(report)
    return clean


def names_by_task(label_names: LabelNames) -> dict[str, tuple[str, ...]]:
    """Return names of the classes by task, of a single task as "label"."""
    named = label_names if isinstance(label_names, Mapping) else {TASK: label_names}
    return {str(task): tuple(str(name) for name in names) for task, names in named.items()}


def assemble_image_classification(
    image: Any,
    probabilities: Any,
    label_names: LabelNames,
    run: RunInfo,
    *,
    kind: str = "multiclass",
    path: Path | None = None,
    threshold: float = 0.5,
    top_k: int = 5,
    timings_s: Mapping[str, float | None] | None = None,
) -> ImageClassification:
    """Put together what the transforms of a bundle know about one picture.

    Args:
        image: MetaTensor (3, h, w) that the network saw; its `filename_or_obj` names the picture.
        probabilities: Tensor (K,), or a dictionary of them by task, as `ToProbabilitiesd` leaves them.
        label_names: Names of the classes, of several tasks by task.
        run: Model, device and settings.
        kind: "multiclass", "multilabel" or "multitask".
        path: The picture; by default what `image` says.
        threshold: Of "multilabel".
        top_k: Classes that are listed and drawn.
        timings_s: Seconds per stage, as far as they are known.
    """
    given = probabilities if isinstance(probabilities, Mapping) else {TASK: probabilities}
    return ImageClassification(
        path=path or Path(str(image.meta["filename_or_obj"])),
        probabilities={task: torch.as_tensor(each).double().cpu().reshape(-1).tolist() for task, each in given.items()},
        label_names=names_by_task(label_names),
        kind=kind,
        network_size=(int(image.shape[-2]), int(image.shape[-1])),
        run=run,
        threshold=threshold,
        top_k=top_k,
        timings_s=dict(timings_s or {}),
    )
