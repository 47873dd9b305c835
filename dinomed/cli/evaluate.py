"""`dinomed evaluate`: run a bundle's evaluation, as `python -m monai.bundle run evaluating` does."""

from __future__ import annotations

import argparse

from dinomed.cli.train import add_arguments, read_settings


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser("evaluate", help="evaluate a bundle", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate.

    Raises:
        InputError: If the bundle, an id or the data cannot be used.
    """
    settings = read_settings(arguments.settings)

    from dinomed.bundle.config import program_configs
    from dinomed.bundle.locate import find_bundle
    from dinomed.bundle.program import run_program

    root = find_bundle(arguments.bundle)
    run_program(root, program_configs(root, "evaluate"), "evaluating", settings, arguments.overlays)
    return 0
