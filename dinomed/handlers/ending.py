"""Closing what handlers hold open, however a run ends."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from ignite.engine import Engine, Events

_closers: WeakKeyDictionary[Engine, list[Callable[[], None]]] = WeakKeyDictionary()


def when_ended(engine: Engine, close: Callable[[], None]) -> None:
    """Call `close` when the run is complete or fails, perhaps more than once.

    Ignite takes an error for handled as soon as a handler looks at it, and an error that one handler raises again keeps
    it from the next one; so all that is to be closed goes through one handler.
    """
    if engine not in _closers:
        _closers[engine] = []
        engine.add_event_handler(Events.EXCEPTION_RAISED, _fail)
    _closers[engine].append(close)
    engine.add_event_handler(Events.COMPLETED, close)


def _fail(engine: Engine, error: BaseException) -> None:
    for close in _closers[engine]:
        close()
    raise error
