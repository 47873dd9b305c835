"""`dinomed data`: whether a data set of pictures is sound, splits of tables of CT series, and synthetic head CTs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dinomed.cli import data_bleeding, data_split
from dinomed.errors import InputError

LAYOUTS = ("auto", "ade20k", "coco", "image-mask", "image-folder", "list", "labelled", "unlabelled")
TASKS = ("multiclass", "multilabel", "multitask")
EPILOG = """
Every picture and label map is read once. Found are: pictures without label maps and the reverse, files that cannot be
read, sizes that differ, labels out of range, wrong annotations, and pictures with the same pixels, across splits too.
Pictures with classes are read as a training reads them with --task, and where a list has columns label_NAME.
The class balance is reported. Exit status: 0 nothing was found, 2 something was or the path cannot be used.
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser(
        "data", help="check a data set, split a table of series, draw head CTs", description=__doc__
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    data_split.add_parser(actions)
    data_bleeding.add_parser(actions)
    what = "Whether a data set of pictures is sound, before anything is trained on it."
    check = actions.add_parser("check", help="check every file of a data set", description=what, epilog=EPILOG)
    check.add_argument("path", metavar="DIR_OR_JSON", help="folder, COCO file, or CSV or JSON list")
    check.add_argument("--layout", choices=LAYOUTS, default="auto", help="default: recognised")
    check.add_argument(
        "--task", choices=TASKS, help="check pictures with classes (folders, CSV, JSON) as the training of a classifier"
    )
    check.add_argument("--split", help="part to check, such as training (default: all)")
    check.add_argument("--images", metavar="DIR", help="folder of the pictures (COCO, image-mask)")
    check.add_argument("--masks", metavar="DIR", help="folder of the label maps (image-mask)")
    check.add_argument("--image-suffix", metavar="TEXT", help="what names of pictures have before their ending")
    check.add_argument("--mask-suffix", metavar="TEXT", help="what names of label maps have before their ending")
    check.add_argument("--num-classes", type=int, metavar="N", help="labels run from 0 to N - 1")
    check.add_argument(
        "--reduce-zero-label",
        action=argparse.BooleanOptionalAction,
        help="0 means no class and 1 becomes class 0 (default: only in ADE20K's layout)",
    )
    check.add_argument("--label-values", metavar="OLD=NEW,...", help="labels to replace, such as 255=1")
    check.add_argument("--ignore-index", type=int, metavar="N", help="label that counts nowhere (default: 255)")
    check.add_argument("--output", metavar="DIR", help="write the report there: text, JSON and a picture")
    check.add_argument("--workers", type=int, metavar="N", help="threads (default: one per processor, at most 8)")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Print what is wrong with a data set.

    Raises:
        InputError: If it cannot be opened at all, or the report not be written.
    """
    options = read_options(arguments)
    if not Path(arguments.path).exists():  # before anything heavy is imported
        raise InputError(f"there is no file or folder {arguments.path}; check the path")
    if arguments.output is not None:
        from dinomed.cli.segment import check_output

        if not arguments.output:
            raise InputError("--output is empty; name a folder (is a variable in the command unset?)")
        check_output(Path(arguments.output))

    from dinomed.cli.quiet import quiet

    with quiet():
        report = _check(arguments, options)
    print(_text(report, arguments.json))
    return 0 if report["clean"] else 2


def _check(arguments: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    from tqdm import tqdm

    from dinomed.data.dataset_checks import check_datasets
    from dinomed.data.dataset_report import to_report, write_report
    from dinomed.data.datasets import open_datasets

    try:
        datasets = open_datasets(arguments.path, arguments.layout, strict=False, **options)
    except OSError as error:
        raise InputError(f"{arguments.path} cannot be read ({error.strerror}); check your rights") from error
    total = sum(map(len, datasets))
    with tqdm(total=total, unit="picture", file=sys.stderr, disable=None, leave=False) as bar:
        checks = check_datasets(datasets, arguments.workers, bar.update)
    report = to_report(str(arguments.path), checks)
    if arguments.output is not None:
        written = write_report(report, Path(arguments.output))
        print("written:", ", ".join(map(str, written)), file=sys.stderr)
    return report


def _text(report: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps(report, indent=2, allow_nan=False)
    from dinomed.data.dataset_report import to_text

    return to_text(report)


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given for the data sets' constructors.

    Raises:
        InputError: If a value makes no sense.
    """
    if arguments.num_classes is not None and arguments.num_classes < 1:
        raise InputError(f"--num-classes {arguments.num_classes} is not positive; give the number of classes")
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers {arguments.workers} is not positive; give a number of threads")
    if arguments.masks and not arguments.images:
        raise InputError("--masks needs --images; name both folders")
    options = {
        "task": arguments.task,
        "split": arguments.split,
        "image_dir": arguments.images,
        "mask_dir": arguments.masks,
        "image_suffix": arguments.image_suffix,
        "mask_suffix": arguments.mask_suffix,
        "num_classes": arguments.num_classes,
        "reduce_zero_label": arguments.reduce_zero_label,
        "label_values": read_label_values(arguments.label_values),
        "ignore_index": arguments.ignore_index,
    }
    return {name: value for name, value in options.items() if value is not None}


def read_label_values(text: str | None) -> dict[int, int] | None:
    """Read `255=1,7=0`.

    Raises:
        InputError: If the text is not of this form.
    """
    if text is None:
        return None
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        return {int(old): int(new) for old, new in pairs}
    except ValueError as error:
        raise InputError(f"--label-values {text} is not understood; write OLD=NEW, such as 255=1") from error
