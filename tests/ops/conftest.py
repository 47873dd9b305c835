"""Fixtures of the operators' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dinomed.ops import kernels

REFUSED = "this machine lacks the instruction set, or no library was compiled"


@pytest.fixture(params=["portable", "avx2", "avx512"])
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the compiled CPU kernels in turn."""
    before = kernels.cpu_kernel()
    if before is None:
        pytest.skip(REFUSED)
    try:
        kernels.select_cpu_kernel(request.param)
    except ValueError:
        pytest.skip(REFUSED)
    yield request.param
    kernels.select_cpu_kernel(before)
