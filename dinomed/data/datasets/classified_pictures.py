"""The pictures that a run is asked to classify, and the names of their results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dinomed.data.datasets.pictures import Paths, find_pictures, named_pictures
from dinomed.errors import InputError, OutputError
from dinomed.transforms.image_classification import CLASS_PICTURE, CLASS_REPORT, ClassResultPaths
from dinomed.transforms.image_prediction import picture_name
from dinomed.transforms.volume_checks import shown


def list_to_classify(source: Paths, output_dir: str | Path | None = None) -> list[dict[str, str]]:
    """List pictures as items of a MONAI dataset with the key "image"; one that is named twice counts once.

    Results that dinomed wrote are left out of folders.

    Args:
        source: A picture, a folder, or a list of these.
        output_dir: Where the results will go.

    Raises:
        InputError: If there is nothing, or two pictures share a name, so that one's results would replace the other's.
        OutputError: If a result would replace a picture.
    """
    pictures = named_pictures(source, _pictures_of)
    if output_dir is not None:
        check_results_stay_apart([(path, picture_name(path)) for path in pictures], output_dir)
    return [{"image": str(path)} for path in pictures]


def _pictures_of(source: str | Path) -> list[Path]:
    found = find_pictures(source)
    if not Path(source).expanduser().is_dir():
        return found
    kept = [path for path in found if not is_class_result(path)]
    if not kept:
        raise InputError(f"{shown(source)} holds no pictures but results of dinomed; give a folder with pictures")
    return kept


def is_class_result(path: Path) -> bool:
    """Whether a PNG has the name of a classification's picture and the report of it lies beside it."""
    name = path.name
    return name.endswith(CLASS_PICTURE) and path.with_name(name.removesuffix(CLASS_PICTURE) + CLASS_REPORT).is_file()


def check_results_stay_apart(pictures: Sequence[tuple[Path, str]], output_dir: str | Path) -> None:
    """Refuse a run whose results would replace one of its pictures, such as a_class.png given beside a.jpg.

    Args:
        pictures: The pictures, each with the name of its results.
        output_dir: Where the results will go.

    Raises:
        OutputError: If one would.
    """
    given = {os.path.realpath(path) for path, _ in pictures}
    for _, name in pictures:
        result = ClassResultPaths.of(output_dir, name).picture
        if os.path.realpath(result) in given:
            raise OutputError(
                f"{shown(result)} is a picture of this run and the result of another; change the output folder"
            )
