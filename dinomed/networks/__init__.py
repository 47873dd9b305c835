"""Networks: backbones, adapter, decoders, segmenter, classifier. They know nothing of medicine."""

from dinomed.networks.adapter import DINOv3Adapter as DINOv3Adapter
from dinomed.networks.backbones import Backbone as Backbone
from dinomed.networks.backbones import create_backbone as create_backbone
from dinomed.networks.classifier import Classifier as Classifier
from dinomed.networks.segformer import SegFormer as SegFormer
from dinomed.networks.segmenter import Segmenter as Segmenter
