"""Files that grow by a row at a time and that a run which goes on from a checkpoint continues: CSV and JSON lines."""

from __future__ import annotations

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO


class RowFile(ABC):
    """Rows by step.

    A run that goes on from a checkpoint repeats the steps after it, so the first row replaces the rows of its own step
    and of later ones, and whatever a kill left half written.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._started = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row, which has the key "step"."""
        if self._started:
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                self._write(stream, [row], row)
            return
        before = [each for each in self._read() if self._step(each) < int(row["step"])] if self.path.is_file() else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            self._begin(stream, row)
            self._write(stream, [*before, row], row)
        temporary.replace(self.path)
        self._started = True

    @staticmethod
    def _step(row: Mapping[str, Any]) -> float:
        """Return the step of a row that was read, infinity where it has none."""
        step = str(row.get("step", ""))
        return int(step) if step.isdecimal() else math.inf

    @abstractmethod
    def _begin(self, stream: TextIO, row: Mapping[str, Any]) -> None:
        """Write what stands above the rows."""

    @abstractmethod
    def _write(self, stream: TextIO, rows: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> None:
        """Write rows with the columns of `like`."""

    @abstractmethod
    def _read(self) -> list[Mapping[str, Any]]:
        """Read all whole rows."""


class Table(RowFile):
    """A CSV file."""

    def _begin(self, stream: TextIO, row: Mapping[str, Any]) -> None:
        csv.DictWriter(stream, fieldnames=list(row)).writeheader()

    def _write(self, stream: TextIO, rows: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> None:
        csv.DictWriter(stream, fieldnames=list(like), extrasaction="ignore").writerows(rows)

    def _read(self) -> list[Mapping[str, Any]]:
        with self.path.open(newline="", encoding="utf-8") as stream:
            return [row for row in csv.DictReader(stream) if None not in row and None not in row.values()]


class JsonLines(RowFile):
    """A file of one JSON object a line; what is no number becomes null."""

    def _begin(self, stream: TextIO, row: Mapping[str, Any]) -> None:
        """Nothing stands above the rows."""

    def _write(self, stream: TextIO, rows: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> None:
        for row in rows:
            sound = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            stream.write(json.dumps(sound, allow_nan=False) + "\n")

    def _read(self) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows
