"""What a run over many cases says: progress on stderr, a table on stdout, `summary.json` among the results."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from dinomed.errors import OutputError

if TYPE_CHECKING:
    from dinomed.transforms.report import RunInfo

SCHEMA = "dinomed-run-1"
LONGEST_NAME = 40


@dataclass
class CaseResult:
    """How one case ended.

    Attributes:
        input: The scan as it was given or found.
        case: Name of its results; None for an input that is no scan.
        status: How it ended.
        seconds: How long it took.
        message: Why it failed or was skipped, or what to look at.
        outputs: Names of the files.
        volumes_ml: Millilitres by name of the structure.
        users_fault: Whether a failure lies with the input rather than with us.
    """

    input: str
    case: str | None
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    message: str = ""
    outputs: list[str] = field(default_factory=list)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    users_fault: bool = False


def check_summary(folder: Path) -> None:
    """Refuse to replace a `summary.json` that another program wrote.

    Raises:
        OutputError: If there is one.
    """
    path = folder / "summary.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise OutputError(f"{path} was not written by dinomed; pass --overwrite, or choose another output folder")


class RunLog:
    """Collects the cases of a run; as a context it leaves a summary behind however the run ends."""

    def __init__(self, folder: Path, run: RunInfo, total: int) -> None:
        self.folder, self.run, self.total = folder, run, total
        self.results: list[CaseResult] = []
        self.started_s = time.perf_counter()
        self._bar: Any = None
        self._finished = False

    def __enter__(self) -> RunLog:
        """Open the progress bar, where there is a terminal to show it on."""
        from tqdm import tqdm

        self._bar = tqdm(total=self.total, unit="scan", file=sys.stderr, disable=None, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar and save what is known, of an interrupted run too."""
        self._bar.close()
        if not self._finished:
            with contextlib.suppress(OutputError):  # the run ends with an error of its own already
                self._write_summary()

    def start(self, name: str) -> None:
        """Name the case that comes now."""
        self._bar.set_description(_shortened(name))

    def advance(self, done: int, total: int) -> None:
        """Show how far the case has come, in slices."""
        self._bar.set_postfix_str(f"{100 * done // max(total, 1)} %")

    def add(self, result: CaseResult) -> None:
        """Take in a case and say in one line how it ended."""
        from tqdm import tqdm

        from dinomed.transforms.volume_checks import shown

        self.results.append(result)
        line = f"[{len(self.results)}/{self.total}] {shown(result.case or result.input)}: {result.status}"
        if result.status == "done":
            line += f" in {result.seconds:.1f} s"
        if result.message:
            line += f", {result.message}"
        tqdm.write(line, file=sys.stderr)
        self._bar.update(1)

    @property
    def exit_status(self) -> int:
        """0 all done, 2 an input was at fault, 1 we were."""
        failed = [result for result in self.results if result.status == "failed"]
        return 0 if not failed else 2 if all(result.users_fault for result in failed) else 1

    def summary(self) -> dict[str, Any]:
        """Return the run as `summary.json` holds it."""
        counts = {status: sum(r.status == status for r in self.results) for status in ("done", "skipped", "failed")}
        return {
            "schema": SCHEMA,
            "model": self.run.model(),
            "run": self.run.settings(),
            "cases": [
                {key: _printable(value) for key, value in asdict(result).items() if key != "users_fault"}
                for result in self.results
            ],
            **counts,
            "seconds": time.perf_counter() - self.started_s,
            "interrupted": not self._finished,
            "exit_status": self.exit_status if self._finished else None,
        }

    def finish(self, as_json: bool) -> None:
        """Write the summary and print it.

        Raises:
            OutputError: If it cannot be written.
        """
        self._bar.close()
        self._finished = True
        self._write_summary()
        if as_json:
            print(json.dumps(self.summary(), indent=2, allow_nan=False))
        else:
            print(self._table())

    def _write_summary(self) -> None:
        path = self.folder / "summary.json"
        temporary = self.folder / f".summary.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.summary(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OutputError(f"{path} cannot be written ({error.strerror or error}); check the folder") from error

    def _table(self) -> str:
        rows: list[tuple[str, str, str, str]] = [("case", "status", "seconds", "")]
        rows += [(_shortened(r.case or r.input), r.status, f"{r.seconds:.1f}", r.message) for r in self.results]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {status:<{widths[1]}}  {seconds:>{widths[2]}}  {message}".rstrip()
            for name, status, seconds, message in rows
        ]
        counts = self.summary()
        lines.append(
            f"{counts['done']} done, {counts['skipped']} skipped, {counts['failed']} failed "
            f"in {counts['seconds']:.1f} s; results in {self.folder}"
        )
        return _printable("\n".join(lines))


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else "..." + name[3 - LONGEST_NAME :]


def _printable(value: Any) -> Any:
    """Replace what no output encoding can hold: bytes of file names that are no text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return value
