"""Whether `ct_organ_segmentation` learns one labelled scan by heart, and gives its labels back on the scan's own grid.

This is a test of the machinery on training data; it says nothing about other scans.

python benchmarks/ct_overfit.py --image CT.nii.gz --labels LABELS.nii.gz [--weights best.pt] [--set ID=VALUE ...]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from dinomed.bundle.program import run_program
from dinomed.cli.train import read_settings

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "ct_organ_segmentation"
WANTED_DICE = 0.9
LEAST_VOXELS = 500


def same_grid(one: Any, other: Any) -> list[str]:
    """Return what differs between the grids of two NIfTI images; nothing if all is well."""
    pairs = {
        "shape": (one.shape, other.shape),
        "affine": (one.affine.tolist(), other.affine.tolist()),
        "sform code": (int(one.header["sform_code"]), int(other.header["sform_code"])),
        "qform code": (int(one.header["qform_code"]), int(other.header["qform_code"])),
        "units": (one.header.get_xyzt_units(), other.header.get_xyzt_units()),
    }
    return [f"{name}: {a} and {b}" for name, (a, b) in pairs.items() if a != b]


def measure(prediction: Path, image: Path, labels: Path) -> bool:
    """Print Dice of all large labels, and say whether they and the grid are as they should be."""
    given, scan, reference = (nibabel.load(path) for path in (prediction, image, labels))
    differences = same_grid(given, scan)
    print("grid:", "; ".join(differences) or "that of the scan")
    found, wanted = (np.asanyarray(each.dataobj) for each in (given, reference))
    names = _label_names()
    scores = {}
    for label, voxels in zip(*np.unique(wanted, return_counts=True), strict=True):
        if label and voxels > LEAST_VOXELS:
            both = (found == label).sum() + voxels
            scores[int(label)] = 2 * ((found == label) & (wanted == label)).sum() / both
            print(f"{label:4d} {names[int(label)]:28s} {voxels:7d} voxels  Dice {scores[int(label)]:.3f}")
    mean, least = np.mean(list(scores.values())), min(scores.values())
    print(f"{len(scores)} labels of more than {LEAST_VOXELS} voxels: mean Dice {mean:.3f}, lowest {least:.3f}")
    return bool(mean >= WANTED_DICE) and not differences


def _label_names() -> list[str]:
    from dinomed.bundle.config import config_file, load_config

    return list(load_config(config_file(BUNDLE, "inference"))["label_names"])


def main() -> int:
    """Train, segment, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="measure these instead of training")
    parser.add_argument("--output", type=Path, help="folder of the run and of the label map; a temporary one if absent")
    parser.add_argument("--set", action="append", default=[], metavar="ID=VALUE", dest="settings")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = read_settings(arguments.settings)
    with tempfile.TemporaryDirectory() as temporary:
        output = arguments.output or Path(temporary)
        weights = arguments.weights
        if weights is None:
            start = time.monotonic()
            data = {"images": str(arguments.image), "labels": str(arguments.labels), "output_dir": str(output / "run")}
            run_program(BUNDLE, ["train"], "training", {**settings, **data})
            print(f"trained in {(time.monotonic() - start) / 60:.1f} minutes")
            weights = output / "run" / "best.pt"
        shared = {key: value for key, value in settings.items() if key in ("network_def", "planes", "spacing_mm")}
        files = {"input": str(arguments.image), "output_dir": str(output / "labels"), "ckpt_path": str(weights)}
        run_program(BUNDLE, ["inference"], "inferring", {**shared, **files})
        (prediction,) = (output / "labels").glob("*_seg.nii.gz")
        return 0 if measure(prediction, arguments.image, arguments.labels) else 1


if __name__ == "__main__":
    sys.exit(main())
