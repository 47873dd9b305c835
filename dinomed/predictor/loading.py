"""Reading a bundle's inference configuration, building its parts, and explaining what goes wrong in them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from dinomed.bundle.causes import own_error
from dinomed.bundle.config import read_configs, resolve
from dinomed.bundle.settings import InferenceSettings
from dinomed.errors import BundleError, DinomedError, InputError
from dinomed.inferers.precision import PRECISIONS
from dinomed.transforms.report import name_labels

Component = TypeVar("Component")


def read_parser(
    root: Path, files: Sequence[Path], overrides: dict[str, Any], batch_size: int | None = None
) -> ConfigParser:
    """Read the inference config, after refusing settings that the bundle has not and MONAI would take in silence.

    `batch_size` is of slices where the bundle tells batches of slices from batches of scans.
    """
    parser = read_configs(root, files)
    if batch_size is not None:
        name = "embed_batch_size" if "embed_batch_size" in parser else "batch_size"
        overrides = {**overrides, name: batch_size}
    for key, words in (("tta", "no test-time augmentation"), ("planes", "no planes; it is for flat pictures")):
        if key in overrides and key not in parser:
            raise InputError(f"the bundle {root.name} has {words}; leave --{key} out")
    return read_configs(root, files, overrides)


def picture_settings(parser: ConfigParser, root: Path) -> InferenceSettings:
    """Read the settings of a bundle for pictures.

    Raises:
        BundleError: If one is absent or cannot be used.
    """
    names = name_labels(resolve(parser, "label_names", root))
    outputs, precision = resolve(parser, "num_classes", root), resolve(parser, "precision", root)
    if len(names) != max(2, int(outputs)):
        raise BundleError(
            f"the configuration of {root.name} has {len(names)} label_names for {outputs} outputs of the network; "
            "give one name for each"
        )
    if precision not in PRECISIONS:
        raise BundleError(f"precision {precision!r} of {root.name} is unknown; choose from {', '.join(PRECISIONS)}")
    return InferenceSettings(precision, (), names, None, None)


def component_of(parser: ConfigParser, root: Path, key: str, kind: type[Component]) -> Component:
    """Build an id of the config and check what it is, so that a wrong one is refused before a scan is read."""
    component = resolve(parser, key, root)
    if isinstance(component, kind) and not (kind is Compose and len(getattr(component, "transforms", ())) < 2):
        return component
    wanted = (
        "a Compose of the loading and at least one more transform"
        if kind is Compose
        else f"of the kind {kind.__name__}"
    )
    raise BundleError(f"{key} of the bundle {root.name} must be {wanted}, not {type(component).__name__}; correct it")


def timed(timings: dict[str, float | None], stage: str, work: Callable[[], Any]) -> Any:
    """Do some work and note how many seconds it took."""
    started_s = time.perf_counter()
    result = work()
    timings[stage] = time.perf_counter() - started_s
    return result


@contextmanager
def explaining(path: str | os.PathLike[str], device: torch.device) -> Iterator[None]:
    """Give what goes wrong with a scan or a picture its sentence; what has none is raised as it is.

    Raises:
        DinomedError: Found inside what MONAI wrapped.
        InputError: If the memory does not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = _explained(error, path, device)
        if reason is None:
            raise
        raise reason from None


def _explained(error: BaseException, path: str | os.PathLike[str], device: torch.device) -> DinomedError | None:
    """Find the sentence inside what MONAI wrapped, or make one where the memory ran out."""
    own = own_error(error)
    if own is not None:
        return own
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(cause):
        return InputError(
            f"{path}: the memory of the {device.type} does not suffice for it; "
            "use a smaller --batch-size, another --device, or a machine with more memory"
        )
    return None
