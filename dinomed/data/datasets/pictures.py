"""The pictures that a run is asked to segment, and the names of their results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from dinomed.data.datasets.image_files import list_images
from dinomed.errors import InputError, OutputError
from dinomed.transforms.image_prediction import (
    LABELS,
    OVERLAY,
    REPORT,
    SIDE_BY_SIDE,
    ImageResultPaths,
    picture_name,
)
from dinomed.transforms.volume_checks import shown

LISTED = 5

Paths = str | Path | Sequence[str | Path] | None


def find_pictures(source: str | os.PathLike[str]) -> list[Path]:
    """List a picture, or those of a folder and of all folders inside it, without results that dinomed wrote there.

    Raises:
        InputError: If there is no such file or folder, or no picture in it.
    """
    place = Path(source).expanduser()
    if not str(source):
        raise InputError("an empty name was given for a picture; is a variable in the command unset?")
    if not place.exists():
        raise InputError(f"there is no file or folder {shown(place)}; check the path")
    if not place.is_dir():
        return [place]
    found = [path for path in list_images(place) if not _is_result(path)]
    if not found:
        raise InputError(f"{shown(place)} holds no picture; give a folder with JPEG, PNG, TIFF, WebP or BMP files")
    return found


def _is_result(path: Path) -> bool:
    """Whether a PNG has the name of a result and the report of that result lies beside it."""
    for ending in (LABELS, OVERLAY, SIDE_BY_SIDE):
        if path.name.endswith(ending) and path.with_name(path.name.removesuffix(ending) + REPORT).is_file():
            return True
    return False


def named_pictures(source: Paths, find: Callable[[str | Path], list[Path]] = find_pictures) -> list[Path]:
    """List the pictures that are asked for; one that is named twice counts once.

    Args:
        source: A picture, a folder, or a list of these.
        find: Lists those of a folder.

    Raises:
        InputError: If there is nothing, or two pictures share a name, so that one's results would replace the other's.
    """
    if source is None or not isinstance(source, str | Path | Sequence):
        raise InputError(f"input is {source!r}; set it to a picture, to a folder of pictures, or to a list of them")
    given = [source] if isinstance(source, str | Path) else list(source)
    found = [path for each in given for path in find(each)]
    pictures = list({os.path.realpath(path): path for path in reversed(found)}.values())[::-1]
    if not pictures:
        raise InputError("no pictures are named; set input to a picture or to a folder of pictures")
    counts = Counter(picture_name(path).casefold() for path in pictures)  # not every disk tells case apart
    if twice := sorted(name for name, count in counts.items() if count > 1):
        more = f" and {len(twice) - LISTED} more" if len(twice) > LISTED else ""
        raise InputError(
            f"several pictures are called {', '.join(twice[:LISTED])}{more}, so that their results would replace each "
            "other; give each a name of its own, or take their folders one by one"
        )
    return pictures


def list_pictures(source: Paths, output_dir: str | Path | None = None) -> list[dict[str, str]]:
    """List pictures as items of a MONAI dataset with the key "image"; one that is named twice counts once.

    Args:
        source: A picture, a folder, or a list of these.
        output_dir: Where the results will go.

    Raises:
        InputError: If there is nothing, or two pictures share a name, so that one's results would replace the other's.
        OutputError: If a result would replace a picture.
    """
    pictures = named_pictures(source)
    if output_dir is not None:
        check_pictures_stay([(path, picture_name(path)) for path in pictures], Path(output_dir))
    return [{"image": str(path)} for path in pictures]


def check_pictures_stay(cases: Sequence[tuple[Path, str]], output_dir: Path) -> None:
    """Refuse a run whose results would replace one of its pictures, such as a_seg.png given beside a.jpg.

    Args:
        cases: Path and case name of each picture.
        output_dir: Where the results will go.

    Raises:
        OutputError: If one would.
    """
    pictures = {os.path.realpath(path) for path, _ in cases}
    results: dict[str, str] = {}
    for _, name in cases:
        paths = ImageResultPaths.of(output_dir, name)
        for result in (paths.labels, paths.overlay, paths.side_by_side):
            if os.path.realpath(result) in pictures:
                raise OutputError(
                    f"{shown(result)} is a picture of this run and the result of another; change the output folder"
                )
            other = results.setdefault(str(result).casefold(), name)
            if other != name:
                raise OutputError(
                    f"{shown(result)} would be a result of both {shown(other)} and {shown(name)}; segment them apart"
                )
