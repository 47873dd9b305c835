"""Trainings, scores and batches: the server runs them in processes of their own, and they end with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time

import psutil
from monailabel.utils.async_tasks.utils import background_executors, processes, stop_background_task, tasks

METHODS = ("train", "scoring", "batch_infer")
"""MONAI Label's names for the kinds of background tasks."""
WAITING = ("SUBMITTED", "RUNNING")
SERVER_PID = "DINOMED_LABEL_SERVER_PID"
WATCH_S = 0.5
LAST_LINE_S = 1.0
"""MONAI Label reads a process's output only while it lives."""


def own_processes() -> None:
    """Tell all processes that this one begins which server they belong to."""
    os.environ[SERVER_PID] = str(os.getpid())


def end_with_server() -> None:
    """End this process when its server is gone, now or later; two trainings would write into one folder."""
    end_if_orphaned()
    threading.Thread(target=_watch, daemon=True).start()


def end_if_orphaned() -> None:
    """End this process at once if a server began it that is gone."""
    pid = os.environ.get(SERVER_PID)
    if pid is not None and int(pid) not in [process.pid for process in psutil.Process().parents()]:
        os._exit(1)


def _watch() -> None:
    while True:
        time.sleep(WATCH_S)
        end_if_orphaned()


def is_waiting(method: str) -> bool:
    """Whether a task of a kind runs or is about to."""
    return any(task["status"] in WAITING for task in tasks(method))


def drop_waiting(method: str) -> None:
    """Drop the tasks of a kind that have not begun; one that is beginning is waited for, so that it can be stopped."""
    executor = background_executors.pop(method, None)
    if executor is None:
        return
    executor.shutdown(wait=False, cancel_futures=True)
    end = threading.Thread(target=executor.shutdown, daemon=True)
    end.start()
    while end.is_alive() and not processes(method):
        end.join(0.05)
    for task in tasks(method):
        if task["status"] == "SUBMITTED" and task["id"] not in processes(method):
            task["status"] = "STOPPED"


async def stop_with_server() -> None:
    """Wait for the end of the server's loop and stop all tasks then; Python would wait for the end of a training."""
    try:
        await asyncio.Event().wait()
    finally:
        for method in METHODS:
            drop_waiting(method)
            with contextlib.suppress(psutil.NoSuchProcess):
                stop_background_task(method)
