"""Results of a picture: made in a hidden folder beside their destination, then renamed; PNGs that say who made them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dinomed.errors import OutputError
from dinomed.transforms.image_reading import FORMATS
from dinomed.transforms.prediction import PARTIAL
from dinomed.transforms.provenance import file_sha256
from dinomed.transforms.volume_checks import cause_of, shown

SOFTWARE = "dinomed"


@contextmanager
def staged_results(paths: Sequence[Path], case: str, overwrite: bool) -> Iterator[Path]:
    """Give a folder in which the files are made under their names, and move them to their places at the end.

    Args:
        paths: Where the files go, all in one folder, which is made if absent; the report is the last of them, so that
            it is never there without the others.
        case: Name of the case, for messages and for the folder's name.
        overwrite: Replace files of the same name; without it they are an error.

    Yields:
        The folder, which is gone afterwards.

    Raises:
        OutputError: If files exist and may not be replaced, or the folder cannot be written.
    """
    root = paths[-1].parent
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise OutputError(
            f"{shown(existing[0])} exists already; pass overwrite (--overwrite) or choose another output folder"
        )
    stage: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(os.fsencode(case)).hexdigest()[:12]
        stage = Path(tempfile.mkdtemp(prefix=f".{digest}_seg.", suffix=PARTIAL, dir=root))
        yield stage
        if found := [path for path in paths if path.is_dir()]:
            raise IsADirectoryError(f"{shown(found[0])} is a folder")
        paths[-1].unlink(missing_ok=True)  # the old report must not stand beside new results
        for path in paths:
            os.replace(stage / path.name, path)
    except OSError as error:
        raise OutputError(
            f"{shown(root)}: the results of {shown(case)} cannot be written ({cause_of(error)}); "
            "check the permissions and the free space, or choose another output folder"
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG that says that dinomed made it.

    Raises:
        OSError: If it cannot be written.
    """
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    image.save(path, format="PNG", pnginfo=info)


def is_own_png(path: Path) -> bool:
    """Whether a file is a PNG that `save_png` wrote; one that cannot be read is not."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, SyntaxError, ValueError):
        return False


def picture_facts(path: Path) -> dict[str, Any]:
    """Say what a picture's file is, and how it must be turned to stand upright; null where it is gone."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            orientation = image.getexif().get(0x0112, 1)
            kind = str(image.format).lower()
        return {"format": kind, "exif_orientation": int(orientation), "frame": None, "sha256": file_sha256(path)}
    except (OSError, SyntaxError, ValueError):
        return {"format": None, "exif_orientation": None, "frame": None, "sha256": None}
