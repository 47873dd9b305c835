"""`dinomed classify`: probabilities for CT scans or pictures, files or folders of them, with one model."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.cli.cases import find_picture_cases
from dinomed.cli.run_log import CaseResult, RunLog
from dinomed.cli.segment import add_cases, add_running, find_inputs, is_for_pictures, open_output, told
from dinomed.errors import InputError

if TYPE_CHECKING:
    from dinomed.cli.cases import Case, Refused
    from dinomed.predictor import Predictor

DEFAULT_OUTPUT = "classification"
MAP_SLICES = 3

EPILOG = """
Each scan gives a folder OUTPUT/CASE with summary.json, summary.png, slice_probs.npy, slice_indices.npy,
slice_embeddings.npy, volume_embedding.npy, and what --maps and --reference ask for. With a bundle for pictures each
gives CASE_class.json and CASE_class.png, and all together predictions.csv. Cases that are done already, by the same
model from the same scan, are skipped. One bad case does not stop the others.
Exit status: 0 all is done, 2 an input was at fault, 1 an error in dinomed. Not a medical device.
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser("classify", help="classify CT scans or pictures", description=__doc__, epilog=EPILOG)
    add_cases(parser)
    add_running(parser, DEFAULT_OUTPUT)
    parser.add_argument("--maps", metavar="KINDS", help="heat maps, separated by commas: rollout, gradient, occlusion")
    parser.add_argument("--map-slices", type=int, metavar="N", help="for how many of the highest slices (default: 3)")
    parser.add_argument("--map-label", metavar="LABEL", help="label that the maps explain (default: the first)")
    parser.add_argument(
        "--reference", metavar="PATCH", help="patch that all of the highest slice are compared with: center or ROW,COL"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Classify all cases; the summary goes to stdout and to summary.json, progress to stderr.

    Raises:
        InputError: If nothing can be done at all: no scan, no model, no place for the results.
    """
    from dinomed.cli.quiet import quiet

    with quiet():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    output = open_output(arguments)
    cases, refused = _find(arguments, output)

    from dinomed.predictor import Predictor

    predictor = Predictor.from_bundle(
        arguments.bundle,
        device=arguments.device,
        precision=arguments.precision,
        overlay=arguments.overlay,
        weights=arguments.weights,
        batch_size=arguments.batch_size,
    )
    request: dict[str, Any] = {
        "maps": None if arguments.maps is None else [kind.strip() for kind in arguments.maps.split(",")],
        "map_slices": arguments.map_slices,
        "map_label": arguments.map_label,
        "reference": arguments.reference,
    }
    request = {key: value for key, value in request.items() if value is not None}
    predictor.check_request(**request)
    answers: dict[str, Any] = {}
    with RunLog(output, predictor.run, len(cases) + len(refused)) as log:
        for each in refused:
            log.add(CaseResult(each.given, None, "failed", message=each.reason, users_fault=True))
        for case in cases:
            log.start(case.name)
            log.add(_classify_case(predictor, case, output, request, arguments.overwrite, answers))
        if answers and predictor.takes_pictures:
            _write_table(predictor, output, answers)
        log.finish(as_json=arguments.json)
        return log.exit_status


def _find(arguments: argparse.Namespace, output: Path) -> tuple[list[Case], list[Refused]]:
    """Find the cases; of pictures, leave out results of earlier runs that lie in the folders."""
    if not is_for_pictures(arguments.bundle):
        return find_inputs(arguments, output)
    from dinomed.data.datasets.classified_pictures import check_results_stay_apart, is_class_result

    found, refused = find_picture_cases(arguments.inputs)
    cases = [case for case in found if str(case.path) in arguments.inputs or not is_class_result(case.path)]
    if not cases:
        reasons = [each.reason for each in refused] or ["there are no pictures but results of dinomed; give others"]
        raise InputError("\ndinomed: ".join(reasons))
    check_results_stay_apart([(case.path, case.name) for case in cases], output)
    return cases, refused


def _classify_case(
    predictor: Predictor, case: Case, output: Path, request: dict[str, Any], overwrite: bool, answers: dict[str, Any]
) -> CaseResult:
    """Classify one case and write its results; whatever goes wrong becomes part of the answer."""
    result = CaseResult(str(case.path), case.name, "failed")
    with told(result):
        if not overwrite and _is_done(predictor, case, output, request):
            result.status, result.message = "skipped", "done before; --overwrite does it again"
            return result
        answer = predictor.classify(case.path, case.name, **request)
        paths = answer.save(output, overwrite)
        if hasattr(answer, "row"):
            answers[case.name] = answer.row()
        result.status = "done"
        result.outputs = [str(path.relative_to(output)) for path in _files(paths)]
        result.message = "; ".join([_sentence(answer), *answer.warnings])
    return result


def _files(paths: Any) -> list[Path]:
    return list(paths.files) if hasattr(paths, "files") else list(vars(paths).values())


def _sentence(answer: Any) -> str:
    """The answer in a few words: what a scan is positive for, or a picture's likeliest class."""
    if hasattr(answer, "top"):
        return "; ".join(_of_task(answer, task) for task in answer.label_names)
    shown = [
        (name, probability if calibrated is None else calibrated, predicted)
        for name, probability, calibrated, predicted in zip(
            answer.label_names, answer.probabilities, answer.calibrated, answer.predicted, strict=True
        )
    ]
    positive = [f"{name} {probability:.2f}" for name, probability, predicted in shown if predicted]
    undecided = all(predicted is None for _, _, predicted in shown)
    negative = "nothing is decided without thresholds" if undecided else "nothing reaches its threshold"
    return ", ".join(positive) or f"{negative} ({shown[0][0]} {shown[0][1]:.2f})"


def _of_task(answer: Any, task: str) -> str:
    """What was decided of one task of a picture: a class, or all labels that reach the threshold."""
    probabilities = dict(zip(answer.label_names[task], answer.probabilities[task], strict=True))
    decided = ", ".join(f"{name} {probabilities[name]:.2f}" for name in answer.predicted(task))
    likeliest, probability = answer.top(task)[0]
    return decided or f"nothing reaches the threshold (likeliest {likeliest} {probability:.2f})"


def _is_done(predictor: Predictor, case: Case, output: Path, request: dict[str, Any]) -> bool:
    """Whether this model has answered for this very file before, and nothing more is asked for now."""
    from dinomed.transforms.image_classification import CLASS_REPORT
    from dinomed.transforms.provenance import file_sha256, scan_sha256, to_json

    if predictor.takes_pictures:
        found = _report(output / f"{case.name}{CLASS_REPORT}")
    else:
        found = _report(output / case.name / "summary.json")
    try:
        checksum = file_sha256(case.path) if predictor.takes_pictures else scan_sha256(case.path)
    except OSError:
        return False
    if not found or checksum is None or not _has(found, request):
        return False
    same = found.get("model") == predictor.run.model() and (found.get("input") or {}).get("sha256") == checksum
    wanted = json.loads(json.dumps(to_json(list(predictor.run.preprocessing))))
    return bool(same and found.get("preprocessing") == wanted)


def _has(found: dict[str, Any], request: dict[str, Any]) -> bool:
    """Whether a scan's summary has the maps that are asked for, and the similarity."""
    label = request.get("map_label") or found.get("main_label")
    maps = {(each["kind"], each["label"], len(each["slices"])) for each in found.get("heat_maps") or ()}
    count = min(request.get("map_slices") or MAP_SLICES, (found.get("slices") or {}).get("used", 0))
    wanted = {(kind, None if kind == "rollout" else label, count) for kind in request.get("maps") or ()}
    reference = request.get("reference")
    if reference is None or not (similarity := found.get("similarity")):
        return wanted <= maps and reference is None
    place = similarity["reference"]
    rows, columns = similarity["cells"]
    from dinomed.transforms.similarity_map import choose_reference

    return wanted <= maps and (place["row"], place["col"]) == choose_reference(reference, rows, columns)


def _report(path: Path) -> dict[str, Any]:
    """A report of an earlier run; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_table(predictor: Predictor, output: Path, answers: dict[str, Any]) -> None:
    """Write predictions.csv: this run's pictures, and those that the same model answered for here before."""
    from dinomed.transforms.class_results import TABLE, write_predictions
    from dinomed.transforms.image_classification import CLASS_REPORT

    try:
        with (output / TABLE).open(encoding="utf-8", newline="") as stream:
            earlier = {row.get("case", ""): row for row in csv.DictReader(stream)}
    except (OSError, ValueError, csv.Error):
        earlier = {}
    kept = {
        case: row
        for case, row in earlier.items()
        if _report(output / f"{case}{CLASS_REPORT}").get("model") == predictor.run.model()
    }
    rows = {**kept, **answers}
    write_predictions([rows[case] for case in sorted(rows)], output, overwrite=True)
