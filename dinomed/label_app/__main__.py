"""Starts MONAI Label's server with this app: `python -m dinomed.label_app --studies FOLDER`."""

from __future__ import annotations

import argparse
import socket
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

    sys.stderr.write(f"scans and labels: {given.studies}\nweights and logs: {app}\n")
    options = {"--app": app, "--studies": given.studies, "--host": given.host, "--port": given.port}
    pairs = [text for name, value in options.items() for text in (name, str(value))]
    sys.argv = ["monailabel", "start_server", *pairs, *(["--conf", "device", given.device] if given.device else [])]
    Main().run()
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
    from dinomed.predictor.choices import choose_device

    choose_device(given.device or "auto")
    _check_address(given.host, given.port)
    _check_table(given.studies)


def _check_address(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, OverflowError) as error:
        raise InputError(
            f"the server cannot listen at {host}, port {port} ({error}); choose others with --host and --port"
        ) from error


def _check_table(studies: Path) -> None:
    from monailabel.datastore.local import LocalDatastoreModel

    table = studies / "datastore_v2.json"
    try:
        if table.is_file():
            LocalDatastoreModel.model_validate_json(table.read_bytes())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[-1 if isinstance(error, OSError) else 0]
        raise InputError(
            f"{table} is no table of scans and labels ({reason}); move it away, and the folder is noted anew"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
