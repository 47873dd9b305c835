"""`dinomed propagate`: labels drawn on a few slices of a scan, carried through all of it. Nothing is trained."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from dinomed.cli.run_log import CaseResult, RunLog
from dinomed.cli.segment import add_running, find_inputs, open_output, told
from dinomed.errors import InputError, OutputError

DEFAULT_OUTPUT = "propagation"

EPILOG = """
The labels lie on the scan's own grid and are whole numbers from 1 to 255 on one slice or more, 0 elsewhere. A label is
taken to be drawn completely on every slice where it is drawn at all. Where the ends of its organ matter, draw it on the
first and on the last slice and pass --between. Results: CASE_seg.nii.gz, CASE_seg.json (with the agreement of both
directions, slice by slice) and CASE_seg.png. Exit status: 0 done, 2 an input was at fault, 1 an error in dinomed. Not a
medical device.
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser(
        "propagate", help="carry labels from a few slices through a scan", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("volume", metavar="VOLUME", help="scan or DICOM folder")
    parser.add_argument("--labels", required=True, metavar="FILE", help="label map with the drawn slices")
    parser.add_argument(
        "--bundle",
        default="mri_head_segmentation",
        metavar="NAME_OR_PATH",
        help="whose backbone gives the features (default: mri_head_segmentation)",
    )
    parser.add_argument("--plane", help="that the labels are drawn in: axial, coronal or sagittal (default: found)")
    parser.add_argument("--between", action="store_true", help="carry no label beyond its own outermost drawn slices")
    parser.add_argument("--frame", type=int, metavar="N", help="frame of a 4-D scan, from 0")
    add_running(parser, DEFAULT_OUTPUT)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the labels; the summary goes to stdout and to summary.json, progress to stderr.

    Raises:
        InputError: If nothing can be done at all: no scan, no labels, no model, no place for the results.
    """
    from dinomed.cli.quiet import quiet

    with quiet():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    output, labels = open_output(arguments), Path(arguments.labels)
    if not labels.exists():
        raise InputError(f"{labels}: there is no such file; give --labels the label map with the drawn slices")
    arguments.inputs = [arguments.volume]
    cases, _ = find_inputs(arguments, output)
    if len(cases) != 1:
        raise InputError(f"{arguments.volume} holds {len(cases)} scans; labels belong to one of them, so give that one")
    (case,) = cases

    from dinomed.predictor import Predictor
    from dinomed.transforms.prediction import ResultPaths

    taken = [path for path in vars(ResultPaths.of(output, case.name)).values() if path.exists()]
    if any(path.resolve() == labels.resolve() for path in taken):
        raise InputError(f"the results would replace {labels}; choose another output folder")
    if taken and not arguments.overwrite:
        raise OutputError(f"{taken[0]} exists already; pass --overwrite, or choose another output folder")
    predictor = Predictor.from_bundle(
        arguments.bundle, device=arguments.device, precision=arguments.precision, weights=arguments.weights
    )
    # The planes and class groups of the bundle's own network have no part in this.
    with RunLog(output, replace(predictor.run, planes=(), class_groups=None), 1) as log:
        log.start(case.name)
        result = CaseResult(str(case.path), case.name, "failed")
        with told(result):
            prediction = predictor.propagate(
                case.path, labels, arguments.frame, arguments.plane, not arguments.between, log.advance
            )
            log.run, prediction.case = prediction.run, case.name
            paths = prediction.save(output, arguments.overwrite)
            result.status = "done"
            result.outputs = [path.name for path in vars(paths).values()]
            result.volumes_ml = prediction.volumes_ml
            result.message = "; ".join([f"carried along {prediction.run.planes[0]} slices", *prediction.warnings])
        log.add(result)
        log.finish(as_json=arguments.json)
        return log.exit_status
