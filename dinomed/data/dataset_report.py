"""What a check of data sets says: as text, as JSON and as a picture of the class balance."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dinomed.data.dataset_checks import SplitCheck
from dinomed.errors import OutputError

SCHEMA = "dinomed-data-1"
FILES = ("data_check.txt", "data_check.json", "class_balance.png")
MOST_LINES = 20
"""Findings of one kind that the text names; the JSON has all."""

MOST_BARS = 160
BAR_COLOUR = "#0072B2"


def to_report(path: str, checks: Sequence[SplitCheck]) -> dict[str, Any]:
    """Return the outcome as strict JSON values."""
    findings = [
        {"kind": problem.kind, "split": check.dataset.split, "file": problem.file, "reason": problem.reason}
        for check in checks
        for problem in check.problems
    ]
    report = {
        "schema": SCHEMA,
        "path": path,
        "clean": not findings,
        "splits": [_split(check) for check in checks],
        "findings": findings,
    }
    clean: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False), object_hook=_printable_values)
    return clean


def _split(check: SplitCheck) -> dict[str, Any]:
    dataset = check.dataset
    known = range(dataset.num_classes or 0)
    labels = sorted(set(known) | {label for label in check.images if label != dataset.ignore_index})
    if dataset.task == "unlabelled":
        labels = []
    labelled = sum(count for label, count in check.pixels.items() if label != dataset.ignore_index)
    return {
        "split": dataset.split,
        "source": dataset.source,
        "layout": dataset.layout,
        "task": dataset.task,
        "images": len(dataset),
        "readable": sum(check.sizes.values()),
        "smallest": _size(min(check.sizes, key=_area, default=None)),
        "largest": _size(max(check.sizes, key=_area, default=None)),
        "num_classes": dataset.num_classes,
        "ignored_pixels": check.pixels[dataset.ignore_index] if dataset.task == "segmentation" else None,
        "classes": [
            {
                "label": label,
                "name": dataset.class_name(label),
                "images": check.images[label],
                "pixels": check.pixels[label] if dataset.task == "segmentation" else None,
                "share": _share(check, label, labelled),
            }
            for label in labels
        ],
        "notes": check.notes,
    }


def _share(check: SplitCheck, label: int, labelled_pixels: int) -> float:
    """Part of the labelled pixels, or of the pictures where these are classified as a whole."""
    if check.dataset.task == "segmentation":
        return check.pixels[label] / labelled_pixels if labelled_pixels else 0.0
    return check.images[label] / max(sum(check.images.values()), 1)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _size(size: tuple[int, int] | None) -> dict[str, int] | None:
    return {"width": size[1], "height": size[0]} if size else None


def to_text(report: dict[str, Any]) -> str:
    """Return a report as lines to read."""
    lines = []
    for split in report["splits"]:
        name = f", split {split['split']}" if split["split"] else ""
        lines.append(f"{split['source']}: {split['layout']}{name}, {split['task']}, {split['images']} pictures")
        if split["smallest"]:
            small, large = split["smallest"], split["largest"]
            lines.append(f"  from {small['width']} x {small['height']} to {large['width']} x {large['height']} pixels")
        lines += [f"  note: {note}" for note in split["notes"]]
        lines += _class_lines(split)
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for finding in report["findings"]:
        by_kind[finding["kind"]].append(finding)
    for kind, found in by_kind.items():
        lines.append(f"{kind}: {len(found)}")
        lines += [f"  {each['file']} {each['reason']}" for each in found[:MOST_LINES]]
        if len(found) > MOST_LINES:
            lines.append(f"  and {len(found) - MOST_LINES} more, see --json or --output")
    count = len(report["findings"])
    lines.append("no findings" if not count else f"{count} finding{'s' if count > 1 else ''}")
    return "\n".join(lines)


def _class_lines(split: dict[str, Any]) -> list[str]:
    """Return one line per class that occurs, the most frequent first."""
    present = sorted((each for each in split["classes"] if each["images"]), key=lambda each: -each["share"])
    if not present:
        return []
    unit = "pixels" if split["task"] == "segmentation" else "pictures"
    lines = [f"  {'label':>5}  {'share of ' + unit:>16}  {'pictures':>8}  class"]
    for each in present[:MOST_LINES]:
        lines.append(f"  {each['label']:>5}  {100 * each['share']:>14.3f} %  {each['images']:>8}  {each['name']}")
    if len(present) > MOST_LINES:
        lines.append(f"  and {len(present) - MOST_LINES} rarer classes, see --json or --output")
    return lines


def draw_balance(report: dict[str, Any], path: Path) -> None:
    """Draw the share of each class, a panel per labelled split, as a PNG file.

    Raises:
        OSError: If the file cannot be written.
    """
    splits = [split for split in report["splits"] if split["classes"]]
    longest = max((min(len(split["classes"]), MOST_BARS) for split in splits), default=1)
    width = 7.0 * max(len(splits), 1)
    figure = Figure(figsize=(width, 1.6 + 0.17 * max(longest, 6)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    if not splits:
        figure.text(0.5, 0.5, "no labels", ha="center", va="center")
    for column, split in enumerate(splits):
        axes = figure.add_subplot(1, len(splits), column + 1)
        rows = sorted(split["classes"], key=lambda each: -each["share"])[:MOST_BARS]
        names = [str(each["name"]).replace("$", r"\$")[:30] for each in rows]
        places = range(len(rows))
        axes.barh(places, [100 * each["share"] for each in rows], color=BAR_COLOUR)
        axes.set_yticks(places, names, fontsize=7)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        if any(each["share"] for each in rows):
            axes.set_xscale("symlog", linthresh=0.01)
            axes.set_xlim(0.0, 500.0 * max(each["share"] for each in rows))  # five times the longest: room for words
        unit = "labelled pixels" if split["task"] == "segmentation" else "pictures"
        axes.set_xlabel(f"% of {unit}, logarithmic; beside it the number of pictures with the class")
        title = f"{split['layout']} {split['split']}".strip().replace("$", r"\$")
        axes.set_title(f"{title}: {split['images']} pictures, {len(split['classes'])} classes", fontsize=10)
        for place, each in enumerate(rows):
            label = f" {100 * each['share']:.3g} %, {each['images']}" if each["images"] else " absent"
            axes.text(100 * each["share"], place, label, va="center", fontsize=6)
    figure.savefig(path, format="png", metadata={"Software": "dinomed"})


def write_report(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write text, JSON and picture into a folder, which is made if absent.

    Returns:
        The three paths.

    Raises:
        OutputError: If that fails.
    """
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    writers: list[Callable[[Path], Any]] = [
        lambda path: path.write_text(to_text(report) + "\n", encoding="utf-8"),
        lambda path: path.write_text(text, encoding="utf-8"),
        lambda path: draw_balance(report, path),
    ]
    written = []
    for name, write in zip(FILES, writers, strict=True):
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.replace(temporary, folder / name)
        except OSError as error:
            raise OutputError(
                f"{folder / name} cannot be written ({error.strerror or error}); check --output"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        written.append(folder / name)
    return written


def _printable_values(mapping: dict[str, Any]) -> dict[str, Any]:
    """Replace what no output encoding can hold: bytes of file names that are no text."""
    return {key: _printable(value) for key, value in mapping.items()}


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return value
