"""Running the bundles for photographs in-process, with tiny networks and tiny data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from photo_sets import ADE_NAMES, COCO_NAMES, make_ade_scenes, make_coco_scenes

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
NAMES = ("ade20k_segmentation", "coco_segmentation")
CLASSES = {"ade20k_segmentation": ADE_NAMES, "coco_segmentation": COCO_NAMES}
MAKERS = {"ade20k_segmentation": make_ade_scenes, "coco_segmentation": make_coco_scenes}

TINY_NETWORK: dict[str, Any] = {
    "backbone_name": "dinov3_vit_tiny16",
    "backbone#embed_dim": 64,
    "backbone#depth": 4,
    "backbone#num_heads": 2,
    "networks#dpt#decoder#features": 16,
    "networks#dpt#decoder#project_channels": [16, 16, 16, 16],
    "precision": "float32",
    "shorter_side": 48,
}
TINY_TRAINING: dict[str, Any] = {
    **TINY_NETWORK,
    "crop_size": [48, 48],
    "pictures_per_batch": 2,
    "steps_per_epoch": 3,
    "max_epochs": 2,
    "warmup_steps": 1,
    "learning_rate": 3.0e-3,
    "backbone_learning_rate": 1.0e-3,
    "val_interval": 1,
    "num_workers": 0,
}


def make_workflow(bundle: str, configs: Sequence[str], run_id: str, **settings: Any) -> ConfigWorkflow:
    """Read configurations of a bundle, later ones over earlier ones, with settings by id."""
    root = BUNDLES / bundle
    names = {} if "label_names" in settings else {"label_names": CLASSES[bundle]}
    files = [name if name.endswith(".yaml") else str(root / "configs" / f"{name}.yaml") for name in configs]
    return ConfigWorkflow(
        config_file=files,
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train" if "train" in configs else "infer",
        run_id=run_id,
        **{"bundle_root": str(root), **names, **settings},
    )


def run(bundle: str, configs: Sequence[str], run_id: str, **settings: Any) -> ConfigWorkflow:
    """Run configurations from beginning to end."""
    workflow = make_workflow(bundle, configs, run_id, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow
