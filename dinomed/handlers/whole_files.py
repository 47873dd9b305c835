"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dinomed.errors import OutputError


def write_file(path: Path, content: str | bytes) -> None:
    """Write through a temporary name.

    Args:
        path: The file; its folder is made.
        content: Text becomes UTF-8.

    Raises:
        OutputError: If that fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode("utf-8", "replace") if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); check output_dir") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
