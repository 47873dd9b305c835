"""`dinomed train`: run a bundle's training, as `python -m monai.bundle run training` does."""

from __future__ import annotations

import argparse
import ast
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinomed.errors import InputError

SEVERAL_PROCESSES = "multi_gpu_train"
"""Config that a bundle's training needs under torchrun."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser(
        "train",
        help="train a bundle",
        description="Run a bundle's training, as `python -m monai.bundle run training` does. Under torchrun its "
        "processes train one network together.",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `train` and `evaluate` share."""
    parser.add_argument("bundle", metavar="NAME_OR_PATH")
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="NAME_OR_FILE",
        dest="overlays",
        help="variant of the bundle, by name or as a YAML file; may be repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="ID=VALUE",
        dest="settings",
        help="set an id of the config, such as max_epochs=3 or dataset_dir=/data; may be repeated",
    )


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Turn `id=value` texts into values: Python literals where they are some, text where not.

    Raises:
        InputError: If one has no `=`.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting} has no value; write --set ID=VALUE")
        named = {"true": True, "false": False, "null": None}
        try:
            values[key] = named[text.lower()] if text.lower() in named else ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[key] = text
    return values


def run(arguments: argparse.Namespace) -> int:
    """Train.

    Raises:
        InputError: If the bundle, an id or the data cannot be used.
    """
    settings = read_settings(arguments.settings)

    from dinomed.bundle.locate import find_bundle
    from dinomed.bundle.program import run_program

    root = find_bundle(arguments.bundle)
    run_program(root, ["train"], "training", settings, lay_processes(root, arguments.overlays, SEVERAL_PROCESSES))
    return 0


def lay_processes(root: Path, overlays: Sequence[str], name: str) -> list[str]:
    """Lay the bundle's config for several processes under the user's overlays, where torchrun started us.

    It comes first, so that an overlay may set its ids, such as `sharded`.

    Raises:
        InputError: If the bundle has no such config.
    """
    from dinomed.bundle.config import config_file, config_names

    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return list(overlays)
    if name not in config_names(root):
        raise InputError(
            f"the bundle {root.name} has no configs/{name}.yaml, so that several processes would work apart in one "
            "folder; start it without torchrun or add that config"
        )
    own = config_file(root, name)
    named = any(os.path.realpath(overlay) == os.path.realpath(own) for overlay in overlays)
    return [*([] if named else [str(own)]), *overlays]
