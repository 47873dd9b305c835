"""The settings of an inference config that a user may change, checked before anything is built from them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from monai.bundle import ConfigParser

from dinomed.bundle.config import config_file, config_names, load_config, resolve
from dinomed.errors import BundleError
from dinomed.inferers.planes import PLANE_AXES
from dinomed.inferers.precision import PRECISIONS

REFERENCE = re.compile(r"[@%][#:]*([^\W\d][\w#:]*)")
"""An id behind MONAI's signs for references and macros, which may be relative to the item that names it."""


@dataclass(frozen=True)
class InferenceSettings:
    """What a segmentation bundle is told; the ids of its inference config have these names."""

    precision: str
    planes: tuple[str, ...]
    label_names: Mapping[Any, Any] | Sequence[str]
    class_groups: tuple[tuple[int, ...], ...] | None
    frame: int | None


def read_settings(parser: ConfigParser, root: Path) -> InferenceSettings:
    """Read the settings of a segmentation bundle.

    Raises:
        BundleError: If one is absent or cannot be used, with what it may be.
    """
    groups = _class_groups(resolve(parser, "class_groups", root)) if "class_groups" in parser else None
    names = _label_names(resolve(parser, "label_names", root))
    if groups is not None and len(groups) != len(names):
        raise BundleError(
            f"the configuration of {root.name} has {len(names)} label_names for {len(groups)} class_groups; "
            "give one name for each group"
        )
    outputs = resolve(parser, "num_classes", root) if "num_classes" in parser else None
    if groups is None and isinstance(outputs, int) and len(names) != outputs:
        raise BundleError(
            f"the configuration of {root.name} has {len(names)} label_names for {outputs} outputs of the network; "
            "give one name for each, background included"
        )
    if groups is not None and isinstance(outputs, int) and sorted(sum(groups, ())) != list(range(outputs)):
        raise BundleError(
            f"class_groups of {root.name} must hold each of the outputs 0 to {outputs - 1} exactly once, "
            f"not {[list(group) for group in groups]}"
        )
    precision = resolve(parser, "precision", root)
    if precision not in PRECISIONS:
        raise BundleError(f"precision {precision!r} of {root.name} is unknown; choose from {', '.join(PRECISIONS)}")
    frame = resolve(parser, "frame", root) if "frame" in parser else None
    if frame is not None and (not isinstance(frame, int) or isinstance(frame, bool) or frame < 0):
        raise BundleError(f"frame of {root.name} must be null or a number from 0 on, not {frame!r}")
    return InferenceSettings(precision, _planes(resolve(parser, "planes", root), root), names, groups, frame)


def _planes(planes: Any, root: Path) -> tuple[str, ...]:
    names = [planes] if isinstance(planes, str) else planes
    known = (
        isinstance(names, Sequence)
        and bool(names)
        and all(isinstance(name, str) and name in PLANE_AXES for name in names)
    )
    if not known or len(set(names)) != len(names):
        raise BundleError(f"planes of {root.name} must be a list of {', '.join(PLANE_AXES)}, not {planes!r}")
    return tuple(names)


def _label_names(names: Any) -> Mapping[Any, Any] | Sequence[str]:
    given = list(names.values()) if isinstance(names, Mapping) else names
    values = list(names) if isinstance(names, Mapping) else []
    named = isinstance(given, list | tuple) and bool(given) and all(isinstance(name, str) and name for name in given)
    if named and all(str(value).isdigit() for value in values):
        return cast("Mapping[Any, Any] | Sequence[str]", names)
    raise BundleError(f"label_names must be a list of names, or names by label value, not {names!r}; quote numbers")


def _class_groups(groups: Any) -> tuple[tuple[int, ...], ...] | None:
    if groups is None:
        return None
    if isinstance(groups, Sequence) and groups:
        lists = [group for group in groups if isinstance(group, Sequence) and not isinstance(group, str) and group]
        if len(lists) == len(groups) and all(type(output) is int for group in lists for output in group):
            return tuple(tuple(group) for group in lists)
    raise BundleError(
        f"class_groups must be null or a list of lists of outputs, such as [[0, 7], [1, 2]], not {groups!r}"
    )


def check_overlay(root: Path, overlay: Path, parser: ConfigParser) -> None:
    """Refuse an overlay that is no mapping, or that sets an id which nothing uses: MONAI would take it without effect.

    Args:
        root: Folder of the bundle.
        overlay: The file.
        parser: The configuration with the overlay merged into it.

    Raises:
        BundleError: With the id that may have been meant.
    """
    changes = load_config(overlay)
    known = {id_ for name in config_names(root) for id_ in _ids(config_file(root, name))}
    used = _references(parser.get())
    for key in changes:
        id_ = str(key).lstrip("+~").split("#")[0].split("::")[0]
        if id_ in known or id_ in used or id_ == "imports":
            continue
        close = difflib.get_close_matches(id_, sorted(known), n=1)
        hint = f"did you mean {close[0]}?" if close else "see the bundle's configs for their ids"
        raise BundleError(f"{overlay} sets {id_!r}, which no config of {root.name} has or refers to; {hint}")


def _ids(path: Path) -> list[str]:
    """Return the ids of a config of the bundle; a file that is none has none."""
    try:
        return [str(id_) for id_ in load_config(path)]
    except BundleError:
        return []


def _references(config: Any) -> set[str]:
    """Return the first parts of all ids that a configuration refers to."""
    if isinstance(config, Mapping):
        return set().union(*(_references(value) for value in config.values()))
    if isinstance(config, list):
        return set().union(*(_references(value) for value in config))
    if isinstance(config, str):
        return {re.split("#|::", reference)[0] for reference in REFERENCE.findall(config)}
    return set()
