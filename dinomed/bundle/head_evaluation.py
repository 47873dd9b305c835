"""What the evaluation of a head on embedded CT series needs: its series, and what the report must say of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from dinomed.bundle.head_checkpoint import HeadAbout, group_marks
from dinomed.bundle.head_training import items_of
from dinomed.data.series_checks import Series, content_mark, doubtful_rows
from dinomed.data.series_table import PARTS, SeriesTable, read_series_table, require_usable
from dinomed.data.splits import Split, group_names, group_series, split_of
from dinomed.errors import InputError
from dinomed.transforms.volume_checks import excerpt, shown

logger = logging.getLogger(__name__)


class CarryNames:
    """Put the names of the cases, which an engine leaves in the batch, beside its answers.

    In the list of handlers it comes before those that need the names.

    Args:
        keys: What is carried where the batch has it.
    """

    def __init__(self, keys: Sequence[str] = ("case", "study", "patient")) -> None:
        self.keys = tuple(keys)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that decollates."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Copy the names of this iteration."""
        for item, source in zip(engine.state.output, engine.state.batch, strict=True):
            item.update({key: source[key] for key in self.keys if key in source})


class Evaluated:
    """The series that an evaluation scores, and what its report must say of them.

    Args:
        table: CSV of series; with a column `part` only those of the part are taken, else all.
        data_root: What its paths are relative to; None: its own folder.
        labels: Of the bundle.
        part: Part to take.
        head: What the head's file says.
        allow_seen: Whether series that were trained on may be scored.
        check: What of a scan is read, see `read_series_table`.

    Attributes:
        items: For an `EmbeddedSeries`.
        about: What the report says of them.

    Raises:
        InputError: If nothing can be scored, or series were trained on and that is not allowed.
    """

    def __init__(
        self,
        table: str | Path,
        data_root: str | Path | None,
        labels: Sequence[str],
        part: str,
        head: HeadAbout,
        allow_seen: bool = False,
        check: str = "voxels",
    ) -> None:
        found = read_series_table(table, labels, data_root, check)
        if part not in PARTS:
            raise InputError(f"part {part!r} is unknown; choose from {', '.join(PARTS)}")
        require_usable(found, "evaluated", one_class=True)
        split = split_of(found, one_class=True) if found.has_parts else Split(found, group_series(found), None, None)
        series = split.series(part) if found.has_parts else list(found.series)
        if found.has_parts and part == "train" and not allow_seen:
            raise InputError(
                f"the part train of {shown(found.path)} is what heads are trained on, so scores of it say nothing of "
                "new scans; set part to test, or allow_seen to true if you want them all the same"
            )
        self.items = items_of(series, split.groups)
        self.about: dict[str, Any] = {
            "table": found.path.name,
            "part": part if found.has_parts else "all rows",
            "series": len(series),
            "rows_left_out": found.rows - len(found.series),
            "warnings": [*seen_warnings(series, split, head, allow_seen), *_doubts(found, series)],
        }
        for warning in self.about["warnings"]:
            logger.warning("%s", warning)


def _doubts(table: SeriesTable, series: Sequence[Series]) -> list[str]:
    rows = doubtful_rows(table.problems) & {each.row for each in series}
    if not rows:
        return []
    names = _some({each.series_uid for each in series if each.row in rows})
    return [f"{len(rows)} of {len(series)} series have values that are hardly Hounsfield units ({names})"]


@dataclass(frozen=True)
class _Seen:
    """Series, by name, that a part of the training held itself, and others of its patients or studies."""

    scans: set[str]
    kin: set[str]


def _seen_in(part: str, series: Sequence[Series], split: Split, marks: Mapping[str, str], head: HeadAbout) -> _Seen:
    known, groups = (set(head.seen.get(key, ())) for key in (part, f"{part}_groups"))
    scans = {uid for uid, mark in marks.items() if mark in known}
    kin = {
        each.series_uid
        for each in series
        if groups.intersection(group_marks(group_names(each, split.groups[each.row]), head.seen.get("train", ())))
    }
    return _Seen(scans, kin - scans)


def seen_warnings(series: Sequence[Series], split: Split, head: HeadAbout, allow_seen: bool = False) -> list[str]:
    """Say which series, patients and studies the head knows from its training.

    Args:
        series: That are scored.
        split: They are of.
        head: What its file says.
        allow_seen: Whether they may be scored.

    Raises:
        InputError: If series, or others of their patients or studies, were trained on and that is not allowed.
    """
    marks = {each.series_uid: content_mark(each.path) for each in series}
    trained, chose = (_seen_in(part, series, split, marks, head) for part in ("train", "validation"))
    whole = len(series)
    if trained.scans and not allow_seen:
        raise InputError(
            f"{len(trained.scans)} of the {whole} series were trained on ({_some(trained.scans)}), "
            "so scores of them say nothing of new scans; give the split.csv of the training as the table, or set "
            "allow_seen to true if you want them all the same"
        )
    if trained.kin and not allow_seen:
        raise InputError(
            f"{len(trained.kin)} of the {whole} series are of patients or studies that were trained on "
            f"({_some(trained.kin)}), so scores of them say nothing of new patients; give the split.csv of the "
            "training as the table, or set allow_seen to true if you want them all the same, or if other patients go "
            "by the same names"
        )
    told = (
        (trained.scans, "were trained on"),
        (trained.kin, "are of patients or studies that were trained on"),
        (chose.scans, "chose the weights, calibration and thresholds"),
        (chose.kin, "are of patients or studies that chose the weights, calibration and thresholds"),
    )
    found = [f"{len(names)} of {whole} series {what}: their scores flatter the head" for names, what in told if names]
    if "train_groups" not in head.seen:
        found.append(
            "the head's file is of an earlier version and knows scans only: that patients or studies were trained on "
            "would not be noticed"
        )
    return found


def _some(names: set[str]) -> str:
    return ", ".join(excerpt(name) for name in sorted(names)[:5]) + (" ..." if len(names) > 5 else "")


def threshold_source(head: HeadAbout) -> str:
    """Say where a head's thresholds come from."""
    rule = head.threshold_rule or "Youden's index"
    return f"the validation part of the training, on calibrated probabilities ({rule})"


def about_evaluation(
    bundle: str,
    version: str,
    evaluated: Evaluated,
    head: HeadAbout,
    device: torch.device | str,
    precision: torch.dtype | str,
) -> dict[str, Any]:
    """Say what the report must tell of a run: data, head and machine.

    Args:
        bundle: Its name.
        version: Of the bundle.
        evaluated: The series.
        head: What its file says.
        device: That ran it.
        precision: Of the backbone.
    """
    known = head.to_plain()
    return {
        "bundle": bundle,
        "version": version,
        **evaluated.about,
        "calibration_from": "validation part of the training (Platt scaling)",
        **{key: known[key] for key in ("pooling", "calibration", "validation")},
        "training_seed": head.seed,
        "device": str(device),
        "precision": str(precision).removeprefix("torch."),
    }
