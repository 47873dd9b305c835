"""Keeping third parties from talking over our own messages."""

from __future__ import annotations

import logging
import warnings


def silence_third_parties() -> None:
    """Hide the warnings and log lines of libraries, none of which the user of a command can act on."""
    warnings.filterwarnings("ignore")
    for name in ("monai", "ignite", "matplotlib", "nibabel", "pydicom", "timm"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
