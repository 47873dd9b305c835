"""A small but whole bundle with random weights, and small scans for it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import torch

NAME = "tiny_segmentation"
LABELS = ["background", "shell", "core"]

INFERENCE = """
imports:
- $import torch
- $import monai
- $import dinomed.bundle.running as running

bundle_root: .
dataset_dir: $@bundle_root + '/scans'
input: '@dataset_dir'
output_dir: $@bundle_root + '/predictions'
ckpt_path: $@bundle_root + '/models/model.pt'
device: $torch.device('cpu')
precision: float32
planes: [axial, coronal, sagittal]
batch_size: 4
frame: null
class_groups: null
overwrite: true
label_names: [background, shell, core]
spacing_mm: 2.0

network_def:
  _target_: torch.nn.Conv2d
  in_channels: 3
  out_channels: 3
  kernel_size: 3
  padding: 1
network:
  _target_: dinomed.bundle.checkpoint.load_network
  network: '@network_def'
  path: '@ckpt_path'
  device: '@device'
preprocessing:
  _target_: Compose
  transforms:
  - _target_: dinomed.transforms.volumes.LoadVolumed
    keys: image
    frame: '@frame'
  - _target_: dinomed.transforms.geometry.ToNetworkGridd
    keys: image
    spacing_mm: '@spacing_mm'
  - _target_: dinomed.transforms.intensity.NormalisePercentilesd
    keys: image
  - _target_: dinomed.transforms.intensity.FixedGammad
    keys: image
    gamma: 0.75
inferer:
  _target_: dinomed.inferers.slices.SliceInferer
  planes: '@planes'
  neighbours: 1
  batch_size: '@batch_size'
  precision: '@precision'
decide:
  _target_: dinomed.transforms.labels.LabelsToNativeGridd
  keys: pred
  image_key: image
  class_groups: '@class_groups'
save:
  _target_: dinomed.transforms.results.SaveSegmentationd
  keys: pred
  image_key: image
  output_dir: '@output_dir'
  label_names: '@label_names'
  bundle_name: tiny_segmentation
  bundle_version: '$running.bundle_version(@bundle_root)'
  preprocessing_summary: '@preprocessing'
  inference_summary: ['@inferer', '@decide']
  weights_path: '@ckpt_path'
  device: '@device'
  precision: '@precision'
  planes: '@planes'
  class_groups: '@class_groups'
  frame: '@frame'
  stage_times: '@stage_times'
  overwrite: '@overwrite'
postprocessing:
  _target_: Compose
  transforms: ['@decide', '@save']
dataset:
  _target_: Dataset
  data: '$running.list_cases(@input, @output_dir)'
  transform: '@preprocessing'
dataloader:
  _target_: torch.utils.data.DataLoader
  dataset: '@dataset'
  batch_size: 1
  collate_fn: $monai.data.list_data_collate
stage_times:
  _target_: dinomed.handlers.timings.StageTimes
handlers: ['@stage_times']
evaluator:
  _target_: SupervisedEvaluator
  device: '@device'
  val_data_loader: '@dataloader'
  network: '@network'
  inferer: '@inferer'
  postprocessing: '@postprocessing'
  val_handlers: '@handlers'
initialize: []
run:
- $@evaluator.run()
finalize: []
inferring: ['$@initialize', '$@run']
"""

BRAIN = """
class_groups: [[0], [1, 2]]
label_names: [background, all]
"""

TRAIN = """
imports:
- $import torch
- $import monai
bundle_root: .
dataset_dir: $@bundle_root + '/scans'
output_file: $@bundle_root + '/trained.txt'
device: $torch.device('cpu')
max_epochs: 2
network_def:
  _target_: torch.nn.Conv2d
  in_channels: 3
  out_channels: 3
  kernel_size: 3
  padding: 1
train:
  dataset:
    _target_: Dataset
    data: '$[{"image": torch.rand(3, 8, 8), "label": torch.rand(3, 8, 8)} for _ in range(2)]'
  dataloader:
    _target_: torch.utils.data.DataLoader
    dataset: '@train#dataset'
  inferer:
    _target_: SimpleInferer
  trainer:
    _target_: SupervisedTrainer
    max_epochs: '@max_epochs'
    device: '@device'
    train_data_loader: '@train#dataloader'
    network: '@network_def'
    optimizer: '$torch.optim.SGD(@network_def.parameters(), 0.1)'
    loss_function: '$torch.nn.MSELoss()'
    inferer: '@train#inferer'
initialize: []
run:
- $@train#trainer.run()
- $open(@output_file, 'w').write(str(@train#trainer.state.epoch))
finalize: []
training: ['$@initialize', '$@run']
"""

EVALUATE = """
output_file: $@bundle_root + '/evaluated.txt'
postprocessing:
  _target_: Compose
  transforms: ['@decide']
run:
- $@evaluator.run()
- $open(@output_file, 'w').write(str(len(@dataset)))
evaluating: ['$@initialize', '$@run']
"""


def metadata() -> dict:
    tensor = {
        "format": "hounsfield",
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
    }
    return {
        "schema": "https://example.org/schema.json",
        "version": "0.2.0",
        "changelog": {"0.2.0": "first"},
        "monai_version": "1.4.0",
        "pytorch_version": "2.0.0",
        "numpy_version": "1.26.0",
        "required_packages_version": {"nibabel": "5.0.0", "dinomed": "0.1.0"},
        "task": "Two shapes",
        "description": "A network of random weights for tests",
        "authors": "nobody",
        "copyright": "nobody",
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "type": "image",
                    "modality": "MR",
                    "num_channels": 3,
                    "spatial_shape": ["16*n", "*"],
                    "channel_def": {"0": "slice before", "1": "slice", "2": "slice after"},
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "type": "logits",
                    "num_channels": 3,
                    "spatial_shape": ["16*n", "*"],
                    "channel_def": {str(value): name for value, name in enumerate(LABELS)},
                }
            },
        },
    }


def make_bundle(folder: Path) -> Path:
    """Write the bundle below a folder and return its own folder."""
    root = folder / NAME
    for name in ("configs", "docs", "models", "scans"):
        (root / name).mkdir(parents=True)
    (root / "LICENSE").write_text("Apache-2.0\n")
    (root / "docs" / "README.md").write_text("# Tiny\n")
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata()))
    for name, text in (("inference", INFERENCE), ("train", TRAIN), ("brain", BRAIN), ("evaluate", EVALUATE)):
        (root / "configs" / f"{name}.yaml").write_text(text)
    torch.save(make_state(), root / "models" / "model.pt")
    return root


def make_state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 3, 3, 3, generator=generator),
        "bias": torch.tensor([0.5, 0.0, -0.5]),
    }


def make_scan(path: Path, seed: int = 0, shape: tuple[int, ...] = (20, 18, 14)) -> Path:
    """Write an oblique, anisotropic scan whose axes point left, up and to the front."""
    generator = np.random.default_rng(seed)
    values = generator.random(shape, dtype=np.float32) * 50
    values[4:15, 4:14, 3:11] += 200
    values[7:12, 7:11, 5:9] += 300
    affine = np.array([[-1.5, 0.1, 0.0, 12], [0.05, 0.2, 3.0, -20], [0.0, 1.7, -0.3, 5], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1, strip_shears=True)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path
