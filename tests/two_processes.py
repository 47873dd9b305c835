"""Two Gloo processes on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def run_together(work: Callable[..., Any], folder: Path, *arguments: Any, count: int = 2) -> list[Any]:
    """Call `work(*arguments)` in processes that have met, and return what each one returns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (count, port, str(folder), work, arguments)
    multiprocessing.start_processes(_one, given, nprocs=count, start_method="spawn")
    return [torch.load(folder / f"returned_{rank}.pt", weights_only=False) for rank in range(count)]


def _one(rank: int, count: int, port: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    try:
        torch.save(work(*arguments), Path(folder) / f"returned_{rank}.pt")
    finally:
        distributed.destroy_process_group()
