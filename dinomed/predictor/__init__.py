"""From a bundle and a scan to a label map on its own grid, or from a photograph to one of its size: the only way in."""

from dinomed.predictor.choices import choose_device, choose_planes
from dinomed.predictor.predictor import Predictor
from dinomed.transforms.image_results import ImagePrediction, ImageResultPaths
from dinomed.transforms.results import Prediction, ResultPaths

__all__ = [
    "ImagePrediction",
    "ImageResultPaths",
    "Prediction",
    "Predictor",
    "ResultPaths",
    "choose_device",
    "choose_planes",
]
