"""What inference and evaluation configurations need beyond single expressions: lists of files, the bundle's version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dinomed.bundle.locate import read_metadata
from dinomed.errors import InputError
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


def list_cases(source: Paths) -> list[dict[str, str]]:
    """List scans as items of a MONAI dataset with the key "image".

    Raises:
        InputError: As `list_scans`, or if two scans share a name, so that one's results would replace the other's.
    """
    scans = list_scans(source)
    _refuse_twice(scans)
    return [{"image": str(path)} for path in scans]


def _refuse_twice(paths: Sequence[Path]) -> None:
    counts = Counter(case_name(path) for path in paths)
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
