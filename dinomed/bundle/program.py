"""Running the programs of a bundle, as `python -m monai.bundle run` does."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from dinomed.bundle.causes import own_error
from dinomed.bundle.config import config_file, one_line, overlay_file, read_configs
from dinomed.bundle.locate import METADATA, find_bundle
from dinomed.bundle.settings import check_overlay
from dinomed.errors import BundleError, DinomedError, OutputError

PACKAGE = Path(__file__).resolve().parents[1]


def run_program(
    bundle: str | os.PathLike[str],
    configs: Sequence[str],
    run_id: str,
    overrides: Mapping[str, Any] | None = None,
    overlays: Sequence[str] = (),
) -> None:
    """Run an id of a bundle's configuration, from `initialize` to `finalize`.

    Args:
        bundle: Folder or name of the bundle.
        configs: Names of the config files, later ones laid over earlier ones.
        run_id: What to run; `run` where the configuration does not have it.
        overrides: Values for ids of the configuration.
        overlays: Variants of the last config, laid over all.

    Raises:
        BundleError: If the bundle, a config or an id that is set or run is not there, or a component cannot be built.
        DinomedError: As raised by what runs, or if a component cannot be built for a reason within this package.
    """
    root = find_bundle(bundle)
    files = [config_file(root, name) for name in configs]
    laid_over = [overlay_file(root, overlay, configs[-1]) for overlay in overlays]
    files += laid_over
    _check_settings(root, files, overrides or {})
    for file in laid_over:
        check_overlay(root, file, read_configs(root, files))
    settings = {"bundle_root": str(root), **(overrides or {})}
    try:
        workflow = ConfigWorkflow(
            config_file=[str(file) for file in files],
            meta_file=str(root / METADATA),
            workflow_type="train" if "train" in configs else "infer",
            run_id=run_id,
            **settings,
        )
    except Exception as error:
        names = " with ".join(file.name for file in files)
        raise BundleError(f"{names} of the bundle {root} cannot be read: {one_line(error)}") from error
    if run_id not in workflow.parser:
        workflow.run_id = "run"
    try:
        workflow.initialize()
    except Exception as error:
        own = own_error(error)
        if own is not None:
            raise own from None
        if _out_of_memory(error):
            raise
        place = _place_in_our_code(error)
        if place:
            raise DinomedError(
                f"the {configs[-1]} config of {root.name} cannot be built ({one_line(error)}, in {place}): check the "
                "types of what --set and the config say, and if they are right report this as a fault of dinomed"
            ) from error
        raise BundleError(
            f"the {configs[-1]} config of {root.name} cannot be built ({one_line(error)}); correct what --set or the "
            "config says"
        ) from error
    try:
        workflow.run()
        workflow.finalize()
    except Exception as error:
        own = own_error(error) or _fault_of_settings(error)
        if own is None:
            raise
        raise own from None


def _place_in_our_code(error: BaseException) -> str:
    """Say where in this package an error arose, empty if it did not.

    Our code refuses wrong values with a ValueError. Anything else that is raised in it, or in what it calls, is a bug
    or a value of a type that was not thought of. What MONAI cannot find, call or evaluate never reaches our code.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, (ValueError, OSError, ImportError)):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    # Frames of this module and its neighbours lead to MONAI and do not count.
    outermost = max((k for k, frame in enumerate(frames) if _in_monai(frame.filename)), default=-1)
    ours = [frame for frame in frames[outermost + 1 :] if Path(frame.filename).is_relative_to(PACKAGE)]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""


def _in_monai(filename: str) -> bool:
    """Whether a frame is of MONAI's configuration, which ends where a component or an expression begins."""
    return filename == "<string>" or "monai/bundle/" in filename or filename.endswith("monai/utils/module.py")


def _out_of_memory(error: BaseException) -> bool:
    while error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


def _fault_of_settings(error: BaseException) -> DinomedError | None:
    """Tell settings that show their fault only in the run, which our own code refuses with a ValueError, from bugs."""
    while error.__cause__ is not None:
        if str(error).startswith("Failed to instantiate"):
            return BundleError(
                f"a component cannot be built ({one_line(error)}); correct what --set or the config says"
            )
        error = error.__cause__
    if isinstance(error, OSError) and error.filename:
        return OutputError(f"{error.filename} cannot be used ({error.strerror}); check the path and your rights there")
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ValueError) and frames and Path(frames[-1].filename).is_relative_to(PACKAGE):
        return BundleError(f"the run stopped: {one_line(error)}; correct what --set or the config says")
    return None


def _check_settings(root: Path, files: Sequence[Path], overrides: Mapping[str, Any]) -> None:
    """Refuse to set ids that are not there, which MONAI would accept without effect."""
    parser = read_configs(root, files)
    for key in overrides:
        parent, _, name = key.replace("::", "#").rpartition("#")
        # An argument that a component does not have yet is refused or taken when the component is built.
        takes_arguments = bool(name and parent) and parent in parser and isinstance(parser[parent], Mapping)
        if key in parser or (takes_arguments and "_target_" in parser[parent]):
            continue
        close = difflib.get_close_matches(key, [name for name in parser.get() if name != "_meta_"], n=1)
        hint = f"did you mean {close[0]}?" if close else "see the config for its ids"
        raise BundleError(f"{' with '.join(file.name for file in files)} of {root.name} has no id {key!r}; {hint}")
