"""Starts MONAI Label's server with this app: `python -m dinomed.label_app --studies FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dinomed.errors import InputError
from dinomed.label_app.workspace import make_workspace, workspace_beside


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the workspace and serve until stopped; 2 if the arguments or the environment cannot be used."""
    given = _parser().parse_args(arguments)
    try:
        _check(given)
        app = make_workspace(given.app.expanduser().resolve() if given.app else workspace_beside(given.studies))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    from monailabel.main import Main
    from monailabel.utils.async_tasks.utils import stop_background_task

    sys.stderr.write(f"scans and labels: {given.studies}\nweights and logs: {app}\n")
    options = {"--app": app, "--studies": given.studies, "--host": given.host, "--port": given.port}
    pairs = [text for name, value in options.items() for text in (name, str(value))]
    sys.argv = ["monailabel", "start_server", *pairs, *(["--conf", "device", given.device] if given.device else [])]
    try:
        Main().run()
    finally:  # Python would wait for the end of a training
        for method in ("train", "scoring", "batch_infer"):
            stop_background_task(method)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m dinomed.label_app", description="Serve scans to 3D Slicer.")
    parser.add_argument("--studies", required=True, type=Path, help="folder of scans; labels go into its folder labels")
    parser.add_argument("--app", type=Path, help="folder for weights and logs; by default STUDIES_label_app beside it")
    parser.add_argument("--host", default="127.0.0.1", help="address; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", default=8000, type=int)
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    return parser


def _check(given: argparse.Namespace) -> None:
    if not given.studies.is_dir():
        raise InputError(f"{given.studies}: there is no such folder; name a folder of scans with --studies")
    try:
        import monailabel  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"MONAI Label cannot be imported ({error}); in an environment of its own: pip install 'dinomed[label]'"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
