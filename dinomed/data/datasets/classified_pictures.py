"""The pictures that a run is asked to classify, and the names of their results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dinomed.data.datasets.pictures import Paths, find_pictures
from dinomed.errors import InputError, OutputError
from dinomed.transforms.image_classification import CLASS_PICTURE, CLASS_REPORT, ClassResultPaths
from dinomed.transforms.image_prediction import picture_name
from dinomed.transforms.volume_checks import shown

LISTED = 5


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
    if source is None or not isinstance(source, str | Path | Sequence):
        raise InputError(f"input is {source!r}; set it to a picture, to a folder of pictures, or to a list of them")
    given = [source] if isinstance(source, str | Path) else list(source)
    found = [path for each in given for path in _pictures_of(each)]
    pictures = list({os.path.realpath(path): path for path in reversed(found)}.values())[::-1]
    if not pictures:
        raise InputError("no pictures are named; set input to a picture or to a folder of pictures")
    counts = Counter(picture_name(path).casefold() for path in pictures)  # not every disk tells case apart
    if twice := sorted(name for name, count in counts.items() if count > 1):
        more = f" and {len(twice) - LISTED} more" if len(twice) > LISTED else ""
        raise InputError(
            f"several pictures are called {', '.join(twice[:LISTED])}{more}, so that their results would replace each "
            "other; give each a name of its own, or classify their folders one by one"
        )
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
