"""`dinomed segment`: label maps for scans or pictures, files or folders of them, with one model."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dinomed.cli.cases import Case, Refused, find_cases, find_picture_cases
from dinomed.cli.run_log import CaseResult, RunLog, check_summary
from dinomed.errors import BundleError, DinomedError, InputError, OutputError

if TYPE_CHECKING:
    from dinomed.predictor import Predictor

DEFAULT_OUTPUT = "segmentation"

EPILOG = """
A folder stands for the scans in it and in the folders directly inside; one with DICOM files is one scan. Each case
gives CASE_seg.nii.gz, CASE_seg.json and CASE_seg.png. With a bundle for pictures a folder stands for the pictures in it
and in all folders inside, and each gives CASE_seg.png (the label map, at the picture's own size),
CASE_seg_overlay.png, CASE_seg_side_by_side.png and CASE_seg.json. Cases that are done already, by the same model from
the same scan, are skipped, so that a run that was stopped goes on where it was. One bad case does not stop the others.
Exit status: 0 all is done, 2 an input was at fault, 1 an error in dinomed. Not a medical device.
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser("segment", help="segment scans or pictures", description=__doc__, epilog=EPILOG)
    add_cases(parser)
    add_running(parser, DEFAULT_OUTPUT)
    parser.add_argument("--planes", help="such as axial or axial,coronal; fewer are faster (default: the bundle's)")
    parser.add_argument("--tta", action="store_true", help="average over scales and the mirrored picture; slower")
    parser.add_argument("--frame", type=int, metavar="N", help="frame of 4-D scans, from 0")
    parser.set_defaults(run=run)


def add_cases(parser: argparse.ArgumentParser) -> None:
    """Describe what a verb that runs a bundle over many cases takes besides `add_running`."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="scan, DICOM folder, picture, or folder of these")
    parser.add_argument("--bundle", required=True, metavar="NAME_OR_PATH", help="model, see `dinomed bundle list`")
    parser.add_argument("--overlay", metavar="NAME_OR_FILE", help="variant of the bundle, by name or as a YAML file")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="slices or windows at a time (default: the bundle's)"
    )


def add_running(parser: argparse.ArgumentParser, output: str) -> None:
    """Describe the arguments of every verb that runs a bundle.

    Args:
        parser: Of the verb.
        output: Folder of the results where none is named.
    """
    parser.add_argument(
        "--output", default=output, metavar="DIR", help=f"folder of the results, made if absent (default: {output})"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto (default), float32 or bfloat16")
    parser.add_argument("--weights", metavar="FILE", help="weights to use instead of the bundle's")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Segment all cases; the summary goes to stdout and to summary.json, progress to stderr.

    Raises:
        InputError: If nothing can be done at all: no scan, no model, no place for the results.
    """
    from dinomed.cli.quiet import quiet

    with quiet():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    output = open_output(arguments)
    cases, refused = find_inputs(arguments, output)

    from dinomed.predictor import Predictor

    predictor = Predictor.from_bundle(
        arguments.bundle,
        device=arguments.device,
        precision=arguments.precision,
        planes=arguments.planes,
        overlay=arguments.overlay,
        weights=arguments.weights,
        batch_size=arguments.batch_size,
        tta=arguments.tta,
    )
    with RunLog(output, predictor.run, len(cases) + len(refused)) as log:
        for each in refused:
            log.add(CaseResult(each.given, None, "failed", message=each.reason, users_fault=True))
        for case in cases:
            log.start(case.name)
            log.add(segment_case(predictor, case, output, arguments.frame, arguments.overwrite, log.advance))
        log.finish(as_json=arguments.json)
        return log.exit_status


def open_output(arguments: argparse.Namespace) -> Path:
    """Make sure, before anything else takes time, that the results can be written, and finish what a stopped run left.

    Raises:
        InputError: If no folder is named.
        OutputError: If it cannot take the results.
    """
    from dinomed.transforms.prediction import finish_stopped

    if not arguments.output:
        raise InputError("--output is empty; name a folder (is a variable in the command unset?)")
    output = Path(arguments.output)
    check_output(output)
    if not arguments.overwrite:
        check_summary(output)
    finish_stopped(output)
    return output


@contextlib.contextmanager
def told(result: CaseResult) -> Iterator[None]:
    """Make whatever goes wrong with a case part of its answer, and note how long it took."""
    from dinomed.cli.main import describe

    started_s = time.perf_counter()
    try:
        yield
    except InputError as error:
        result.message, result.users_fault = str(error), True
    except DinomedError as error:
        result.message = str(error)
    except Exception as error:
        result.message = f"internal error, please report it: {describe(error)}"
    result.seconds = time.perf_counter() - started_s


def find_inputs(arguments: argparse.Namespace, output: Path) -> tuple[list[Case], list[Refused]]:
    """Find the cases, and make sure that no result would replace one of them."""
    if is_for_pictures(arguments.bundle):
        from dinomed.data.datasets.pictures import check_pictures_stay as check_stay

        cases, refused = find_picture_cases(arguments.inputs)
    else:
        from dinomed.bundle.running import check_inputs_stay as check_stay

        cases, refused = find_cases(arguments.inputs)
    if not cases:
        raise InputError("\ndinomed: ".join(each.reason for each in refused))
    check_stay([(case.path, case.name) for case in cases], output)
    return cases, refused


def is_for_pictures(bundle: str) -> bool:
    """Whether a bundle is for pictures: its metadata call its data RGB, as MONAI's own bundles do.

    Looked up before MONAI is imported, which takes seconds, so that a mistyped input is refused at once.
    """
    from dinomed.bundle.locate import find_bundle, read_metadata

    try:
        return str(read_metadata(find_bundle(bundle)).get("data_type", "")).upper() == "RGB"
    except BundleError:  # the predictor says so in its turn, after the inputs
        return False


def check_output(folder: Path) -> None:
    """Try to write where the results will go, before anything else takes time; nothing is left behind.

    Raises:
        OutputError: If that fails.
    """
    import tempfile

    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder} cannot take the results ({error.strerror or error}); give --output a folder you may write to"
        ) from error


def segment_case(
    predictor: Predictor,
    case: Case,
    output: Path,
    frame: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CaseResult:
    """Segment one case and write its results; whatever goes wrong becomes part of the answer."""
    result = CaseResult(str(case.path), case.name, "failed")
    with told(result):
        if not overwrite and is_done(predictor, case, output, frame):
            result.status, result.message = "skipped", "done before; --overwrite does it again"
            return result
        prediction = predictor.segment(case.path, frame, progress)
        prediction.case = case.name
        # Whatever is there now is our own and incomplete, or is to be replaced: `is_done` refuses the rest.
        paths = prediction.save(output, overwrite=True)
        result.status = "done"
        result.outputs = [path.name for path in vars(paths).values()]
        result.volumes_ml = getattr(prediction, "volumes_ml", {})  # pictures have none
        result.message = "; ".join(prediction.warnings)
    return result


def is_done(predictor: Predictor, case: Case, output: Path, frame: int | None) -> bool:
    """Say whether this very job was done before.

    Raises:
        OutputError: If there are results of another scan or model, which must not be lost.
    """
    from dinomed.transforms.image_prediction import is_own_png
    from dinomed.transforms.prediction import read_report
    from dinomed.transforms.provenance import scan_sha256
    from dinomed.transforms.report import deciding, planned
    from dinomed.transforms.volume_checks import shown

    frame = predictor.frame if frame is None else frame
    paths = predictor.result_paths(output, case.name)
    existing = paths.existing()
    if not existing:
        return False
    report = read_report(paths.report)
    if predictor.takes_pictures and not paths.report.exists() and all(is_own_png(path) for path in existing):
        return False  # a run was stopped while it put its results in place
    try:
        checksum = scan_sha256(case.path)
    except OSError as error:
        raise InputError(f"{case.path} cannot be read ({error.strerror}); check the path and your rights") from error
    wanted = deciding(planned(predictor.run, predictor.label_names, checksum, frame))
    if checksum is None or report is None:
        differs = "this scan" if report is not None else "dinomed"
    else:
        earlier = deciding(report)
        names = {"input": "this scan", "model": "this model", "labels": "these labels"}
        differs = next((names.get(key, f"the same {key}") for key in wanted if earlier[key] != wanted[key]), "")
    if differs:
        raise OutputError(
            f"{shown(existing[0])} exists already and is not known to come from {differs}; "
            "pass --overwrite, or choose another output folder"
        )
    return len(existing) == len(vars(paths))
