"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


def _shared(name: str) -> Path:
    folder = REPOSITORY.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"reference folder ../shared/{name} is not here; it is no part of the repository")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of published reference numbers, beside the repository; skips the test where it is absent."""
    return _shared("golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real scans and label maps, beside the repository; skips the test where it is absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _open_log_streams() -> None:
    """Drop handlers that write to what an earlier test captured: a bundle's logging.conf leaves them behind."""
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in list(getattr(logger, "handlers", [])):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(autouse=True, scope="module")
def _process_wide_settings() -> Iterator[None]:
    """Give back what running a configuration changes for the whole process."""
    hook, fill = sys.excepthook, torch.utils.deterministic.fill_uninitialized_memory
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    sys.excepthook = hook
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_flush_denormal(False)
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
