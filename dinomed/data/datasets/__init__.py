"""Data sets of flat pictures, one file per layout: sequences of dictionaries for MONAI's dictionary transforms."""

from dinomed.data.datasets.ade20k import ADE20KFolder
from dinomed.data.datasets.coco import CocoSegmentation
from dinomed.data.datasets.image_dataset import ImageDataset, Problem
from dinomed.data.datasets.image_folder import ImageFolder
from dinomed.data.datasets.image_mask_folder import ImageMaskFolder
from dinomed.data.datasets.item_list import ItemList
from dinomed.data.datasets.layouts import LAYOUTS, open_datasets
from dinomed.data.datasets.unlabelled import UnlabelledImages

__all__ = [
    "LAYOUTS",
    "ADE20KFolder",
    "CocoSegmentation",
    "ImageDataset",
    "ImageFolder",
    "ImageMaskFolder",
    "ItemList",
    "Problem",
    "UnlabelledImages",
    "open_datasets",
]
