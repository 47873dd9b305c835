"""Starting, killing and asking MONAI Label's server with this app."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

MODEL = "mri_head_segmentation"
START_S, TRAINING_S, LIFE_S = 300.0, 300.0, 1200.0
"""Limits of a start, a wait for a training, and all tests with one server: MONAI Label's client waits for ever."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _die_with_parent() -> None:
    """Ask Linux to end the server when the tests are killed, so that nothing stays behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Server:
    """A server of its own process group, ended whatever happens and in time at the latest; use it with `with`."""

    def __init__(self, studies: Path, log: Path) -> None:
        self.studies = studies
        self.log = log
        self.app = studies.with_name(f"{studies.name}_label_app")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.started_with: list[Any] = ["-m", "dinomed.label_app"]
        self.late = False
        self._end = threading.Timer(LIFE_S, self._end_late)
        self._end.daemon = True

    def __enter__(self) -> Server:
        self._end.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.cancel()
        self.kill(everything=True)

    def _end_late(self) -> None:
        self.late = True
        self.kill(everything=True)

    def start(self) -> None:
        assert not self.late, f"the server's time is over:\n{self.said()}"
        # Whoever asks for anything but the server itself waits for an answer of a port where nobody listens.
        nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        environment = {**os.environ, **nowhere, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, *self.started_with, "--studies", self.studies, "--port", self.port]
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        ends = time.monotonic() + START_S
        while self.status("GET", "/info/") != 200:
            assert self.process.poll() is None, f"the server ended:\n{self.said()}"
            assert time.monotonic() < ends, f"the server does not answer:\n{self.said()}"
            time.sleep(0.5)

    def kill(self, everything: bool = False) -> None:
        """Kill the server at once, as a power cut would; or it and all that it has begun."""
        with contextlib.suppress(ProcessLookupError):
            if everything:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def status(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> int:
        return self.ask(method, path, body, kind)[0]

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, str]:
        """Status and text of an answer; 0 where nobody answers."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""


def refusal(ask: Any) -> tuple[int, str]:
    """Status and sentence of what the client was refused."""
    from monailabel.client.client import MONAILabelClientException

    try:
        ask()
    except MONAILabelClientException as error:
        status, _, text = str(error.msg).removeprefix("Status: ").partition(";")
        return int(status), text
    raise AssertionError("the request was not refused")


def wait_for(server: Server, what: str, condition: Any, seconds: float = TRAINING_S) -> Any:
    """Ask until there is an answer that counts."""
    ends = time.monotonic() + seconds
    while not (answer := condition()):
        assert not server.late, f"the server's time is over:\n{server.said()}"
        assert time.monotonic() < ends, f"{what} does not come:\n{server.said()}"
        time.sleep(0.3)
    return answer
