"""What the bundle's tests share: tiny label maps and a trained tiny network."""

from __future__ import annotations

from pathlib import Path

import pytest
from head_bundle import TINY_TRAINING, run
from head_maps import write_maps


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
