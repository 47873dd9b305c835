"""Decoders: from a list of feature maps and the image to a dense feature map."""

from dinomed.networks.decoders.unet import UNetDecoder
from dinomed.networks.decoders.unet_full import UNetFullDecoder

__all__ = ["UNetDecoder", "UNetFullDecoder"]
