"""Networks for dense prediction: backbones, adapter, decoders, segmenter. They know nothing of medicine."""

from dinomed.networks.adapter import DINOv3Adapter as DINOv3Adapter
from dinomed.networks.backbones import Backbone as Backbone
from dinomed.networks.backbones import create_backbone as create_backbone
from dinomed.networks.segformer import SegFormer as SegFormer
from dinomed.networks.segmenter import Segmenter as Segmenter
