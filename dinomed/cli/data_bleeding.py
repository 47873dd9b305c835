"""`dinomed data bleeding`: a data set of synthetic head CTs with and without bleeding, and its table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dinomed.errors import InputError

EPILOG = """
Each label map (FreeSurfer numbers, 1 mm, such as SynthSeg's training maps) is one patient. Written are series.csv (the
table that `dinomed train ct_hemorrhage_classification` takes), slices.csv (which kinds of blood every slice shows) and
scans/NAME.nii.gz in Hounsfield units. The same seed gives the same scans. They are drawings: good for trying out and
for teaching a network, no measure of what it does on patients. Exit status: 0 written, 2 an input cannot be used.
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the action's arguments."""
    parser = actions.add_parser("bleeding", help="draw synthetic head CTs", description=__doc__, epilog=EPILOG)
    parser.add_argument("label_maps", metavar="DIR", help="folder of label maps")
    parser.add_argument("--output", metavar="DIR", required=True, help="where the data set goes")
    parser.add_argument("--scans-per-map", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--validation", default="", metavar="NAME,...", help="label maps of the validation part")
    parser.add_argument("--test", default="", metavar="NAME,...", help="label maps of the test part")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw and write.

    Raises:
        InputError: If there is no label map, or a name or number makes no sense.
    """
    if not arguments.output:
        raise InputError("--output is empty; name a folder (is a variable in the command unset?)")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed} is negative; give a number from 0 on")
    parts = {
        name.strip(): part
        for part, names in (("validation", arguments.validation), ("test", arguments.test))
        for name in names.split(",")
        if name.strip()
    }

    from tqdm import tqdm

    from dinomed.cli.quiet import quiet
    from dinomed.cli.segment import check_output

    check_output(Path(arguments.output))
    with quiet():
        from dinomed.data.bleeding_scans import write_bleeding_scans
        from dinomed.data.synthetic_slices import find_label_maps

        label_maps = find_label_maps(arguments.label_maps)
        total = len(label_maps) * max(arguments.scans_per_map, 0)
        with tqdm(total=total, unit="scan", file=sys.stderr, disable=None, leave=False) as bar:
            table = write_bleeding_scans(
                label_maps, arguments.output, arguments.scans_per_map, arguments.seed, parts or None, bar.update
            )
    print(f"{table}: {total} scans of {len(label_maps)} label maps")
    return 0
