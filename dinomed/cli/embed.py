"""`dinomed embed`: embeddings of CT scans and pictures by a frozen backbone, as NumPy files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.cli.cases import Case, find_cases, find_picture_cases
from dinomed.errors import InputError, OutputError

if TYPE_CHECKING:
    from dinomed.data.feature_cache import FeatureCache
    from dinomed.data.features import FeatureExtractor

DEFAULT_OUTPUT = "embeddings"
EPILOG = """
Each case gives a folder OUTPUT/CASE with slice_embeddings.npy (one row a slice, from the feet up), slice_indices.npy
(where each slice lies in the file's own voxels), volume_embedding.npy and summary.json. With --cache a scan that was
embedded before, by the same weights in the same way, is not embedded again. One bad case does not stop the others.
Exit status: 0 all is done, 2 an input was at fault, 1 an error in dinomed. Not a medical device.
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser("embed", help="embed scans or pictures", description=__doc__, epilog=EPILOG)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="CT, DICOM folder, picture, or folder of these")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, metavar="DIR", help=f"default: {DEFAULT_OUTPUT}")
    parser.add_argument("--backbone", default="dinov3_vits16", metavar="NAME", help="default: dinov3_vits16")
    parser.add_argument("--weights", required=True, metavar="FILE", help='its weights: a file, a folder or "timm"')
    parser.add_argument("--pool", default="cls", help="cls (default), patch, both, all, mean or meanmax")
    parser.add_argument("--resize", type=int, default=224, metavar="N", help="side in pixels (default: 224); 0: none")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="every how many slices one is taken")
    parser.add_argument("--max-slices", type=int, metavar="N", help="most slices, spread over the scan")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="slices at a time (default: 16)")
    parser.add_argument("--precision", default="auto", help="auto (default), float32 or bfloat16")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--cache", metavar="DIR", help="folder that keeps embeddings for later")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Embed all cases; the summary goes to stdout.

    Raises:
        InputError: If nothing can be done at all: no scan, no weights, no place for the results.
    """
    from dinomed.cli.quiet import quiet

    with quiet():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    cases, refused = _find(arguments.inputs)
    if not cases:
        raise InputError("\ndinomed: ".join(refused))

    from dinomed.data.feature_cache import FeatureCache
    from dinomed.data.features import FeatureExtractor, FeatureSettings
    from dinomed.inferers.precision import PRECISIONS
    from dinomed.networks import create_backbone
    from dinomed.networks.backbone_specs import BACKBONES
    from dinomed.predictor import choose_device

    if arguments.backbone not in BACKBONES:
        raise InputError(f"there is no backbone {arguments.backbone!r}; take one of {', '.join(BACKBONES)}")
    if arguments.precision not in PRECISIONS:
        raise InputError(f"precision {arguments.precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    settings = FeatureSettings(
        arguments.pool, arguments.resize or None, arguments.stride, arguments.max_slices
    )  # refused here, before the weights are read
    cache = None if arguments.cache is None else FeatureCache(arguments.cache)
    device = choose_device(arguments.device)
    backbone = create_backbone(arguments.backbone, weights=arguments.weights)
    extractor = FeatureExtractor(backbone, settings, device, arguments.precision, arguments.batch_size)
    output = Path(arguments.output)
    failures = list(refused)
    for case in cases:
        try:
            print(json.dumps(embed_case(extractor, cache, case, output)), flush=True)
        except InputError as error:
            failures.append(str(error))
    for failure in failures:
        print(f"dinomed: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _find(inputs: list[str]) -> tuple[list[Case], list[str]]:
    """Scans and pictures among the inputs, with names of their own, and what is neither."""
    from dinomed.transforms.image_reading import IMAGE_SUFFIXES

    pictures = [given for given in inputs if given.lower().endswith(IMAGE_SUFFIXES)]
    scans = [given for given in inputs if given not in pictures]
    cases: list[Case] = []
    refused: list[str] = []
    for given, find in ((scans, find_cases), (pictures, find_picture_cases)):
        if given:
            found, wrong = find(given)
            cases += found
            refused += [each.reason for each in wrong]
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise InputError(
            "a scan and a picture share a name, so their results would too; embed them one after the other"
        )
    return cases, refused


def embed_case(extractor: FeatureExtractor, cache: FeatureCache | None, case: Case, output: Path) -> dict[str, object]:
    """Embed one scan or picture and write its folder.

    Returns:
        What summary.json holds.

    Raises:
        InputError: If the file cannot be read.
        OutputError: If the results cannot be written.
    """
    import numpy as np

    started = time.perf_counter()
    features = extractor.extract(case.path) if cache is None else cache.features(extractor, case.path)
    summary = {
        "case": case.name,
        "file": str(case.path),
        "slices": len(features.slices),
        "slice_axis": features.axis,
        "slice_channels": features.slices.shape[1],
        "volume_channels": len(features.volume),
        "seconds": round(time.perf_counter() - started, 3),
        **extractor.describe(),
    }
    folder = output / case.name
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "slice_embeddings": features.slices,
        "slice_indices": features.indices,
        "volume_embedding": features.volume,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            temporary = folder / f".{name}.tmp"
            with temporary.open("wb") as stream:
                np.save(stream, array)
            temporary.replace(folder / f"{name}.npy")
        temporary = folder / ".summary.tmp"
        temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        temporary.replace(folder / "summary.json")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); name another --output") from error
    return summary
