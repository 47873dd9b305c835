"""A handler that other parts of a configuration refer to as well."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine


class SharedHandler:
    """Stand in a list of handlers for one that is defined elsewhere in the configuration.

    MONAI looks through such lists for components and stumbles over plain references.

    Args:
        handler: the handler, such as a `WeightAverage` that evaluator and checkpoint use too.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        self.handler.attach(engine)

    def follow(self, trainer: Engine) -> None:
        """Tell the handler its trainer, if it wants to know."""
        if hasattr(self.handler, "follow"):
            self.handler.follow(trainer)
