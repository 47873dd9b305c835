"""Where the app keeps what it makes: weights, unfinished trainings, predictions, embeddings.

model/<bundle>/model.pt        fine-tuned weights; without this file the bundle's own are used
model/<bundle>/previous.pt     those before the last training
model/<bundle>/run/            the training that runs or was stopped
model/<bundle>/last_run/       logs of the last one that ended
predictions/<bundle>/          label maps by weights and scan
embeddings/<bundle>/           of scans, for the strategy "coverage"
logs/app.log                   of MONAI Label's server
"""

from __future__ import annotations

from pathlib import Path

from dinomed.errors import OutputError

PACKAGE = Path(__file__).resolve().parent
MAIN = "main.py"


def workspace_beside(studies: str | Path) -> Path:
    """Return the workspace of a folder of scans where none is named: a folder beside it."""
    folder = Path(studies).expanduser().resolve()
    return folder.with_name(f"{folder.name}_label_app")


def workspace_of(app_dir: str | Path, studies: str | Path) -> Path:
    """Return the workspace of a server: its app folder, unless that is this package."""
    folder = Path(app_dir).resolve()
    return workspace_beside(studies) if folder == PACKAGE else folder


def make_workspace(folder: Path) -> Path:
    """Make a folder that MONAI Label takes for an app.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = (PACKAGE / MAIN).read_text(encoding="utf-8")
        if not (folder / MAIN).is_file() or (folder / MAIN).read_text(encoding="utf-8") != text:
            (folder / MAIN).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}); name a folder for weights and logs with --app"
        ) from error
    return folder
