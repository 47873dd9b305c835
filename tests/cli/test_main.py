"""The command as a whole: help, arguments, exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinomed import __version__
from dinomed.cli import bundle as bundle_verb
from dinomed.cli.main import main
from dinomed.errors import DinomedError


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_help_and_version_import_nothing_heavy(repository: Path) -> None:
    code = (
        "import sys\nfrom dinomed.cli.main import build_parser\nbuild_parser().format_help()\n"
        "print([name for name in ('torch', 'monai', 'numpy', 'matplotlib', 'nibabel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--version") == 0
    assert capsys.readouterr().out.strip() == f"dinomed {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["segment"],
        ["segment", "a.nii"],
        ["segment", "a.nii", "--bundle", "x", "--output", "y", "--frame", "z"],
    ],
)
def test_wrong_arguments_are_exit_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 2
    assert "usage: dinomed" in capsys.readouterr().err


def test_a_missing_bundle_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "check", "no-such-bundle"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dinomed: there is no bundle 'no-such-bundle'")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RuntimeError("two\nlines"), 1, "internal error, please report it: RuntimeError: two lines (test_main.py:"),
        (DinomedError("the output is not finite"), 1, "the output is not finite"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_become_one_line_and_a_status(
    error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(bundle_verb, "run_list", fail)
    assert main(["bundle", "list"]) == status
    printed = capsys.readouterr().err
    assert printed.startswith(f"dinomed: {words}")
    assert printed.count("\n") == 1


def test_sigterm_ends_the_command_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def wait(_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(bundle_verb, "run_list", wait)
    assert main(["bundle", "list"]) == 143
    assert cleaned
    assert "SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_module_runs_as_the_command(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dinomed.cli", "--version"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("dinomed ")
