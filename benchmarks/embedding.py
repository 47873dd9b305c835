"""Slice embeddings: dinomed against Hugging Face transformers' DINOv3 on the same weights, in one run, interleaved.

Both embed the same normalised slices (B, 3, 224, 224) to class tokens; transformers in its default float32, ours as
`dinomed embed` does on this machine. Weights are random, of the named size, and copied from one to the other; before
the timing the two are compared, and the lowest cosine similarity of their class tokens is printed. Medians over rounds.

    python benchmarks/embedding.py --threads 2 --rounds 7
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from dinomed.data.features import FeatureExtractor, FeatureSettings
from dinomed.networks import create_backbone

SIZES = {
    "dinov3_vits16": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "dinov3_vitb16": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}


def make_pair(name: str, batch_size: int, precision: str) -> tuple[DINOv3ViTModel, FeatureExtractor]:
    """Make transformers' model with weights that are nowhere zero, and ours from its file."""
    torch.manual_seed(0)
    theirs = DINOv3ViTModel(DINOv3ViTConfig(num_hidden_layers=12, num_register_tokens=4, **SIZES[name])).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = create_backbone(name, weights=Path(folder))
    return theirs, FeatureExtractor(ours, FeatureSettings(), precision=precision, batch_size=batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backbones", default=",".join(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads, load {os.getloadavg()[0]:.1f}"
    print(f"torch {torch.__version__}, {machine}, batches of {options.batch} slices of 224 x 224")
    print(f"{'backbone':16}{'ours in':>10}{'theirs /s':>11}{'ours /s':>9}{'ratio':>7}{'cosine':>10}")
    for name in options.backbones.split(","):
        theirs, ours = make_pair(name, options.batch, options.precision)
        batch = torch.randn(options.batch, 3, 224, 224)

        def run_theirs(model: DINOv3ViTModel = theirs, batch: torch.Tensor = batch) -> np.ndarray:
            with torch.inference_mode():
                return model(pixel_values=batch).pooler_output.numpy()

        def run_ours(extractor: FeatureExtractor = ours, batch: torch.Tensor = batch) -> np.ndarray:
            return extractor.embed(batch)

        a, b = run_theirs(), run_ours()
        cosine = float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
        times: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(options.rounds):
            for key, run in (("theirs", run_theirs), ("ours", run_ours)):
                started = time.perf_counter()
                run()
                times[key].append(time.perf_counter() - started)
        ratio = statistics.median(x / y for x, y in zip(times["theirs"], times["ours"], strict=True))
        rates = [options.batch / statistics.median(times[key]) for key in ("theirs", "ours")]
        dtype = str(ours.dtype).removeprefix("torch.")
        print(f"{name:16}{dtype:>10}{rates[0]:11.1f}{rates[1]:9.1f}{ratio:7.2f}{cosine:10.6f}", flush=True)


if __name__ == "__main__":
    main()
