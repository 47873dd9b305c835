"""The adapter against published numbers, and as a backbone among backbones."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dinomed.networks.adapter import DINOv3Adapter
from dinomed.networks.backbones import Backbone

RENAMED = {
    "spm.stem.0": "spatial_prior.stem.0.0",
    "spm.stem.1": "spatial_prior.stem.0.1",
    "spm.stem.3": "spatial_prior.stem.1.0",
    "spm.stem.4": "spatial_prior.stem.1.1",
    "spm.stem.6": "spatial_prior.stem.2.0",
    "spm.stem.7": "spatial_prior.stem.2.1",
    "spm.conv2": "spatial_prior.stages.0",
    "spm.conv3": "spatial_prior.stages.1",
    "spm.conv4": "spatial_prior.stages.2",
    "spm.fc1": "spatial_prior.projections.0",
    "spm.fc2": "spatial_prior.projections.1",
    "spm.fc3": "spatial_prior.projections.2",
    "spm.fc4": "spatial_prior.projections.3",
    "interactions.0.extractor": "extractors.0",
    "interactions.1.extractor": "extractors.1",
    "interactions.2.extractor": "extractors.2",
    "interactions.3.extractor": "extractors.3",
    "interactions.3.extra_extractors.0": "extractors.4",
    "interactions.3.extra_extractors.1": "extractors.5",
    "norm1": "norms.0",
    "norm2": "norms.1",
    "norm3": "norms.2",
    "norm4": "norms.3",
    "level_embed": "level_embedding",
    ".attn.": ".attention.",
    "feat_norm": "feature_norm",
    "dwconv.dwconv": "dwconv",
}


class StandInViT(Backbone):
    """Four maps at stride 16, each a patch embedding of its own."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.channels = [width] * 4
        self.strides = [16] * 4
        self.multiple = 16
        self.embeddings = nn.ModuleList(nn.Conv2d(3, width, kernel_size=16, stride=16) for _ in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [embed(image) for embed in self.embeddings]


def reference_state(arrays: dict[str, Tensor], renamed: dict[str, str]) -> dict[str, Tensor]:
    state = {}
    for key, array in arrays.items():
        if key.startswith("param."):
            name = key.removeprefix("param.")
            for theirs, ours in renamed.items():
                name = name.replace(theirs, ours)
            state[name] = array
    return state


def test_adapter_matches_the_published_numbers(golden_dir: Path) -> None:
    arrays = load_file(golden_dir / "dinov3_adapter.safetensors")
    adapter = DINOv3Adapter(StandInViT(), stem_width=16, num_heads=4).eval()
    state = reference_state(arrays, RENAMED)
    missing, unexpected = adapter.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    token_maps = [arrays[f"input.tokens.{i}"].transpose(1, 2).reshape(2, 64, 6, 8) for i in range(4)]
    with torch.no_grad():
        maps = adapter.fuse(arrays["input.image"], token_maps)
    for i, ours in enumerate(maps):
        expected = arrays[f"output.{i + 1}"]
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()
