"""Dice of `mri_head_segmentation` on scans that its training never saw.

    python benchmarks/head_accuracy.py --label-maps FOLDER --template T1 --template-tissues LABELS

Two measurements: synthetic scans of the label maps kept out of training (`evaluating` of the bundle does the same), and
a T1-weighted template against its tissue labels (1 fluid, 2 grey matter, 3 white matter; they may lie on a finer grid).
The bundle does not divide cerebellum and brainstem into grey and white matter, so the tissues are compared outside of
these two labels; the comparison everywhere, with label 2 and 4 as grey and 3 as white matter, is printed beside it.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate

from dinomed import Predictor
from dinomed.data.synthetic_scans import SyntheticScans
from dinomed.metrics.overlap import confusion_matrix, dice_scores, group_confusion
from dinomed.transforms.label_grids import labels_on_grid
from dinomed.transforms.volumes import read_volume

BRAIN = [1, 2, 3, 4, 5, 6]


def synthetic_scores(predictor: Predictor, configs: Path, label_maps: Path, scans_per_map: int) -> None:
    """Print Dice on synthetic scans of the kept-out label maps."""
    parser = ConfigParser()
    parser.read_config([str(configs / "inference.yaml"), str(configs / "evaluate.yaml")])
    parser["dataset_dir"] = str(label_maps)
    parser["scans_per_map"] = scans_per_map
    data = parser.get_parsed_content("dataset#data")
    assert isinstance(data, SyntheticScans)
    transform = parser.get_parsed_content("dataset#transform")
    decide = parser.get_parsed_content("decide")
    inferer = parser.get_parsed_content("inferer")
    names = parser.get_parsed_content("label_names")
    rows = []
    for index in range(len(data)):
        item = transform(data[index])
        batch = list_data_collate([{"image": item["image"]}])
        item["pred"] = inferer(batch["image"].as_tensor().to(predictor.device), predictor.network)[0]
        labels = decide(item)["pred"]
        confusion = confusion_matrix(torch.as_tensor(labels), torch.as_tensor(item["label"]), len(names))
        scores = dice_scores(confusion)
        rest = [k for k in range(len(names)) if k not in BRAIN]
        brain = float(dice_scores(group_confusion(confusion, [rest, BRAIN]))[1])
        rows.append([brain, float(scores[1:7].nanmean()), *scores[1:].tolist()])
        print(f"{item['image'].meta['filename_or_obj']}: brain {brain:.3f}, mean of labels 1-6 {rows[-1][1]:.3f}")
    means = np.nanmean(np.array(rows), axis=0)
    print(f"\nsynthetic scans, {len(data.label_maps)} kept-out label maps, {len(rows)} scans, seed {data.seed}")
    for name, value in zip(["brain (labels 1-6)", "mean of labels 1-6", *names[1:]], means, strict=True):
        print(f"| {name} | {value:.3f} |")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks."""
    return float(2 * np.logical_and(one, other).sum() / max(1, one.sum() + other.sum()))


def template_scores(predictor: Predictor, scan: Path, tissues: Path) -> None:
    """Print Dice on a template against its tissue labels, on the template's grid."""
    prediction = predictor.segment(scan)
    labels = prediction.labels
    volume = read_volume(tissues)
    values = np.rint(volume.array).astype(np.uint8)
    reference = labels_on_grid(values, volume.affine, labels.shape, np.asarray(prediction.grid.affine))
    outside = ~np.isin(labels, (5, 6))
    grey, white = np.isin(labels, (2, 4)), labels == 3
    print(f"\n{scan.name} against {tissues.name}")
    print(f"| brain mask (labels 1-6 against > 0) | {dice(np.isin(labels, BRAIN), reference > 0):.3f} |")
    print(
        f"| white matter, outside cerebellum and brainstem | {dice(white & outside, (reference == 3) & outside):.3f} |"
    )
    print(f"| grey matter, outside cerebellum and brainstem | {dice(grey & outside, (reference == 2) & outside):.3f} |")
    print(f"| white matter, everywhere | {dice(white, reference == 3):.3f} |")
    print(f"| grey matter, everywhere | {dice(grey, reference == 2):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path(__file__).parents[1] / "bundles" / "mri_head_segmentation")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--label-maps", type=Path)
    parser.add_argument("--scans-per-map", type=int, default=4)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--template-tissues", type=Path)
    given = parser.parse_args()
    if given.label_maps is None and given.template is None:
        print("head_accuracy: nothing to measure; give --label-maps, or --template with --template-tissues")
        return
    predictor = Predictor.from_bundle(given.bundle, weights=given.weights)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"planes {', '.join(predictor.run.planes)}, precision {predictor.run.precision}")
    if given.template is not None:
        template_scores(predictor, given.template, given.template_tissues)
    if given.label_maps is not None:
        synthetic_scores(predictor, given.bundle / "configs", given.label_maps, given.scans_per_map)


if __name__ == "__main__":
    main()
