"""The report of an evaluation: tables, confusion matrix, worst and best cases, and one HTML page.

`docs/evaluation.md` describes every file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from dinomed.errors import InputError
from dinomed.handlers import tables
from dinomed.handlers.processes import rank
from dinomed.handlers.report_cases import ReportedCase, all_cases, draw_case, ends, ranking
from dinomed.handlers.report_page import Figure, Page, to_html
from dinomed.handlers.report_pictures import draw_confusion
from dinomed.handlers.whole_files import write_file
from dinomed.metrics.case_scores import IMAGE_KINDS, VOLUME_KINDS, score_image, score_volume
from dinomed.metrics.native_size import labels_at_size
from dinomed.metrics.volumes import spacing_of
from dinomed.transforms.provenance import describe_transforms, file_sha256, software_versions, to_json
from dinomed.transforms.report import name_labels

logger = logging.getLogger(__name__)


class EvaluationReport:
    """Score every case of an evaluation, and write tables, pictures and `report.html` when it is over.

    Attach it to an evaluator whose output items hold "image", "pred" and "label", and call `write` after its run:
    an evaluator without a case has no end that could be waited for. Volumes, (1, X, Y, Z) label maps, get Dice, HD95
    and surface Dice; pictures, (1, H, W), get IoU, Dice and accuracies. Of the cases themselves only the scores are
    kept, and the pictures of those that are worst and best so far. In a distributed run the first process writes.

    Args:
        folder: Where the files go.
        label_names: Of the label maps, in order, or by label value; the first is the background of volumes.
        about: What the report says of the run: data, bundle, version, seed and the like.
        class_groups: Classes of the reference that make each label of the prediction; None where they are the same.
        region_groups: Unions of classes that are scored too, by name; for volumes without `class_groups`.
        tolerance_mm: Of the surface Dice.
        ignore_index: Where the reference has this label nothing is counted.
        from_logits: Whether "pred" holds logits, to be decided at the reference's size.
        num_pictures: Worst cases shown, and best cases.
        preprocessing: The chain of transforms, described in the report.
        inference: The inferer and what decides the labels, described too.
        weights_path: File of the weights, named with its checksum.

    Raises:
        ValueError: If label names or groups do not fit.
    """

    def __init__(
        self,
        folder: str | Path,
        label_names: Mapping[Any, Any] | Sequence[str],
        about: Mapping[str, Any] | None = None,
        class_groups: Sequence[Sequence[int]] | None = None,
        region_groups: Mapping[str, Sequence[int]] | None = None,
        tolerance_mm: float = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = False,
        num_pictures: int = 3,
        preprocessing: Any = (),
        inference: Any = (),
        weights_path: str | Path | None = None,
    ) -> None:
        names = name_labels(label_names)
        if list(names) != list(range(len(names))):
            raise ValueError(f"label_names must name the labels 0 to {len(names) - 1}, not {list(names)}")
        if class_groups is not None and len(class_groups) != len(names):
            raise ValueError(f"{len(class_groups)} class_groups need as many label_names, not {len(names)}")
        self.folder = Path(folder)
        self.label_names = list(names.values())
        self.about = dict(about or {})
        self.label_of_class = None if class_groups is None else _table_of(class_groups)
        self.region_groups = dict(region_groups or {}) if class_groups is None else {}
        self.tolerance_mm = tolerance_mm
        self.ignore_index = ignore_index
        self.from_logits = from_logits
        self.num_pictures = num_pictures
        self.chains = {"preprocessing": preprocessing, "inference": inference}
        self.weights_path = None if weights_path is None else Path(weights_path)
        self.entries: list[ReportedCase] = []
        self.is_volume: bool | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.entries.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_batch)

    def add_batch(self, engine: Engine) -> None:
        """Score the cases of a batch.

        Raises:
            InputError: If a case's label maps do not fit each other or the labels.
        """
        for item in engine.state.output:
            self.add_case(item)

    def add_case(self, item: Mapping[str, Any]) -> None:
        """Score a case and draw its picture if it is among the worst or best so far.

        Args:
            item: "image" with a `filename_or_obj` in its meta data, "pred" and "label".

        Raises:
            InputError: If the label maps do not fit each other or the labels.
        """
        key = str(getattr(item["image"], "meta", {}).get("filename_or_obj", f"{rank()}:case {len(self.entries) + 1}"))
        name = Path(key.removeprefix(f"{rank()}:")).name.encode("utf-8", "replace").decode("utf-8")
        reference = torch.as_tensor(item["label"])
        plain = _plain(reference)
        is_volume = plain.ndim == 3
        if self.is_volume not in (None, is_volume):
            raise InputError(f"{name}: scans and pictures cannot be evaluated together; evaluate each kind by itself")
        self.is_volume = is_volume
        try:
            wanted = plain if self.label_of_class is None else self._grouped(plain)
            given = self._labels(item["pred"], wanted)
            options: dict[str, Any] = {"label_names": self.label_names, "ignore_index": self.ignore_index}
            if is_volume:
                options |= {"tolerance_mm": self.tolerance_mm, "region_groups": self.region_groups}
                scores = score_volume(name, given, wanted, spacing_mm=spacing_of(reference), **options)
            else:
                scores = score_image(name, given, wanted, **options)
        except ValueError as error:
            raise InputError(f"{name}: {error}; correct the reference or label_names") from error
        entry = ReportedCase(key, scores, scores.summary["mean_dice" if is_volume else "mean_iou"])
        self.entries.append(entry)
        worst, best = ends(self.entries, self.num_pictures, overlapping=True)
        kept = {id(each) for each in (*worst, *best)}
        for each in self.entries:
            if id(each) not in kept:
                each.png = None
        if id(entry) in kept:
            entry.png = draw_case(item, given, wanted, scores, self.label_names, self.ignore_index)
        logger.info("%s: %s", name, {key: _rounded(value) for key, value in scores.summary.items()})

    def _grouped(self, classes: Tensor) -> Tensor:
        assert self.label_of_class is not None
        counted = classes if self.ignore_index is None else classes[classes != self.ignore_index]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < len(self.label_of_class):
            raise ValueError(
                f"reference classes run to {int(counted.max())}, class_groups to {len(self.label_of_class) - 1}"
            )
        table = self.label_of_class
        if self.ignore_index is not None and self.ignore_index >= len(table):
            table = torch.cat([table, torch.full((self.ignore_index + 1 - len(table),), self.ignore_index)])
        return table.to(torch.uint8 if int(table.max()) < 256 else torch.int32)[classes.int()]

    def _labels(self, predicted: Any, reference: Tensor) -> Tensor:
        given = torch.as_tensor(predicted).as_subclass(Tensor).cpu()
        if self.from_logits:
            given = labels_at_size(given, reference.shape, len(self.label_names))
        return given[0]

    def write(self) -> None:
        """Write all files; in a distributed run every process calls it, and the first one writes.

        Raises:
            InputError: If no process has seen a case.
            OutputError: If a file cannot be written.
        """
        entries, kinds = all_cases(self.entries, self.is_volume)
        if not entries:
            raise InputError("no case was evaluated; set the evaluation's data to scans or pictures with references")
        if rank() == 0:
            self._write(entries, is_volume=True in kinds, processes=len(kinds))

    def _write(self, entries: Sequence[ReportedCase], is_volume: bool, processes: int) -> None:
        cases = [entry.scores for entry in entries]
        confusion = tables.pooled_confusion(cases, len(self.label_names))
        if is_volume:
            names = {k: name for k, name in enumerate(self.label_names) if k not in (0, self.ignore_index)}
            classes, regions = tables.class_rows(cases, names), tables.region_rows(cases)
        else:
            classes, regions = tables.image_class_rows(cases, self.label_names, self.ignore_index), []
        whole = tables.summary(cases, classes, is_volume, confusion)
        about = self._about(is_volume, processes)
        worst, best = ends(entries, self.num_pictures)
        pictures = {f"worst_{k + 1}.png": entry.png for k, entry in enumerate(worst)}
        pictures |= {f"best_{k + 1}.png": entry.png for k, entry in enumerate(best)}
        ranked = sorted(entries, key=lambda entry: math.inf if entry.rank_score is None else entry.rank_score)
        confusion_png = draw_confusion(confusion.numpy(), self.label_names)
        files: dict[str, str | bytes | None] = {
            "cases.csv": tables.to_csv(tables.case_rows(cases)),
            "classes.csv": tables.to_csv([*classes, *regions]),
            "scores.csv": tables.to_csv(tables.score_rows(cases)),
            "confusion.csv": tables.confusion_csv(confusion, self.label_names),
            "confusion.png": confusion_png,
            "evaluation.json": tables.to_json_text(about, whole, classes, regions, cases),
            **pictures,
        }
        page = Page(
            title=" ".join(str(about[key]) for key in ("bundle", "version") if about.get(key)) or "label maps",
            about=about,
            summary=whole,
            classes=classes,
            regions=regions,
            cases=tables.case_rows([entry.scores for entry in ranked]),
            kinds=VOLUME_KINDS if is_volume else IMAGE_KINDS,
            worst=[_figure(entry) for entry in worst],
            best=[_figure(entry) for entry in best],
            confusion_png=confusion_png,
            files=[name for name, content in files.items() if content],
        )
        files["report.html"] = to_html(page)
        for name, content in files.items():
            if content is not None:
                write_file(self.folder / name, content)
        for stale in (*self.folder.glob("worst_*.png"), *self.folder.glob("best_*.png")):
            if stale.name not in files:
                stale.unlink(missing_ok=True)
        logger.info("%s; see %s", {key: _rounded(value) for key, value in whole.items()}, self.folder / "report.html")

    def _about(self, is_volume: bool, processes: int) -> dict[str, Any]:
        about: dict[str, Any] = to_json(self.about)
        if self.weights_path is not None:
            about["weights_file"] = self.weights_path.name
            about["weights_sha256"] = file_sha256(self.weights_path) if self.weights_path.is_file() else None
        if is_volume:
            about["tolerance_mm"] = self.tolerance_mm
        if self.ignore_index is not None:
            about["ignore_index"] = self.ignore_index
        for name, chain in self.chains.items():
            about[name] = describe_transforms(chain)
        about["software"] = software_versions()
        about["processes"] = processes
        about["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return about


def _plain(labels: Tensor) -> Tensor:
    """A label map without its channel, as a plain tensor on the CPU."""
    plain = labels.as_subclass(Tensor).cpu()
    if plain.ndim not in (3, 4) or plain.shape[0] != 1:
        raise InputError(f"label maps must be (1, X, Y, Z) or (1, H, W), not {tuple(plain.shape)}")
    return plain[0]


def _table_of(class_groups: Sequence[Sequence[int]]) -> Tensor:
    label_of = {member: label for label, group in enumerate(class_groups) for member in group}
    if sorted(label_of) != list(range(len(label_of))) or len(label_of) != sum(map(len, class_groups)):
        raise ValueError(f"class_groups must hold each class from 0 on exactly once, not {class_groups}")
    return torch.tensor([label_of[member] for member in range(len(label_of))])


def _figure(entry: ReportedCase) -> Figure:
    assert entry.png is not None
    return Figure(
        f"{entry.scores.case}: {ranking(entry.scores)}", entry.png, [*entry.scores.labels, *entry.scores.regions]
    )


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
