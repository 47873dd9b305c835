"""Reading a bundle's configuration with MONAI's parser, variants included."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from dinomed.bundle.locate import METADATA
from dinomed.errors import BundleError, DinomedError

SUFFIXES = (".yaml", ".yml", ".json")
PROGRAMS = ("train", "inference", "evaluate", "multi_gpu_train", "multi_gpu_evaluate", "metadata", "train_continue")
"""Configs that are programs of their own (or no program at all), not variants of one."""


def config_file(root: Path, name: str) -> Path:
    """Return the file `configs/<name>.{yaml,yml,json}` of a bundle.

    Raises:
        BundleError: If there is none.
    """
    for suffix in SUFFIXES:
        path = root / "configs" / f"{name}{suffix}"
        if path.is_file():
            return path
    raise BundleError(f"the bundle {root} has no configs/{name}.yaml (or .json); choose another bundle or add the file")


def overlays(root: Path) -> list[str]:
    """Return the names of the variants that a bundle offers."""
    stems = {path.stem for path in (root / "configs").iterdir() if path.suffix in SUFFIXES}
    return sorted(stem for stem in stems if stem not in PROGRAMS)


def overlay_file(root: Path, overlay: str | os.PathLike[str]) -> Path:
    """Return the config file of a variant, named as the bundle names it or by its path.

    Raises:
        BundleError: If there is none.
    """
    path = Path(overlay).expanduser()
    if path.suffix in SUFFIXES and path.is_file():
        return path
    if str(overlay) in overlays(root):
        return config_file(root, str(overlay))
    known = ", ".join(overlays(root)) or "none"
    raise BundleError(
        f"the bundle {root.name} has no overlay {str(overlay)!r}; it offers {known}, or give the path of a YAML file"
    )


def read_configs(root: Path, files: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> ConfigParser:
    """Merge config files, later ones winning, with the metadata of the bundle.

    Args:
        root: Folder of the bundle; `bundle_root` is set to it where the config has that id.
        files: YAML or JSON files.
        overrides: Values for ids; an id whose parent is absent is an error.

    Raises:
        BundleError: If a file cannot be parsed or an override has no place.
    """
    parser = ConfigParser()
    try:
        parser.read_config([str(path) for path in files])
    except Exception as error:  # YAML errors, duplicate keys, missing parents: all the file's fault
        names = " with ".join(str(path) for path in files)
        raise BundleError(f"{names} cannot be parsed ({one_line(error)}); correct the file") from error
    try:
        parser.read_meta(str(root / METADATA))
    except Exception as error:
        raise BundleError(f"{root / METADATA} cannot be parsed ({one_line(error)}); correct the file") from error
    settings = dict(overrides or {})
    if "bundle_root" in parser:
        settings.setdefault("bundle_root", str(root))
    for key, value in settings.items():
        try:
            parser[key] = value
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise BundleError(f"{key} has no place in the configuration of {root.name}; check the id") from error
    return parser


def resolve(parser: ConfigParser, key: str, root: Path) -> Any:
    """Build what an id of the configuration stands for.

    Raises:
        BundleError: If the id is absent or cannot be built.
        DinomedError: As raised by what is built.
    """
    if key not in parser:
        raise BundleError(f"the configuration of {root.name} lacks {key!r}; it is no segmentation bundle of dinomed")
    try:
        return parser.get_parsed_content(key)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # MONAI wraps what a constructor raised
            if isinstance(cause, DinomedError):
                raise cause from None
            cause = cause.__cause__
        raise BundleError(f"{key!r} of the bundle {root.name} cannot be built: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, its kind in front where the text alone says little."""
    cause = error.__cause__ if error.__cause__ is not None and "instantiate" in str(error) else error
    text = " ".join(str(cause).split()).rstrip(".")
    return f"{type(cause).__name__}: {text}"[:400] if text else type(cause).__name__
