"""Names, facts and settings as clients send them, checked before anything is done with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinomed.errors import InputError

LONGEST_NAME_BYTES = 200
"""Of a scan or a tag; file systems allow 255 with endings and the mark of a temporary file."""
OF_THE_SERVER = ("id", "path", "name", "ts")
"""Facts of a scan that the server itself notes or answers with."""


def read_object(text: str | bytes, what: str = "params") -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: If it is no JSON, holds NaN or infinity, or is no object.
    """
    try:
        value = json.loads(text, parse_constant=_number, parse_float=_number)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is no JSON ({error}); send an object such as {{}}") from error
    if not isinstance(value, dict):
        raise InputError(f"{what} is {json.dumps(value)[:40]}; send an object such as {{}}")
    return value


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InputError(f"{text[:40]} is no number that can be kept; send null or leave it out")
    return number


def check_name(name: str, what: str) -> None:
    """Refuse what could not be part of a file's name in the folder of scans.

    Raises:
        InputError: If it is empty, long, hidden, not printable or a path.
    """
    printable = bool(name) and name.isprintable()
    if not printable or Path(name).name != name or name[0] == "." or len(name.encode()) > LONGEST_NAME_BYTES:
        raise InputError(
            f"{name[:40]!r} cannot be {what}; take up to {LONGEST_NAME_BYTES} letters, without slashes and without a "
            "dot in front"
        )


def check_facts(facts: Any, what: str, of_the_server: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return facts that are noted with a scan or a label.

    Raises:
        InputError: If they are no object that JSON can hold, or would stand in for the server's own.
    """
    if not isinstance(facts, Mapping):
        raise InputError(f"{what} must be an object such as {{}}, not {str(facts)[:40]}")
    for name in of_the_server:
        if name in facts:
            raise InputError(f"{what} must not hold {name!r}, which the server notes itself; leave it out")
    if not isinstance(facts.get("strategy", {}), Mapping):
        raise InputError(f"{what} must hold an object as 'strategy', which the strategies note; leave it out")
    try:
        json.dumps(facts, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise InputError(f"{what} cannot be kept as JSON ({error}); send finite numbers, texts and objects") from error
    return dict(facts)
