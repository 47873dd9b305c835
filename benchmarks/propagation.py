"""Dice of labels carried through volumes from 1, 3 or 5 drawn slices, beside ways without a network.

    python benchmarks/propagation.py --head-labels FOLDER --ct SCAN LABELS --output results.json

The baselines (`propagation_baselines.py`) copy the nearest drawn slice, interpolate the shape between drawn slices, or
carry labels by intensity alone; `plain` is our own method without the backbone's features. The data
(`propagation_cases.py`) are synthetic head scans of label maps kept out of training, and a CT with labels. Every
structure is propagated by itself ("single"), and all of them at once ("together"), each from its own slices. Means and
comparisons are of Dice on all slices that were not drawn; structures of at most 500 voxels count apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from propagation_baselines import BASELINES, Voting
from propagation_cases import Case, Labels, Mask, cases, draw_slices

from dinomed import Predictor
from dinomed.inferers.propagation import propagate
from dinomed.predictor.propagation import LabelPropagation

SMALL_VOXELS = 500
OURS, PLAIN = "ours", "plain"
_ENGINES: dict[str, LabelPropagation] = {}
Method = Callable[[Labels, int], Labels]
Row = dict[str, Any]


class Ours:
    """The package's propagation in one volume; features are computed at the first call along an axis and kept."""

    def __init__(self, case: Case, bundle: str) -> None:
        if bundle not in _ENGINES:
            _ENGINES[bundle] = LabelPropagation(Predictor.from_bundle(bundle)._segmentation())
        self.engine = _ENGINES[bundle]
        loaded = MetaTensor(torch.from_numpy(case.volume)[None], affine=torch.from_numpy(case.affine))
        self.image = self.engine.work.native_preprocessing(None)({"image": loaded}, start=1)["image"]
        self.key = case.name
        self.spacing_mm = [float(each) for each in case.spacing_mm]

    def __call__(self, drawn: Labels, axis: int) -> Labels:
        """Propagate the drawn labels, both (X, Y, Z) uint8."""
        return self.engine.carry(self.image, torch.from_numpy(drawn), axis, kept_as=self.key).labels.numpy()


class Plain(Ours):
    """The same without the backbone's features: what they are worth."""

    def __call__(self, drawn: Labels, axis: int) -> Labels:
        """Propagate the drawn labels, both (X, Y, Z) uint8."""
        x, y, z = self.spacing_mm
        return propagate(self.image.as_tensor()[0], torch.from_numpy(drawn), (x, y, z), axis).labels.numpy()


def make_method(name: str, case: Case, bundle: str) -> Method:
    """Return a method as a function of the drawn labels and the axis."""
    if name in (OURS, PLAIN):
        return (Ours if name == OURS else Plain)(case, bundle)
    baseline = BASELINES[name]
    return lambda drawn, axis: baseline(case.volume, drawn, axis, case.spacing_mm)


def dice(result: Mask, truth: Mask, axis: int, drawn: Sequence[int]) -> dict[str, float | None]:
    """Dice of two masks (X, Y, Z): on the slices that were not drawn, on all, and on those of the structure's extent.

    "rest" and "extent" leave out the drawn slices. A score is None where the structure has no voxel to find.
    """
    others = tuple({0, 1, 2} - {axis})
    both, found, real = (m.sum(axis=others, dtype=np.int64) for m in (result & truth, result, truth))
    rest = np.ones(len(real), bool)
    rest[list(drawn)] = False
    shown = np.flatnonzero(real)
    extent = rest.copy()
    extent[: shown[0]] = extent[shown[-1] + 1 :] = False
    scores: dict[str, float | None] = {}
    for name, part in (("rest", rest), ("all", np.ones_like(rest)), ("extent", extent)):
        size = found[part].sum() + real[part].sum()
        scores[name] = float(2 * both[part].sum() / size) if real[part].any() else None
    return scores


def measure(
    case: Case, methods: dict[str, Method], counts: Sequence[int], axis: int, modes: Sequence[str]
) -> list[Row]:
    """Propagate every structure of one volume by each method and score it."""
    rows = []
    for count, mode, labels in _runs(case, counts, modes):
        drawn, slices = draw_slices(case.truth, labels, axis, count)
        for method, carry in methods.items():
            started_s = time.perf_counter()
            result = carry(drawn, axis)
            seconds = (time.perf_counter() - started_s) / len(labels)
            assert result.shape == case.truth.shape
            for label in labels:
                truth = case.truth == label
                rows.append(
                    {
                        "case": case.name,
                        "mode": mode,
                        "slices": count,
                        "method": method,
                        "label": label,
                        "structure": case.structures[label],
                        "voxels": int(truth.sum()),
                        "drawn": slices[label],
                        "dice": dice(result == label, truth, axis, slices[label]),
                        "seconds": seconds,
                    }
                )
    return rows


def _runs(case: Case, counts: Sequence[int], modes: Sequence[str]) -> Iterator[tuple[int, str, list[int]]]:
    """Yield (slices, mode, labels drawn together)."""
    for count in counts:
        if "single" in modes:
            for label in case.structures:
                yield count, "single", [label]
        if "together" in modes:
            yield count, "together", list(case.structures)


def _group(row: Row) -> str:
    """What is averaged: the heads of one form, or one volume."""
    return f"heads {row['case'].split('_')[-1]}" if row["case"].startswith("head") else row["case"]


def _by_method(rows: Sequence[Row]) -> list[dict[str, Row]]:
    """Collect what the methods gave for the same structure from the same slices, where there is a score."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if row["dice"]["rest"] is not None:
            key = (row["case"], row["mode"], row["slices"], row["label"])
            found.setdefault(key, {})[row["method"]] = row
    return list(found.values())


def print_means(rows: Sequence[Row], methods: Sequence[str]) -> None:
    """Print mean Dice on the slices that were not drawn, on all slices in brackets."""
    for small in (False, True):
        chosen = [row for row in rows if (row["voxels"] <= SMALL_VOXELS) == small and row["dice"]["rest"] is not None]
        keys = list(dict.fromkeys((_group(row), row["mode"], row["slices"]) for row in chosen))
        if keys:
            print(f"\nstructures of {'at most' if small else 'more than'} {SMALL_VOXELS} voxels: mean Dice on the "
                  "slices not drawn (on all slices; seconds per structure)")  # fmt: skip
            print("| data | run | slices | structures | " + " | ".join(methods) + " |")
            print("|---|---|---|---|" + "---|" * len(methods))
        for key in keys:
            cells = []
            for method in methods:
                those = [r for r in chosen if (_group(r), r["mode"], r["slices"], r["method"]) == (*key, method)]
                rest, full = (statistics.fmean(r["dice"][name] for r in those) for name in ("rest", "all"))
                cells.append(f"{rest:.3f} ({full:.3f}; {statistics.fmean(r['seconds'] for r in those):.2f} s)")
            print(f"| {key[0]} | {key[1]} | {key[2]} | {len(those)} | " + " | ".join(cells) + " |")


def print_comparison(rows: Sequence[Row], methods: Sequence[str]) -> None:
    """Print how often our method beats each baseline, and every structure where it does not."""
    groups = [g for g in _by_method(rows) if OURS in g and next(iter(g.values()))["voxels"] > SMALL_VOXELS]
    baselines = [method for method in methods if method != OURS]
    if not groups or not baselines:
        return
    print(f"\nstructures of more than {SMALL_VOXELS} voxels in which ours has the higher Dice on the slices not drawn")
    print("| data | run | slices | " + " | ".join(baselines) + " |")
    print("|---|---|---|" + "---|" * len(baselines))
    for key in dict.fromkeys((_group(g[OURS]), g[OURS]["mode"], g[OURS]["slices"]) for g in groups):
        those = [g for g in groups if (_group(g[OURS]), g[OURS]["mode"], g[OURS]["slices"]) == key]
        cells = []
        for method in baselines:
            wins = sum(g[OURS]["dice"]["rest"] > g[method]["dice"]["rest"] for g in those)
            cells.append(f"{wins} of {len(those)}")
        print(f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(cells) + " |")
    print("\nwhere it has not:\n| volume | run | slices | structure | not better than | " + " | ".join(methods) + " |")
    print("|---|---|---|---|---|" + "---|" * len(methods))
    for group in groups:
        row = group[OURS]
        losses = [m for m in baselines if group[m]["dice"]["rest"] >= row["dice"]["rest"]]
        if losses:
            values = " | ".join(f"{group[m]['dice']['rest']:.3f}" for m in methods)
            start = f"| {row['case']} | {row['mode']} | {row['slices']} | {row['structure']} "
            print(f"{start}| {', '.join(losses)} | {values} |")


def _about(given: argparse.Namespace) -> dict[str, Any]:
    """Say what was measured and how."""
    return {
        "command": shlex.join(["python", "benchmarks/propagation.py", *sys.argv[1:]]),
        "head_maps": list(given.maps) if given.head_labels else [],
        "forms": list(given.forms),
        "ct": given.ct[0].name if given.ct else None,
        "seed": given.seed,
        "axis": given.axis,
        "machine": platform.processor() or platform.machine(),
        "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "intensity": vars(Voting()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-labels", type=Path, help="folder of label maps training_seg_NN.nii.gz")
    parser.add_argument("--maps", type=int, nargs="+", default=[15, 16], help="numbers of those drawn as scans")
    parser.add_argument("--forms", nargs="+", choices=["1mm", "3mm"], default=["1mm", "3mm"])
    parser.add_argument("--ct", type=Path, nargs=2, metavar=("SCAN", "LABELS"))
    parser.add_argument("--bundle", default="mri_head_segmentation", help="whose backbone ours takes")
    parser.add_argument("--methods", default="copy,shape,intensity,plain,ours", help="any of them, separated by commas")
    parser.add_argument("--modes", nargs="+", choices=["single", "together"], default=["single", "together"])
    parser.add_argument("--slices", type=int, nargs="+", default=[1, 3, 5], help="drawn slices of each structure")
    parser.add_argument("--axis", type=int, choices=[0, 1, 2], default=2, help="0 sagittal, 1 coronal, 2 axial")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic scans")
    parser.add_argument("--output", type=Path, help="JSON with every score")
    given = parser.parse_args()
    methods = given.methods.split(",")
    if unknown := set(methods) - {*BASELINES, OURS, PLAIN}:
        parser.error(
            f"methods {', '.join(sorted(unknown))} are unknown; choose from {', '.join([*BASELINES, OURS, PLAIN])}"
        )
    if given.head_labels is None and given.ct is None:
        print("propagation: nothing to measure; give --head-labels, or --ct with its labels")
        return
    about, rows = _about(given), []
    for case in cases(given.head_labels, given.ct, given.maps, given.seed, given.forms):
        started_s = time.perf_counter()
        rows += measure(
            case, {m: make_method(m, case, given.bundle) for m in methods}, given.slices, given.axis, given.modes
        )
        size = " x ".join(str(n) for n in case.volume.shape)
        print(f"{case.name}: {size} voxels, {len(case.structures)} structures, "
              f"{time.perf_counter() - started_s:.0f} s", file=sys.stderr)  # fmt: skip
        if given.output is not None:
            given.output.write_text(json.dumps({"about": about, "scores": rows}, indent=1))
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print_means(rows, methods)
    print_comparison(rows, methods)


if __name__ == "__main__":
    main()
