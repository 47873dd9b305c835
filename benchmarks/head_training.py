"""An epoch of training a head from cached embeddings against one from the images themselves, in one run, interleaved.

Both train the same head (gated attention, 256 hidden features, AdamW, batches of 64 series) on the same synthetic
head-like CTs. From images every series is read and embedded again in every epoch, as where a backbone stands in the
training loop. From the cache it was embedded once: an epoch takes its bags from memory; the time to fill the memory
from the cache on disk, once in a run, stands beside it. Weights of the backbone are random, of the named size: they
take the same time. Medians over rounds; wanted is a ratio of at least 50.

    python benchmarks/head_training.py --backbones dinov3_vit_tiny16 --threads 1 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch

from dinomed.data.embedded_series import EmbeddedSeries, EmbedSeriesd, collate_bags
from dinomed.data.features import FeatureExtractor, FeatureSettings, windows_for
from dinomed.networks import create_backbone
from dinomed.networks.bags import BagHead

WANTED = 50


def write_scans(folder: Path, series: int, slices: int, side: int, seed: int) -> list[dict[str, object]]:
    """Write CTs of an ellipsoid of brain in a shell of bone, half of them with a denser lump."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, count) for count in (side, side, slices)), indexing="ij")
    radius = np.sqrt(sum((axis / extent) ** 2 for axis, extent in zip(axes, (0.7, 0.85, 1.1), strict=True)))
    items: list[dict[str, object]] = []
    for k in range(series):
        values = np.where(radius < 1, np.where(radius < 0.9, 35.0, 1000.0), -1000.0)
        values[side // 3 : side // 2, side // 3 : side // 2, slices // 2] += 30.0 * (k % 2)
        values += generator.normal(0, 5, values.shape)
        path = folder / f"{k}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([0.5, 0.5, 5.0, 1.0])), path)
        items.append({"image": str(path), "label": [float(k % 2)] * 6, "case": str(k)})
    return items


def train_epoch(head: BagHead, optimizer: torch.optim.Optimizer, items: list[dict], batch_size: int = 64) -> None:
    """Train on all items once."""
    loss_function = torch.nn.BCEWithLogitsLoss()
    for first in range(0, len(items), batch_size):
        batch = collate_bags(items[first : first + batch_size])
        optimizer.zero_grad()
        loss_function(head(batch["image"], batch["valid"]), batch["label"]).backward()
        optimizer.step()


def seconds(work: Callable[[], object]) -> float:
    """Time a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(name: str, items: list[dict[str, object]], folder: Path, options: argparse.Namespace) -> float:
    """Print one row and return the ratio."""
    torch.manual_seed(options.seed)
    backbone = create_backbone(name)
    settings = FeatureSettings("cls", 224, windows_hu=windows_for(name))
    extractor = FeatureExtractor(backbone, settings, precision=options.precision)
    plain, cached = EmbedSeriesd("image", extractor), EmbedSeriesd("image", extractor, folder / name)
    filling = seconds(lambda: EmbeddedSeries(items, cached))
    memory = EmbeddedSeries(items, cached).items
    head = BagHead(memory[0]["image"].shape[1], 6)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
    train_epoch(head, optimizer, memory)  # what is made at the first step is no part of an epoch
    times: dict[str, list[float]] = {"images": [], "disk": [], "memory": []}
    for _ in range(options.rounds):
        times["images"].append(seconds(lambda: train_epoch(head, optimizer, EmbeddedSeries(items, plain).items)))
        times["disk"].append(seconds(lambda: EmbeddedSeries(items, cached)))
        times["memory"] += [seconds(lambda: train_epoch(head, optimizer, memory)) for _ in range(5)]
    images, disk, epoch = (statistics.median(times[key]) for key in ("images", "disk", "memory"))
    dtype = str(extractor.dtype).removeprefix("torch.")
    print(
        f"{name:20}{dtype:>10}{filling:12.2f}{images:12.3f}{disk:12.4f}{epoch:12.5f}{images / epoch:10.0f}"
        f"{images / (disk + epoch):14.0f}",
        flush=True,
    )
    return images / epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="dinov3_vit_tiny16")
    parser.add_argument("--series", type=int, default=6)
    parser.add_argument("--slices", type=int, default=30)
    parser.add_argument("--side", type=int, default=256, help="rows and columns of a slice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        items = write_scans(Path(folder), options.series, options.slices, options.side, options.seed)
        machine = f"{platform.processor() or platform.machine()}, {options.threads} threads"
        print(f"torch {torch.__version__}, {machine}, load {os.getloadavg()[0]:.1f}, seed {options.seed}")
        print(
            f"{options.series} synthetic CTs of {options.side} x {options.side} x {options.slices}, slices resized to "
            f"224, medians of {options.rounds} rounds; seconds of one epoch"
        )
        columns = (
            f"{'backbone':20}{'precision':>10}{'fill cache':>12}{'images':>12}{'from disk':>12}{'from memory':>12}"
        )
        print(f"{columns}{'ratio':>10}{'ratio of disk':>14}")
        ratios = [measure(name, items, Path(folder), options) for name in options.backbones.split(",")]
        print(f"lowest ratio {min(ratios):.0f}, wanted {WANTED}: {'reached' if min(ratios) >= WANTED else 'missed'}")


if __name__ == "__main__":
    main()
