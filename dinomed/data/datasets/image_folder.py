"""One folder per class, the pictures of the class inside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dinomed.data.datasets.image_dataset import ImageDataset, Problem
from dinomed.data.datasets.image_files import is_image_name, item_name, list_images
from dinomed.errors import InputError


class ImageFolder(ImageDataset):
    """Pictures sorted into folders by class; the label is the class's number in the order of the folders' names.

    Args:
        root: Folder of the folders.
        class_names: Names of the folders in the order of their numbers, which a validation set without some of the
            classes needs; by default all folders, sorted.
        split: Name of this part, for reports.
        strict: Whether a class without pictures, a folder that is not among `class_names` or a picture outside the
            folders is an error; otherwise they are left out.

    Raises:
        InputError: If the folder is missing, holds no pictures in folders or, with `strict`, has problems.
    """

    layout = "image-folder"

    def __init__(
        self,
        root: str | os.PathLike[str],
        class_names: Sequence[str] | None = None,
        split: str = "",
        strict: bool = True,
    ) -> None:
        folder = Path(root)
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; check the path")
        entries = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
        folders = {each.name: each for each in entries if each.is_dir()}
        names = list(class_names) if class_names is not None else list(folders)
        problems = [
            Problem("missing pair", str(each), "lies in no class's folder; move it into one")
            for each in entries
            if each.is_file() and is_image_name(each.name)
        ]
        items = []
        for name, place in folders.items():
            if name not in names:
                problems.append(Problem("label out of range", str(place), "is no class of this data set; remove it"))
                continue
            pictures = list_images(place)
            if not pictures and class_names is None:
                problems.append(
                    Problem("missing pair", str(place), "is a class without pictures; add some or remove it")
                )
            label = names.index(name)
            items += [{"image": str(path), "label": label, "name": item_name(path, folder)} for path in pictures]
        super().__init__(
            source=str(folder),
            items=items,
            task="classification",
            split=split,
            class_names=names,
            problems=problems,
            strict=strict,
        )
