"""What the user may choose: device and planes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dinomed.errors import InputError
from dinomed.inferers.planes import PLANE_AXES


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is there.

    Raises:
        InputError: If it is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"device {name!r} is unknown; choose auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise InputError(f"device {name!r} was asked for, but PyTorch sees no CUDA GPU; use --device cpu or auto")
        if index and int(index) >= count:
            raise InputError(f"device {name!r} was asked for, but there are only cuda:0 to cuda:{count - 1}")
    return torch.device(name)


def choose_planes(planes: str | Sequence[str]) -> tuple[str, ...]:
    """Turn "axial,coronal" or a sequence of names into planes.

    Raises:
        InputError: If one is unknown or named twice, or there is none.
    """
    names = [name.strip() for name in (planes.split(",") if isinstance(planes, str) else planes)]
    allowed = ", ".join(sorted(PLANE_AXES))
    for name in names or [""]:
        if name not in PLANE_AXES:
            raise InputError(f"plane {name!r} is unknown; choose one or more of {allowed}, separated by commas")
    if len(set(names)) != len(names):
        raise InputError(f"planes {','.join(names)} name one plane twice; choose each of {allowed} at most once")
    return tuple(names)
