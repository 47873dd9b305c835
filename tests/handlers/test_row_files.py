from __future__ import annotations

import csv
import json
from pathlib import Path

from dinomed.handlers.row_files import JsonLines, Table


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def steps(path: Path) -> list[int]:
    return [int(row["step"]) for row in read(path)]


def test_first_row_replaces_later_steps_and_half_written_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("step,loss\r\n1,0.5\r\n2,0.4\r\n3,0.3\r\n4,0")
    table = Table(path)
    table.append({"step": 3, "loss": 0.25})
    table.append({"step": 4, "loss": 0.2})
    assert [tuple(row.values()) for row in read(path)] == [("1", "0.5"), ("2", "0.4"), ("3", "0.25"), ("4", "0.2")]
    path.write_text("step,loss\r\n1,0.5\r\n2")
    Table(path).append({"step": 3, "loss": 0.25})
    assert steps(path) == [1, 3]


def test_table_follows_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("step,old\r\n1,7\r\n")
    Table(path).append({"step": 2, "new": 9})
    assert read(path) == [{"step": "1", "new": ""}, {"step": "2", "new": "9"}]


def test_first_line_replaces_later_steps_and_half_written_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 0.3}\n{"step": 4, "lo')
    lines = JsonLines(path)
    lines.append({"step": 3, "loss": 0.25})
    lines.append({"step": 4, "loss": float("inf")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 0.25},
        {"step": 4, "loss": None},
    ]
