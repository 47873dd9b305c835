"""Which scans or pictures a command works on, and what their results are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinomed.errors import InputError


@dataclass(frozen=True)
class Case:
    """One scan or picture: the file or DICOM folder, and the name that its results carry."""

    path: Path
    name: str


@dataclass(frozen=True)
class Refused:
    """An input that is no scan and holds none, with the sentence that says so."""

    given: str
    reason: str


def find_cases(inputs: Sequence[str]) -> tuple[list[Case], list[Refused]]:
    """Turn files and folders into cases with names of their own.

    A folder that holds DICOM files is one scan; any other folder stands for the scans in it. A scan that is given
    twice counts once. The headers of files are looked at here, before a model is loaded for nothing.
    """
    from dinomed.transforms.volume_folders import find_volumes, is_volume_path
    from dinomed.transforms.volume_reading import read_grid

    paths: list[Path] = []
    refused: list[Refused] = []
    for given in inputs:
        path = Path(given)
        try:
            if not str(given):
                raise InputError("an empty name was given for a scan; is a variable in the command unset?")
            if not path.is_dir() or is_volume_path(path):
                paths.append(path)
                continue
            found = find_volumes(path)
            if not found:
                raise InputError(f"{given} holds no scan; give a folder with NIfTI, NRRD, MetaImage, MGH or DICOM")
            paths += found
        except InputError as error:
            refused.append(Refused(given, str(error)))
    sound: list[Path] = []
    for path in paths:
        try:
            if not path.is_dir():
                refuse_picture(path)
                read_grid(path)
            sound.append(path)
        except InputError as error:
            refused.append(Refused(str(path), str(error)))
    return name_cases(sound), refused


def find_picture_cases(inputs: Sequence[str]) -> tuple[list[Case], list[Refused]]:
    """Turn pictures, and folders of any depth, into cases with names of their own; each header is looked at here."""
    from dinomed.data.datasets.pictures import find_pictures
    from dinomed.transforms.image_prediction import picture_name
    from dinomed.transforms.image_reading import image_size
    from dinomed.transforms.natural_images import refuse_scan

    sound: list[Path] = []
    refused: list[Refused] = []
    for given in inputs:
        try:
            if given:
                refuse_scan(given)
            paths = find_pictures(given)
        except InputError as error:
            refused.append(Refused(given, str(error)))
            continue
        for path in paths:
            try:
                image_size(path)
                sound.append(path)
            except InputError as error:
                refused.append(Refused(str(path), str(error)))
    return name_cases(sound, picture_name), refused


def refuse_picture(path: Path) -> None:
    """Say of a picture, which no bundle for scans can use, what it is.

    Raises:
        InputError: If the file is called like a picture.
    """
    from dinomed.transforms.image_reading import IMAGE_SUFFIXES

    if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
        raise InputError(
            f"{path} is a picture, and this bundle reads scans; give NIfTI, NRRD, MetaImage, MGH or DICOM, or take a "
            "bundle for pictures, such as ade20k_segmentation"
        )


def name_cases(paths: Sequence[Path], name_of: Callable[[Path], str] | None = None) -> list[Case]:
    """Name each case after its file, and where names collide after its folders and file.

    Case does not count, since not every disk tells it apart.

    Args:
        paths: Files and folders; one that is given twice counts once.
        name_of: Name of a path by itself; by default that of a scan.

    Raises:
        VolumeError: If a path has no name at all.
    """
    from dinomed.transforms.volume_folders import case_name, header_of

    name_of = name_of or case_name
    by_file: dict[str, Path] = {}
    for path in paths:
        by_file.setdefault(os.path.realpath(header_of(path)), path)
    unique = list(by_file.values())
    plain = {path: name_of(path) for path in unique}
    whole = {path: path.name.replace(".", "_") for path in unique}  # for t1.nii and t1.nrrd in one folder
    names = dict(plain)
    for depth in range(1, max((len(_parents(path)) for path in unique), default=0) + 1):
        _rename(names, {path: "_".join([*_parents(path)[-depth:], plain[path]]) for path in unique})
    _rename(names, whole)
    _rename(names, {path: "_".join([*_parents(path), whole[path]]) for path in unique})
    return [Case(path, name) for path, name in names.items()]


def _rename(names: dict[Path, str], longer: Mapping[Path, str]) -> None:
    """Give longer names to those that share theirs, unless that tells none of them apart."""
    counts = Counter(name.casefold() for name in names.values())
    colliding = [path for path, name in names.items() if counts[name.casefold()] > 1]
    if len({longer[path].casefold() for path in colliding}) > len({names[path].casefold() for path in colliding}):
        names.update({path: longer[path] for path in colliding})


def _parents(path: Path) -> list[str]:
    return [part for part in Path(os.path.abspath(path)).parent.parts if part != os.sep]
