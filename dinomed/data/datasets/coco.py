"""COCO instances as semantic label maps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from dinomed.data.datasets.class_names import COCO_CATEGORIES, COCO_CLASSES
from dinomed.data.datasets.coco_file import CocoFile, CocoImage, read_coco_file
from dinomed.data.datasets.coco_masks import MaskCache, draw_label_map
from dinomed.data.datasets.image_dataset import ImageDataset, LabelReading, Problem
from dinomed.errors import InputError
from dinomed.transforms.image_reading import IGNORE_INDEX, image_size

ClassSource = Literal["auto", "coco", "file"]


class CocoSegmentation(ImageDataset):
    """Pictures with label maps drawn from a COCO instance file: 0 background, then one label per category.

    Large objects lie below small ones; crowd regions count nowhere (see `draw_label_map`). A label map is drawn when
    its item is asked for, and kept in `cache_dir` for the next time; a file that changes has new label maps.

    Args:
        annotation_file: JSON such as `annotations/instances_train2017.json`.
        image_dir: Folder of the pictures; by default `train2017` (the last part of the file's name) beside the
            file's folder, or that of similar layouts where the first picture is found.
        cache_dir: Folder for the label maps; by default `dinomed/coco_masks` in the user's cache (XDG_CACHE_HOME).
        classes: "coco" for COCO's 80 categories with the labels 1 to 80 by ascending id, whichever of them the file
            has; "file" for the file's own categories by ascending id; "auto" is "coco" where all of the file's
            categories are COCO's by id and name.
        ignore_index: Number of the pixels that count nowhere.
        split: Name of this part, for reports; by default the last part of the file's name.
        strict: Whether pictures that are missing and outlines that are wrong are an error; otherwise the pictures and
            objects are left out.

    Raises:
        InputError: If the file is no COCO file, lacks fields, has categories that do not fit or, with `strict`, has
            problems.
    """

    layout = "coco"

    def __init__(
        self,
        annotation_file: str | os.PathLike[str],
        image_dir: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        classes: ClassSource = "auto",
        ignore_index: int = IGNORE_INDEX,
        split: str | None = None,
        strict: bool = True,
    ) -> None:
        file = read_coco_file(Path(annotation_file))
        if not file.images:
            raise InputError(f"{file.path} has no images; add them")
        self.label_of_category, names = class_labels(file, classes)
        folder = Path(image_dir) if image_dir is not None else find_image_folder(file)
        content = json.dumps([file.sha256, sorted(self.label_of_category.items()), ignore_index])
        self.cache = MaskCache(Path(cache_dir) if cache_dir is not None else default_cache(), content)
        self.images: list[CocoImage] = []
        problems, items = list(file.problems), []
        for image in file.images:
            path = folder / image.file_name
            if not path.is_file():
                problems.append(Problem("missing pair", str(path), f"is image {image.id} of {file.path} but not there"))
                continue
            self.images.append(image)
            name = Path(image.file_name).with_suffix("")
            items.append({"image": str(path), "label": str(self.cache.path(image)), "name": name.as_posix()})
        super().__init__(
            source=str(file.path),
            items=items,
            task="segmentation",
            split=_split_name(file.path) if split is None else split,
            class_names=names,
            reading=LabelReading(ignore_index=ignore_index),
            problems=problems,
            strict=strict,
        )

    def __getitem__(self, index: int | slice) -> Any:
        """Return a copy of one item, whose label map is on disk afterwards, or a list of them.

        Raises:
            InputError: If the picture cannot be read or has another size than the file says.
            OutputError: If the label map cannot be written.
        """
        item = super().__getitem__(index)
        if not isinstance(index, slice):
            stated, found = self.images[index], image_size(item["image"])
            if (stated.height, stated.width) != found:
                raise InputError(
                    f"{self.source}: image {stated.id!r} is {stated.width} x {stated.height} pixels by its entry, but "
                    f"{item['image']} is {found[1]} x {found[0]}; get the picture again, or correct the entry"
                )
            item["label"] = str(self.cache.get(self.images[index], lambda: self.label_map(index)))
        return item

    def label_map(self, index: int) -> NDArray[Any]:
        """Draw the label map of an item, (H, W) unsigned integers, without keeping it."""
        return self.draw(index)[0]

    def draw(self, index: int) -> tuple[NDArray[Any], list[int]]:
        """Draw an item; returns its label map and the pixels that each object covers, as `draw_label_map` does."""
        return draw_label_map(self.images[index], self.label_of_category, self.ignore_index)


def class_labels(file: CocoFile, classes: ClassSource) -> tuple[dict[int, int], tuple[str, ...]]:
    """Say which label each category gets, and what the labels are called.

    Raises:
        InputError: If COCO's classes are wanted and the file has others.
    """
    if classes not in ("auto", "coco", "file"):
        raise InputError(f"classes={classes!r} is unknown; choose auto, coco or file")
    is_coco = all(COCO_CATEGORIES.get(number) == name for number, name in file.categories.items())
    if classes == "coco" or (classes == "auto" and is_coco):
        unknown = sorted(set(file.categories) - set(COCO_CATEGORIES))
        if unknown:
            raise InputError(f"{file.path} has categories that COCO has not ({unknown[:5]}); pass classes='file'")
        return {number: label for label, number in enumerate(COCO_CATEGORIES, start=1)}, COCO_CLASSES
    numbers = sorted(file.categories)
    names = ("background", *(file.categories[number] for number in numbers))
    return {number: label for label, number in enumerate(numbers, start=1)}, names


def find_image_folder(file: CocoFile) -> Path:
    """Find the pictures of a file in the places where data sets of this layout have them.

    Raises:
        InputError: If the first pictures are in none of them.
    """
    beside, above, split = file.path.parent, file.path.parent.parent, _split_name(file.path)
    places = [
        above / split,
        above / "images" / split,
        above / "images",
        beside / split,
        beside / "images",
        beside,
        above,
    ]
    for place in places:
        if any((place / image.file_name).is_file() for image in file.images[:10]):
            return place
    raise InputError(
        f"the pictures of {file.path} were not found, such as {file.images[0].file_name} in {places[0]}; "
        "name their folder (image_dir, or --images on the command line)"
    )


def _split_name(path: Path) -> str:
    """`instances_train2017.json` -> `train2017`; other names as they are."""
    return path.stem.removeprefix("instances_")


def default_cache() -> Path:
    """Name the folder of label maps in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinomed" / "coco_masks"


def is_coco_content(content: Mapping[str, Any]) -> bool:
    """Whether an object from a JSON file is meant as a COCO file, be it incomplete."""
    listed = content.get("images")
    entries = listed if isinstance(listed, list) else []
    return "annotations" in content or "categories" in content or any("file_name" in str(each) for each in entries[:1])
