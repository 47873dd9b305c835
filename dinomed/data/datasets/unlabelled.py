"""Pictures without labels, for testing and prediction."""

from __future__ import annotations

import os
from pathlib import Path

from dinomed.data.datasets.image_dataset import ImageDataset
from dinomed.data.datasets.image_files import item_name, list_images
from dinomed.errors import InputError


class UnlabelledImages(ImageDataset):
    """The pictures of a folder and of all folders inside it, or one picture; items have no "label".

    Args:
        source: Folder or file.
        split: Name of this part, for reports.

    Raises:
        InputError: If there is no such folder or file, or no picture in it.
    """

    layout = "unlabelled"

    def __init__(self, source: str | os.PathLike[str], split: str = "") -> None:
        place = Path(source)
        if not place.exists():
            raise InputError(f"there is no file or folder {place}; check the path")
        paths = [place] if place.is_file() else list_images(place)
        root = place.parent if place.is_file() else place
        items = [{"image": str(path), "name": item_name(path, root)} for path in paths]
        super().__init__(source=str(place), items=items, task="unlabelled", split=split)
