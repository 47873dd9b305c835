"""What the bundle's tests share: tiny label maps, a trained tiny network, and tidy process-wide settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from head_bundle import TINY_TRAINING, run
from head_maps import write_maps


@pytest.fixture(autouse=True, scope="package")
def settings() -> Iterator[None]:
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


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three label maps; the third is for validation."""
    folder = tmp_path_factory.mktemp("head_labels")
    write_maps(folder, 3, size=40)
    return folder


@pytest.fixture(scope="session")
def trained(maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a whole tiny training."""
    output = tmp_path_factory.mktemp("trained")
    run(["train"], "training", dataset_dir=str(maps), output_dir=str(output), **TINY_TRAINING)
    return output
