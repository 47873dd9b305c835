"""Running the head MRI bundle's configurations in-process with a tiny network and tiny heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "mri_head_segmentation"

TINY_NETWORK: dict[str, Any] = {
    "backbone#embed_dim": 64,
    "backbone#depth": 4,
    "backbone#num_heads": 2,
    "network_def#decoder#decoder_channels": [24, 16, 12, 8],
    "network_def#decoder#fine_channels": [8, 4],
}
TINY_TRAINING: dict[str, Any] = {
    **TINY_NETWORK,
    "precision": "float32",
    "slices_per_batch": 4,
    "slice_sizes": [48],
    "steps_per_epoch": 5,
    "max_epochs": 4,
    "warmup_steps": 2,
    "learning_rate": 5.0e-3,
    "val_interval": 1,
    "validation_maps": ["training_seg_03.nii.gz"],
    "validation_items": 2,
    "validate#dataset#sizes": [48],
    "num_workers": 0,
}
TINY_EVALUATION: dict[str, Any] = {
    **TINY_NETWORK,
    "precision": "float32",
    "spacing_mm": 2.0,
    "batch_size": 32,
    "planes": ["axial"],
    "validation_maps": ["training_seg_03.nii.gz"],
}


def make_workflow(configs: Sequence[str], run_id: str = "run", root: Path = BUNDLE, **settings: Any) -> ConfigWorkflow:
    """Read configurations of the bundle, later ones over earlier ones, with settings by id."""
    return ConfigWorkflow(
        config_file=[str(root / "configs" / f"{name}.yaml") for name in configs],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train" if "train" in configs else "infer",
        run_id=run_id,
        **{"bundle_root": str(root), **settings},
    )


def run(configs: Sequence[str], run_id: str = "run", **settings: Any) -> ConfigWorkflow:
    """Run configurations from beginning to end."""
    workflow = make_workflow(configs, run_id, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def as_arguments(settings: dict[str, Any]) -> list[str]:
    """Write settings as a user types them behind `python -m monai.bundle run`."""
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]
