"""Running the haemorrhage bundle's configurations in-process with a tiny backbone and tiny CTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from head_bundle import make_workflow
from head_bundle import run as run_configs
from series_tables import LABELS, row_of, write_ct, write_table

from dinomed.networks import create_backbone

ROOT = Path(__file__).resolve().parents[1] / "bundles" / "ct_hemorrhage_classification"
TINY_BACKBONE: dict[str, Any] = {"backbone#embed_dim": 32, "backbone#depth": 1, "backbone#num_heads": 2}
TINY: dict[str, Any] = {
    **TINY_BACKBONE,
    "precision": "float32",
    "resize": 32,
    "features": "patch",  # the class token of random weights hardly changes from scan to scan
    "pooling": "attention",
    "hidden_features": 16,
    "attention_features": 8,
    "device": "cpu",
}
TINY_TRAINING: dict[str, Any] = {
    **TINY,
    "batch_size": 8,
    "max_epochs": 12,
    "learning_rate": 2.0e-2,
    "tensorboard": False,
}


def write_backbone(path: Path, seed: int = 0) -> Path:
    """Write a tiny backbone with random weights that are nowhere zero."""
    torch.manual_seed(seed)
    backbone = create_backbone("dinov3_vit_tiny16", embed_dim=32, depth=1, num_heads=2)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    torch.save(backbone.state_dict(), path)
    return path


def write_series(folder: Path, count: int = 36, name: str = "", **more: Any) -> Path:
    """Write CTs, every second one with a bright square, and their table; epidural or subdural by turns.

    Studies of another `name` are others.
    """
    rows = []
    for k in range(count):
        bleeds = k % 2
        write_ct(folder / f"{k}.nii", k, 40.0 * bleeds, shape=(16, 20, 3 + k % 3))
        labels = [0] * len(LABELS)
        if bleeds:
            labels[0] = labels[1 if k % 4 == 1 else 5] = 1
        rows.append({**row_of(str(k), labels), "study_uid": f"study {name}{k}", **more})
    return write_table(folder / "series.csv", rows)


def workflow(configs: list[str], run_id: str = "run", **settings: Any) -> Any:
    return make_workflow(configs, run_id, **{"root": ROOT, **settings})


def run(configs: list[str], run_id: str = "run", **settings: Any) -> Any:
    return run_configs(configs, run_id, **{"root": ROOT, **settings})


def root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
