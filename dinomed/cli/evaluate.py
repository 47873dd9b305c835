"""`dinomed evaluate`: run a bundle's evaluation, as `python -m monai.bundle run evaluating` does."""

from __future__ import annotations

import argparse

from dinomed.cli.train import add_arguments, lay_processes, read_settings

SEVERAL_PROCESSES = "multi_gpu_evaluate"
"""Config that a bundle's evaluation needs under torchrun."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser(
        "evaluate",
        help="evaluate a bundle",
        description="Run a bundle's evaluation, which scores every case and writes tables, pictures and report.html "
        "into output_dir. Under torchrun its processes share the cases.",
    )
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
    overlays = lay_processes(root, arguments.overlays, SEVERAL_PROCESSES)
    run_program(root, program_configs(root, "evaluate"), "evaluating", settings, overlays)
    return 0
