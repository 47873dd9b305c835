"""The last line of a failed run: what went wrong, out of MONAI's wrapping."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from types import TracebackType

from dinomed import errors
from dinomed.errors import DinomedError

# A process that loads data hands an error over as the text of its traceback, with what it was raised from first.
_IN_WORKER = re.compile(r"^dinomed\.errors\.(\w+): (.+)$", re.MULTILINE)


def show_causes() -> None:
    """Let an uncaught error end with its cause.

    `python -m monai.bundle run` wraps what a component raises and ends with the expression that it could not evaluate.
    After this, an error of ours is shown as its one sentence, and any other one with its cause as the last line. A hook
    that somebody else has set is left alone.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = explain


def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write an uncaught error to stderr; a replacement of `sys.excepthook`."""
    own = own_error(error)
    if own is not None:
        sys.stderr.write(f"dinomed: {own}\n")
        return
    sys.__excepthook__(kind, error, trace)
    causes = list(_causes(error))
    if len(causes) > 1:
        sys.stderr.write(f"The cause: {type(causes[-1]).__name__}: {causes[-1]}\n")


def own_error(error: BaseException) -> DinomedError | None:
    """Return the error of ours that MONAI wrapped or a data loader's process handed over, if there is one."""
    for cause in _causes(error):
        if "DataLoader worker process" in str(cause) and (found := _IN_WORKER.search(str(cause))):
            kind = getattr(errors, found[1])
            own: DinomedError = kind(found[2])
            return own
        if isinstance(cause, DinomedError):
            return cause
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Give the error and what it was raised from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__
