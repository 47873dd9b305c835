"""`dinomed data split`: check a table of CT series and split it into training, validation and test."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.errors import InputError

if TYPE_CHECKING:
    from dinomed.data.series_checks import Problem

SHOWN = 10
EPILOG = """
Series of one patient stay together; where the patient is not known, those of one study. Every label is about as
frequent in each part, and none is left without positives in a part while there are enough. Written are split.csv (the
rows that can be used, with the column part), split_summary.json and problems.csv (every row that is left out, why, and
what to do). Exit status: 0 split, 2 the table or an argument cannot be used.
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the action's arguments."""
    parser = actions.add_parser("split", help="split a table of CT series", description=__doc__, epilog=EPILOG)
    parser.add_argument("table", metavar="TABLE", help="CSV: rel_dir, study_uid, series_uid, nifti_path, label_...")
    parser.add_argument("--output", metavar="DIR", required=True, help="where the files go")
    parser.add_argument(
        "--data-root", metavar="DIR", help="what nifti_path is relative to (default: the table's folder)"
    )
    parser.add_argument("--fractions", metavar="A,B,C", default="0.7,0.15,0.15", help="default: 0.7,0.15,0.15")
    parser.add_argument("--seed", type=int, default=42, help="default: 42")
    parser.add_argument("--labels", metavar="NAME,...", help="default: any and the five kinds of bleeding")
    parser.add_argument(
        "--header-only", action="store_true", help="do not read all voxels of every scan, which finds torn files"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the split and print a summary.

    Raises:
        InputError: If the table or an argument cannot be used.
    """
    fractions = read_fractions(arguments.fractions)
    if not arguments.output:
        raise InputError("--output is empty; name a folder (is a variable in the command unset?)")
    if not Path(arguments.table).is_file():  # before anything heavy is imported
        raise InputError(f"there is no table {arguments.table}; check the path")

    from dinomed.cli.quiet import quiet
    from dinomed.cli.segment import check_output

    check_output(Path(arguments.output))
    with quiet():
        summary = _split(arguments, fractions)
    print(to_text(summary, Path(arguments.output)))
    return 0


def _split(arguments: argparse.Namespace, fractions: list[float]) -> dict[str, Any]:
    from dinomed.data.series_table import HEMORRHAGE_LABELS, problems_csv, read_series_table
    from dinomed.data.splits import PROBLEMS_FILE, keep_table, split_table, write_split, write_text

    named = HEMORRHAGE_LABELS if arguments.labels is None else read_labels(arguments.labels)
    check = "header" if arguments.header_only else "voxels"
    keep_table(arguments.table, arguments.output)
    table = read_series_table(arguments.table, named, arguments.data_root, check, ignore_parts=True)
    output = Path(arguments.output)
    if table.problems:
        write_text(output / PROBLEMS_FILE, problems_csv(table.problems))  # what is wrong is told even if all is
        _show(table.problems, output / PROBLEMS_FILE)
    split = split_table(table, fractions, arguments.seed)
    return write_split(split, output, rebase=arguments.data_root is None)


def _show(problems: tuple[Problem, ...], file: Path) -> None:
    for problem in problems[:SHOWN]:
        print(problem.sentence(), file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"and {len(problems) - SHOWN} more: see {file}", file=sys.stderr)


def read_fractions(text: str) -> list[float]:
    """Read `0.7,0.15,0.15`.

    Raises:
        InputError: If the text is not of this form.
    """
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--fractions {text} is not understood; write three shares, such as 0.7,0.15,0.15") from error


def read_labels(text: str) -> list[str]:
    """Read names of labels, with or without `label_` in front.

    Raises:
        InputError: If there is none.
    """
    names = [part.strip().removeprefix("label_") for part in text.split(",") if part.strip()]
    if not names:
        raise InputError("--labels is empty; name labels, such as any,epidural")
    return names


def to_text(summary: dict[str, Any], folder: Path) -> str:
    """Put a split's summary into a few lines."""
    left = summary["rows"] - summary["used"]
    grouped = " and ".join(f"{count} by {kind}" for kind, count in summary["grouped_by"].items())
    lines = [f"{summary['used']} of {summary['rows']} series are split ({grouped}), {left} are left out"]
    width = max(len(name) for name in summary["labels"])
    parts = list(summary["parts"])
    lines.append(f"{'':{width}}  " + "".join(f"{part:>12}" for part in parts))
    lines.append(f"{'series':{width}}  " + "".join(f"{summary['parts'][part]['series']:>12}" for part in parts))
    for name in summary["labels"]:
        counts = [summary["parts"][part]["labels"][name]["positives"] for part in parts]
        lines.append(f"{name:{width}}  " + "".join(f"{count:>12}" for count in counts))
    lines += [f"note: {remark}" for remark in summary["remarks"]]
    lines.append(f"written: {', '.join(str(folder / name) for name in FILES)}")
    return "\n".join(lines)


FILES = ("split.csv", "split_summary.json", "problems.csv")
