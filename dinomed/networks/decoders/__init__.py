"""Decoders: from a list of feature maps and the image to a dense feature map."""

from dinomed.networks.decoders.dpt import DPTDecoder
from dinomed.networks.decoders.fapm import FAPMDecoder
from dinomed.networks.decoders.linear import LinearDecoder
from dinomed.networks.decoders.primus import PrimusDecoder
from dinomed.networks.decoders.unet import UNetDecoder
from dinomed.networks.decoders.unet_full import UNetFullDecoder

__all__ = ["DPTDecoder", "FAPMDecoder", "LinearDecoder", "PrimusDecoder", "UNetDecoder", "UNetFullDecoder"]
