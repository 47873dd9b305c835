"""What inference and evaluation configurations need beyond single expressions: lists of files, the bundle's version."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dinomed.bundle.locate import read_metadata
from dinomed.errors import InputError, OutputError
from dinomed.transforms.prediction import ResultPaths, finish_stopped
from dinomed.transforms.volume_checks import shown
from dinomed.transforms.volumes import case_name, find_volumes

Paths = str | Path | Sequence[str | Path] | None


def list_scans(source: Paths) -> list[Path]:
    """List the scans that an input names: a file, a DICOM folder, a folder of scans, or a list of these.

    Raises:
        InputError: If there is nothing, or a path that does not exist; an engine would only warn about no scans and
            end as if all were well.
    """
    if source is None:
        raise InputError("no scans are named; set input to a scan or to a folder of scans")
    if not isinstance(source, str | Path | Sequence):
        raise InputError(f"input is {source!r}; set it to a scan, to a folder of scans, or to a list of them")
    given = [source] if isinstance(source, str | Path) else list(source)
    found: list[Path] = []
    for entry in given:
        path = Path(entry).expanduser()
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder; set input to a scan or to a folder of scans")
        found += find_volumes(path) if path.is_dir() else [path]
    if not found:
        raise InputError(f"{', '.join(map(str, given))}: no scans here; set input to a scan or to a folder of scans")
    return found


def list_cases(source: Paths, output_dir: str | Path | None = None) -> list[dict[str, str]]:
    """List scans as items of a MONAI dataset with the key "image"; one that is named twice counts once.

    Args:
        source: As for `list_scans`.
        output_dir: Where the results will go; what a stopped run left there is finished first.

    Raises:
        InputError: As `list_scans`, or if two scans share a name, so that one's results would replace the other's.
        OutputError: If a result would replace a scan.
    """
    if output_dir is not None:
        finish_stopped(output_dir)
    scans = list({os.path.realpath(path): path for path in reversed(list_scans(source))}.values())[::-1]
    _refuse_twice(scans)
    if output_dir is not None:
        check_inputs_stay([(path, case_name(path)) for path in scans], Path(output_dir))
    return [{"image": str(path)} for path in scans]


def check_inputs_stay(cases: Sequence[tuple[Path, str]], output_dir: Path) -> None:
    """Refuse a run whose results would replace one of its scans, such as t1_seg.nii.gz given beside t1.nii.gz.

    Args:
        cases: Path and case name of each scan.
        output_dir: Where the results will go.

    Raises:
        OutputError: If one would.
    """
    scans = {os.path.realpath(path) for path, _ in cases}
    for _, name in cases:
        result = ResultPaths.of(output_dir, name).labels
        if os.path.realpath(result) in scans:
            raise OutputError(
                f"{shown(result)} is a scan of this run and the result of another; change the output folder"
            )


def _refuse_twice(paths: Sequence[Path]) -> None:
    counts = Counter(case_name(path).casefold() for path in paths)  # not every disk tells case apart
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise InputError(f"several files are called {', '.join(twice)}; give each case a name of its own")


def list_pairs(source: Paths, reference: Paths) -> list[dict[str, str]]:
    """Pair scans with reference label maps, as items with the keys "image" and "label".

    One scan goes with one label map whatever they are called; several are matched by case name.

    Raises:
        InputError: If either is empty, a scan has no label map, or two of them share a name.
    """
    scans = list_scans(source)
    if reference is None:
        raise InputError("no label maps are named; set reference to a label map or to a folder of label maps")
    labels = list_scans(reference)
    if len(scans) == len(labels) == 1:
        return [{"image": str(scans[0]), "label": str(labels[0])}]
    for paths in (scans, labels):
        _refuse_twice(paths)
    by_name = {case_name(path): path for path in labels}
    missing = [path.name for path in scans if case_name(path) not in by_name]
    if missing:
        raise InputError(f"no label map of the same name for {', '.join(missing)}; name reference files as the scans")
    return [{"image": str(path), "label": str(by_name[case_name(path)])} for path in scans]


def bundle_version(bundle_root: str | Path) -> str:
    """Version of a bundle, from its metadata."""
    return str(read_metadata(Path(bundle_root)).get("version", ""))
