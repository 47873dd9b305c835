"""Which entries of a folder are scans, and what a case is called."""

from __future__ import annotations

import os
from pathlib import Path

from dinomed.transforms.dicom_series import DICOM_SUFFIXES, holds_dicom, is_dicom_file
from dinomed.transforms.volume_checks import cause_of, refusal

# Two-part endings come first, so that they are taken off whole.
SCAN_SUFFIXES = (
    ".nii.gz",
    ".hdr.gz",
    ".img.gz",
    ".nii",
    ".hdr",
    ".img",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".mgz",
    ".mgh",
)
PAIRS = {".img": (".hdr", ".hdr.gz"), ".img.gz": (".hdr", ".hdr.gz")}


def is_volume_path(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a scan by its name, a DICOM file, or a folder that holds DICOM files."""
    path = Path(path)
    if path.is_dir():
        return holds_dicom(path)
    return path.is_file() and (bool(_suffix(path, SCAN_SUFFIXES)) or is_dicom_file(path))


def header_of(path: Path) -> Path:
    """Give the header of a pair whose voxels are named, such as x.hdr for x.img; any other path is given back."""
    suffix = _suffix(path, SCAN_SUFFIXES)
    stem = path.name[: len(path.name) - len(suffix)]
    headers = [path.with_name(stem + header) for header in PAIRS.get(suffix, ())]
    return next((header for header in headers if header.is_file()), path)


def find_volumes(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the scans in a folder and in the folders directly inside it, sorted by path.

    A folder that holds DICOM files is one case, whatever lies inside it besides. Hidden entries, the second file of a
    pair, and label maps that dinomed wrote (`x_seg.nii.gz` with `x_seg.json` beside it) are left out.

    Raises:
        VolumeError: There is no such folder, or it cannot be listed.
    """
    folder = Path(folder)
    try:
        cases = _cases_of(folder)
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                cases += _cases_of(inner)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refusal(folder, "is no folder", "give a folder with scans") from error
    except OSError as error:
        raise refusal(folder, f"cannot be listed ({cause_of(error)})", "ask for the right to read it") from error
    return sorted(cases)


def case_name(path: str | os.PathLike[str]) -> str:
    """Name of a case for its results: of a file, without the endings of scans; of a folder, as it is.

    Raises:
        VolumeError: The path has no name.
    """
    path = Path(path)
    name = path.name or Path(os.path.abspath(path)).name
    if not path.is_dir():
        suffix = _suffix(path, SCAN_SUFFIXES + DICOM_SUFFIXES)
        name = name[: len(name) - len(suffix)]
    if not name or name == "..":
        name = Path(os.path.abspath(path)).name
    if not name:
        raise refusal(path, "has no name to call its results by", "give a file or a folder below it")
    return name


def _suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    """The ending of a file name that is one of `suffixes`, as a name before it demands; empty if none is."""
    name = path.name.lower()
    return next((suffix for suffix in suffixes if name.endswith(suffix) and len(name) > len(suffix)), "")


def _cases_of(folder: Path) -> list[Path]:
    cases = [folder] if holds_dicom(folder) else []
    for path in sorted(folder.iterdir()):
        suffix = _suffix(path, SCAN_SUFFIXES)
        if suffix and path.is_file() and not path.name.startswith("."):
            stem = path.name[: len(path.name) - len(suffix)]
            is_second = any((folder / (stem + header)).is_file() for header in PAIRS.get(suffix, ()))
            is_result = stem.endswith("_seg") and (folder / (stem + ".json")).is_file()
            if not (is_second or is_result):
                cases.append(path)
    return cases
