"""Build of the optional compiled operators; everything else about the package stands in pyproject.toml.

The environment variable DINOMED_BUILD says what is compiled: `auto` (the default) tries the CPU library and goes on
without it, saying so once; `none` compiles nothing; `cpu` and `cuda` fail loudly where they cannot be built.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import setup

SOURCES = Path("csrc") / "ms_deform_attn"
CHOICES = ("auto", "none", "cpu", "cuda")


def extension_modules() -> list[object]:
    """Say which extensions to compile: none yet, since this version holds no kernel sources."""
    choice = os.environ.get("DINOMED_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"DINOMED_BUILD={choice!r} is unknown; choose from {', '.join(CHOICES)}")
    if choice in ("cpu", "cuda") and not SOURCES.is_dir():
        sys.exit(
            f"DINOMED_BUILD={choice} was asked for, but this version of dinomed has no {SOURCES} to compile; "
            "unset it to install with the plain-PyTorch operators"
        )
    return []


setup(ext_modules=extension_modules())
