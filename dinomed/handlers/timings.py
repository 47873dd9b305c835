"""How long each stage of an inference took, for the report of `python -m monai.bundle run`."""

from __future__ import annotations

import time

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents


class StageTimes:
    """Measures the stages of each case of an evaluator; `SaveSegmentationd` puts them into the report.

    Reading the scan and its preprocessing happen in one go, in the data loader; together they are "load". With
    several workers in the data loader that is the time that the evaluator waited.

    Attributes:
        timings_s: Seconds of each stage that the present case has behind it.
    """

    def __init__(self) -> None:
        self.timings_s: dict[str, float | None] = {}
        self._since_s = time.perf_counter()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.start)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.lap, "load")
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.lap, "infer")

    def start(self) -> None:
        """Begin a case."""
        self.timings_s = {}
        self._since_s = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Note that a stage has ended."""
        now_s = time.perf_counter()
        self.timings_s[stage] = now_s - self._since_s
        self._since_s = now_s
