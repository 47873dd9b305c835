"""Opening event files for TensorBoard, which is an optional package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from dinomed.errors import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def require_tensorboard() -> None:
    """Ask for the package before the training begins.

    Raises:
        InputError: if it is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "scalars and pictures for TensorBoard need the package tensorboard, which is not installed: "
            "pip install tensorboard, or set tensorboard to false"
        )


def open_events(folder: str | Path, purge_step: int) -> SummaryWriter:
    """Open a new event file.

    Args:
        folder: where it goes.
        purge_step: events of this step and of later ones, which a killed run left in older files, are hidden.
    """
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)
