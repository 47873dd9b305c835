"""Pictures with classes: one class each, several labels each, or a class for each of several tasks.

Folders (`train/CLASS/*.jpg`, `val/CLASS/*.jpg`), CSV and JSON lists are read by `labelled_rows`; here their labels get
numbers, and parts that a source does not have are held out of its training part.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dinomed.data.datasets.class_labels import KINDS, Classes, ClassNames, Found, find_classes, read_labels
from dinomed.data.datasets.holdout import Division, data_mark, divide
from dinomed.data.datasets.image_dataset import ImageDataset, Problem
from dinomed.data.datasets.labelled_rows import LABEL, LabelledRow, read_rows
from dinomed.data.datasets.row_checks import without_contradictions, without_namesakes
from dinomed.errors import InputError

LABELLED_PARTS = ("training", "validation", "test", "all")

logger = logging.getLogger(__name__)


class LabelledImages(ImageDataset):
    """Items as dictionaries: "image" (a path), "label", "name" and "subject", the patient or empty.

    The label is a class number for "multiclass", a tensor (K,) float32 of 0 and 1 for "multilabel", and a dictionary
    of class numbers by task for "multitask".

    Args:
        source: Folder or list, for messages.
        found: The labels of the rows.
        kind: One of `KINDS`.
        classes: Shown name of each class by the name in the source, for each task; a single task is called "label".
        part: Name of this part.
        problems: What was met while listing.
        strict: Whether any problem is an error; otherwise the rows are left out.
        division: What of the source is for training and what for validation.

    Attributes:
        division: That in plain values, see `Division.described`; empty where it was not given.
        mark: Identifies names and labels of the items, see `data_mark`.

    Raises:
        InputError: If there are problems and `strict`, or nothing is left.
    """

    layout = "labelled"

    def __init__(
        self,
        source: str,
        found: Sequence[Found],
        kind: str,
        classes: Classes,
        part: str = "",
        problems: Sequence[Problem] = (),
        strict: bool = True,
        division: Division | None = None,
    ) -> None:
        numbers = {task: {raw: number for number, raw in enumerate(names)} for task, names in classes.items()}
        items = [
            {
                "image": str(row.image),
                "label": _target(kind, labels, numbers),
                "name": row.name,
                "subject": row.patient,
            }
            for row, labels in found
        ]
        only = [
            shown if task == LABEL else f"{task} {shown}" for task, names in classes.items() for shown in names.values()
        ]
        super().__init__(source, items, "classification", part, only, None, None, problems, strict)
        self.kind = kind
        self.classes = classes
        self.division = {} if division is None else division.described()
        self.mark = data_mark(found)

    def numbers(self, index: int) -> list[int]:
        """Number the classes of an item in `class_names`, which holds those of all tasks one after the other."""
        label = self.items[index]["label"]
        if self.kind == "multilabel":
            return [int(number) for number in label.nonzero()[:, 0]]
        found, first = [], 0
        for task, names in self.classes.items():
            found.append(first + (label[task] if isinstance(label, dict) else label))
            first += len(names)
        return found

    @property
    def label_names(self) -> list[str] | dict[str, list[str]]:
        """Shown names of the classes in the order of their numbers; of "multitask" by task."""
        names = {task: list(shown.values()) for task, shown in self.classes.items()}
        return names if self.kind == "multitask" else names[LABEL]

    @property
    def given_classes(self) -> dict[str, Any]:
        """What to pass as `class_names` so that another part gets the same numbers."""
        return (
            {task: dict(names) for task, names in self.classes.items()}
            if self.kind == "multitask"
            else dict(self.classes[LABEL])
        )

    def presence(self) -> Tensor:
        """Say which classes each item has, for `ClassBalancedSampler`.

        Returns:
            (items, classes) bool; of several tasks the classes of all, and of labels a last column for items without
            any, which would otherwise never be drawn.
        """
        rows = []
        for item in self.items:
            label = item["label"]
            if self.kind == "multilabel":
                rows.append(torch.cat([label > 0, ~(label > 0).any()[None]]))
                continue
            numbers = label if isinstance(label, dict) else {LABEL: label}
            rows.append(torch.cat([torch.arange(len(self.classes[task])) == numbers[task] for task in self.classes]))
        return torch.stack(rows)

    def positive_weights(self) -> list[float]:
        """Return negatives / max(positives, 1) of each label, for `pos_weight` of a multi-label loss.

        Raises:
            InputError: If the pictures have a single class each.
        """
        if self.kind != "multilabel":
            raise InputError(f"{self.source} has no labels of 0 and 1 ({self.kind}); leave balanced_loss false")
        positives = torch.stack([item["label"] for item in self.items]).sum(0)
        return ((len(self.items) - positives) / positives.clamp(min=1)).tolist()


def open_labelled_images(
    source: str | os.PathLike[str],
    part: str = "training",
    kind: str = "multiclass",
    class_names: ClassNames = None,
    targets: Sequence[str] | None = None,
    validation_share: float = 0.2,
    seed: int = 0,
    strict: bool = True,
) -> LabelledImages:
    """Open a part of a data set of labelled pictures.

    Where the source has no validation part, a share of its training part (or of all, where it has no parts) is held
    out: the same pictures for the same seed, every class in both parts, a patient's pictures together.

    Args:
        source: Folder or list.
        part: One of `LABELLED_PARTS`.
        kind: "multiclass" (folders, or the column `label`), "multilabel" (columns `label_...` of 0 and 1, or JSON with
            a list of names as `label`) or "multitask" (a column for each task).
        class_names: Names of the classes in order, or a mapping from the name in the source to the one that is shown;
            of "multitask" by task. None takes those of the training part, sorted.
        targets: Columns of the labels or tasks; None: `label`, all `label_...`, or all that are not `image`, `name`,
            `split` or `patient`.
        validation_share: Part of the pictures that is held out.
        seed: Of the held-out part.
        strict: Whether rows that cannot be used are an error; otherwise they are left out with a warning.

    Raises:
        InputError: If the source or a row cannot be used, or classes are missing or unknown.
    """
    if kind not in KINDS or part not in LABELLED_PARTS:
        raise InputError(
            f"task {kind!r} or part {part!r} is unknown; choose from {', '.join(KINDS)} and {', '.join(LABELLED_PARTS)}"
        )
    if isinstance(validation_share, bool) or not (
        isinstance(validation_share, (int, float)) and 0 < validation_share < 1
    ):
        raise InputError(f"validation_share is {validation_share!r}; give a number between 0 and 1, such as 0.2")
    place = str(source)
    rows, broken = read_rows(source)
    read = read_labels(place, rows, kind, targets)
    problems = [*broken, *read.problems]
    if not read.found:
        raise InputError(f"{problems[0].file} {problems[0].reason}; no row of {place} has a label that can be used")
    found = without_contradictions(place, read.found, problems)
    if problems and (strict or not found):  # before what follows from them, such as a class without pictures
        ImageDataset(place, [], "classification", part, problems=problems, strict=strict)
    base = [each for each in found if each[0].part in ("", "training")] or found
    classes = find_classes(place, read, kind, class_names, base)
    known, unknown = _known(found, classes)
    parted = any(row.part == "validation" for row in rows)  # what is left out must not be drawn elsewhere
    division = divide(known, classes, validation_share, seed, parted)
    members, lost = _members(place, known, part, division, seed)
    members = without_namesakes(members, problems)
    if part == "training" and members:
        _check_training(place, members, kind, classes)
    problems += [problem for row, problem in unknown if part in ("all", row.part or part)]
    missing = [
        Problem("missing pair", row.where, f"names {row.image}, which is not there; correct the path")
        for row, _ in members
        if not os.path.isfile(row.image)  # Path.is_file raises for some names, such as very long ones
    ]
    there = [each for each in members if os.path.isfile(each[0].image)] if missing else members
    if not members and not problems:
        raise InputError(f"{place} has no {part} pictures{lost}")
    return LabelledImages(place, there, kind, classes, part, [*problems, *missing], strict, division)


def open_labelled_parts(
    source: str | os.PathLike[str], kind: str = "multiclass", class_names: ClassNames = None
) -> list[LabelledImages]:
    """Open all parts of a data set of labelled pictures as a training takes them, for `dinomed data check`.

    Rows that cannot be used are left out of the parts, and stand among the problems of the first that tells of them.

    Args:
        source: Folder or list.
        kind: See `open_labelled_images`.
        class_names: See `open_labelled_images`.

    Raises:
        InputError: If nothing could be trained.
    """
    given = {row.part for row in read_rows(source)[0]}
    parts = ["training", "validation", *(["test"] if "test" in given else [])]
    opened = [open_labelled_images(source, part, kind, class_names, strict=False) for part in parts]
    told: set[Problem] = set()
    for data in opened:
        data.problems = tuple(each for each in data.problems if each not in told)
        told |= set(data.problems)
    return opened


def _target(kind: str, labels: Mapping[str, Sequence[str]], numbers: Mapping[str, Mapping[str, int]]) -> Any:
    if kind == "multiclass":
        return numbers[LABEL][labels[LABEL][0]]
    if kind == "multitask":
        return {task: numbers[task][raw[0]] for task, raw in labels.items()}
    target = torch.zeros(len(numbers[LABEL]))
    target[[numbers[LABEL][raw] for raw in labels[LABEL]]] = 1.0
    return target


def _known(found: Sequence[Found], classes: Classes) -> tuple[list[Found], list[tuple[LabelledRow, Problem]]]:
    """Sort out rows with a class that the classes do not have."""
    known, unknown = [], []
    for row, labels in found:
        strange = [(task, raw) for task, names in labels.items() for raw in names if raw not in classes[task]]
        if not strange:
            known.append((row, labels))
            continue
        task, raw = strange[0]
        of_task = "" if task == LABEL else f" of {task}"
        names = list(classes[task])
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        what = f"has the class {raw!r}{of_task}, which is none of {shown}; correct it, or class_names (null takes all)"
        unknown.append((row, Problem("label out of range", row.where, what)))
    return known, unknown


def _members(source: str, found: Sequence[Found], part: str, division: Division, seed: int) -> tuple[list[Found], str]:
    """Choose the rows of a part; the text says why there may be none."""
    if part == "all":
        return list(found), ""
    if part != "test" and division.held_out:
        n_all = len(division.training) + len(division.validation)
        logger.info(
            "%s has no validation part: %d of %d pictures are held out for it, stratified by class (seed %d)",
            *(source, len(division.validation), n_all, seed),
        )
        lost = "; at least two are needed to hold one out for validation" if n_all < 2 else ""
    else:
        given = {row.part for row, _ in found}
        lost = "; it has " + (", ".join(sorted(given - {""})) or "no parts")
    if part == "test":
        return [each for each in found if each[0].part == part], lost
    return (division.training if part == "training" else division.validation), lost


def _check_training(source: str, found: Sequence[Found], kind: str, classes: Classes) -> None:
    """Refuse what nothing can be learnt from.

    Raises:
        InputError: If a class has no training pictures, or all pictures have the same.
    """
    for task, names in classes.items():
        counts = dict.fromkeys(names, 0)
        for _, labels in found:
            for raw in labels[task]:
                counts[raw] += 1
        of_task = "" if task == LABEL else f" of {task}"
        word = "label" if kind == "multilabel" else "class"
        empty = [f"{raw} ({names[raw]})" if raw != names[raw] else raw for raw, count in counts.items() if not count]
        if empty:
            raise InputError(
                f"{source} has no training picture of the {word} {empty[0]}{of_task}"
                f"{f' and {len(empty) - 1} others' if len(empty) > 1 else ''}; add some, or set class_names to the "
                "classes that there are (null takes those of the data)"
            )
        always = [raw for raw, count in counts.items() if count == len(found)]
        if always and (kind == "multilabel" or len(names) < 2):
            said = f"all {len(found)} training pictures have the {word} {always[0]}{of_task}"
            raise InputError(f"{source}: {said}, so that nothing can be told apart; add pictures of another {word}")


def check_label_names(data: LabelledImages, label_names: Any) -> None:
    """Refuse a network whose classes are not those of the data.

    Args:
        data: The data set.
        label_names: Names of the network's classes in order, of several tasks by task.

    Raises:
        InputError: If they differ.
    """
    wanted = (
        {task: list(names) for task, names in label_names.items()}
        if isinstance(label_names, Mapping)
        else list(label_names)
    )
    if data.label_names != wanted:
        raise InputError(
            f"{data.source} has the classes {data.label_names}, but the network's are {wanted}; take other weights, or "
            "set class_names so that the data's names become the network's"
        )
