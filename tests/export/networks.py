"""Small networks whose parameters are all drawn, so that no part of them is idle when exports are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinomed.networks import DINOv3Adapter, Segmenter, create_backbone
from dinomed.networks.backbones import Backbone
from dinomed.networks.decoders import UNetDecoder, UNetFullDecoder


class Patches(Backbone):
    """The smallest backbone that an adapter takes: four convolutions of 16x16 patches."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.channels, self.strides, self.multiple = [width] * 4, [16] * 4, 16
        self.convs = nn.ModuleList(nn.Conv2d(3, width, kernel_size=16, stride=16) for _ in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [conv(image) for conv in self.convs]


def drawn(network: nn.Module) -> nn.Module:
    """Draw biases, running statistics and the weights that start at zero; in eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            noise = 0.3 * torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + noise.abs())
            elif name.endswith(("running_mean", "bias")) or "sampling_offsets" in name or "attention_weights" in name:
                tensor.add_(noise)
    return network.eval()


def make_adapter(extractors: int = 4) -> DINOv3Adapter:
    torch.manual_seed(0)
    adapter = DINOv3Adapter(Patches(), stem_width=8, num_heads=2, num_points=3, num_extra_extractors=0)
    del adapter.extractors[extractors:]
    adapter.taps = adapter.taps[:extractors]
    return drawn(adapter)


def make_vit_segmenter() -> nn.Module:
    torch.manual_seed(0)
    backbone = create_backbone("dinov3_vit_tiny16", embed_dim=16, depth=4, num_heads=2)
    return drawn(Segmenter(backbone, UNetDecoder(backbone.channels, backbone.strides), num_classes=3))


def make_full_segmenter() -> nn.Module:
    torch.manual_seed(0)
    adapter = DINOv3Adapter(
        create_backbone("dinov3_vit_tiny16", embed_dim=24, depth=4, num_heads=2), stem_width=8, num_heads=2
    )
    decoder = UNetFullDecoder(adapter.channels, adapter.strides, decoder_channels=(16, 12, 8, 8), fine_channels=(8, 4))
    return drawn(Segmenter(adapter, decoder, num_classes=3))
