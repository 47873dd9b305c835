"""The report of an evaluation of a classifier: one, or one for each of several tasks in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from dinomed.handlers.classification_report import ClassificationReport

THRESHOLD_SOURCE = "the configuration, not chosen on data"


class TaskReports:
    """Hand the cases of an evaluation to a `ClassificationReport`, of several tasks to that of each.

    Attach it to an evaluator and call `write` after its run, in every process.

    Args:
        folder: Where the files go; those of a task in a folder of its name.
        label_names: Names of the classes, of several tasks by task.
        kind: "multiclass", "multilabel" or "multitask".
        about: What the reports say of the run.
        threshold: Of "multilabel": labels at or above it are decided for.
        threshold_source: Where it comes from, in words.
        settings: Further arguments of `ClassificationReport`.

    Attributes:
        reports: The reports, by task; the only one of a single task is called "".

    Raises:
        ValueError: If names do not fit the kind, or tasks would share a folder.
    """

    def __init__(
        self,
        folder: str | Path,
        label_names: Sequence[str] | Mapping[str, Sequence[str]],
        kind: str = "multiclass",
        about: Mapping[str, Any] | None = None,
        threshold: float = 0.5,
        threshold_source: str = THRESHOLD_SOURCE,
        **settings: Any,
    ) -> None:
        if isinstance(label_names, Mapping) != (kind == "multitask"):
            raise ValueError(f"label_names by task belong to multitask, a list to other kinds, not to {kind!r}")
        names = label_names if isinstance(label_names, Mapping) else {"": label_names}
        folders = {task: re.sub(r"[^\w.-]+", "_", task).lstrip(".") for task in names}
        if len({each.casefold() for each in folders.values()}) < len(folders):
            raise ValueError(f"the tasks {', '.join(names)} would share a folder; name them apart")
        if kind == "multilabel":
            settings |= {"thresholds": threshold, "threshold_source": threshold_source}
        self.reports = {
            task: ClassificationReport(
                Path(folder) / folders[task],
                labels,
                {**(about or {}), **({"task": task} if task else {})},
                "multilabel" if kind == "multilabel" else "multiclass",
                **settings,
            )
            for task, labels in names.items()
        }

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        if "" in self.reports:
            self.reports[""].attach(engine)
            return
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_batch)

    def _begin(self) -> None:
        for report in self.reports.values():
            report.entries.clear()

    def add_batch(self, engine: Engine) -> None:
        """Collect the cases of a batch.

        Raises:
            InputError: As `ClassificationReport.add_case`.
        """
        for item in engine.state.output:
            for task, report in self.reports.items():
                report.add_case({**item, "pred": item["pred"][task], "label": item["label"][task]})

    def write(self) -> None:
        """Write all files of all reports.

        Raises:
            InputError: As `ClassificationReport.write`.
            OutputError: If a file cannot be written.
        """
        for report in self.reports.values():
            report.write()
