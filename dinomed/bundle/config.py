"""Reading a bundle's configuration with MONAI's parser, variants included."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from dinomed.bundle.causes import own_error
from dinomed.bundle.locate import METADATA
from dinomed.errors import BundleError

SUFFIXES = (".yaml", ".yml", ".json")
PROGRAMS = ("inference", "train", "evaluate")

BASES = ((), ("inference",), ("train",), ("inference", "evaluate"), ("train", "evaluate"))
"""What a config may be laid over."""


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


def overlays(root: Path, program: str = "inference") -> list[str]:
    """Return the names of the variants that a bundle offers of a program.

    A config that is named after a program, such as `evaluate_files`, is a variant of that one only.
    """
    others = tuple(f"{other}_" for other in PROGRAMS if other != program)
    return [
        name for name in config_names(root) if name not in PROGRAMS and not name.startswith((*others, "multi_gpu_"))
    ]


def config_names(root: Path) -> list[str]:
    """Return the names of a bundle's configs, `metadata` left out."""
    paths = (root / "configs").iterdir() if (root / "configs").is_dir() else ()
    return sorted({path.stem for path in paths if path.suffix in SUFFIXES} - {"metadata"})


def program_configs(root: Path, name: str) -> list[str]:
    """Return the configs that make up a program: a config by itself, or what it must be laid over and then itself.

    Raises:
        BundleError: If there is no such config, or it makes sense neither alone nor over another one.
    """
    own = config_file(root, name)
    reason = ""
    if "bundle_root" in load_config(own):  # whole by itself, such as train_backbone beside train
        bases: list[tuple[str, ...]] = [()]
    else:
        # evaluate_files changes the evaluation first of all, even where it could be laid over the inference too.
        bases = sorted(
            BASES, key=lambda base: not (base and (name.startswith(f"{base[-1]}_") or name == f"multi_gpu_{base[-1]}"))
        )
    for base in bases:
        if name in base or not set(base) <= set(config_names(root)):
            continue
        try:
            parser = read_configs(root, [*(config_file(root, each) for each in base), own])
        except BundleError as error:
            reason = reason or str(error)
            continue
        if "bundle_root" not in parser:
            continue
        missing = unresolved_references(parser)
        if not missing:
            return [*base, name]
        reason = "; ".join(missing[:3])
    raise BundleError(f"{own} makes sense neither alone nor over another config of the bundle ({reason}); correct it")


def unresolved_references(parser: ConfigParser) -> list[str]:
    """Say which ids of a configuration refer to ids that are not there."""
    parser.parse(reset=True)
    items = parser.ref_resolver.items
    return [
        f"{id_} refers to @{reference}, which is not defined"
        for id_, item in items.items()
        if isinstance(item.get_config(), str)
        for reference in ReferenceResolver.match_refs_pattern(item.get_config())
        if reference not in items
    ]


def overlay_file(root: Path, overlay: str | os.PathLike[str], program: str = "inference") -> Path:
    """Return the config file of a program's variant, named as the bundle names it or by its path.

    Raises:
        BundleError: If there is none.
    """
    path = Path(overlay).expanduser()
    if path.suffix in SUFFIXES and path.is_file():
        return path
    offered = overlays(root, program)
    if str(overlay) in offered:
        return config_file(root, str(overlay))
    known = ", ".join(offered) or "none"
    raise BundleError(
        f"the bundle {root.name} has no overlay {str(overlay)!r}; it offers {known}, or give the path of a YAML file"
    )


def load_config(path: Path) -> Mapping[Any, Any]:
    """Read one config file as it is.

    Raises:
        BundleError: If it cannot be parsed, or is empty or no mapping.
    """
    try:
        content = ConfigParser.load_config_file(str(path))
    except Exception as error:  # YAML errors of many kinds: all the file's fault
        raise BundleError(f"{path} cannot be parsed ({one_line(error)}); correct the file") from error
    if not isinstance(content, Mapping) or not content:
        found = "is empty" if not content else f"holds a {type(content).__name__}"
        raise BundleError(f"{path} {found}; a config sets ids, one to a line, such as: batch_size: 4")
    return content


def read_configs(root: Path, files: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> ConfigParser:
    """Merge config files, later ones winning, with the metadata of the bundle.

    Args:
        root: Folder of the bundle; `bundle_root` is set to it where the config has that id.
        files: YAML or JSON files.
        overrides: Values for ids; an id whose parent is absent is an error.

    Raises:
        BundleError: If a file cannot be parsed or an override has no place.
    """
    for path in files:
        load_config(path)
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
        own = own_error(error)
        if own is not None:
            raise own from None
        raise BundleError(f"{key!r} of the bundle {root.name} cannot be built: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, its kind in front where the text alone says little."""
    cause = error  # MONAI wraps what a component raises, once for each component and expression around it
    while cause.__cause__ is not None and str(cause).startswith(("Failed to instantiate", "Failed to evaluate")):
        cause = cause.__cause__
    text = " ".join(str(cause).split()).rstrip(".")
    return f"{type(cause).__name__}: {text}"[:400] if text else type(cause).__name__
