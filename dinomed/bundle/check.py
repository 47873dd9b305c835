"""Checking a bundle: its files, metadata, configurations and weights, each finding with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, verify_net_in_out
from packaging.version import InvalidVersion, Version

from dinomed.bundle.check_config import check_config
from dinomed.bundle.checkpoint import load_network
from dinomed.bundle.config import SUFFIXES, config_file, config_names, program_configs, read_configs, resolve
from dinomed.bundle.locate import METADATA, WEIGHTS, find_bundle, read_metadata
from dinomed.errors import BundleError, DinomedError

REQUIRED_METADATA = (
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task"),
    *("description", "authors", "copyright", "changelog", "schema", "network_data_format"),
)
REQUIRED_TENSOR_FIELDS = (
    *("type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def"),
)
FAKE_SIZE = 64
"""Extent of a `*` in the metadata when the network is tried."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        ok: Whether it is as it should be.
        what: What was checked.
        reason: Why not, or a remark.
    """

    ok: bool
    what: str
    reason: str = ""


def check_bundle(bundle: str | os.PathLike[str]) -> list[Finding]:
    """Check a bundle without running or changing it.

    Args:
        bundle: Folder or name of the bundle.

    Raises:
        BundleError: If it is not there or is no bundle at all.
    """
    root = find_bundle(bundle)
    return [
        *_check_files(root),
        *_guarded("metadata", lambda: check_metadata(root)),
        *_check_programs(root),
        *_guarded("network", lambda: _check_network(root)),
    ]


def _guarded(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn an error inside a check into a finding, so that the other checks go on."""
    try:
        yield from check()
    except DinomedError as error:
        yield Finding(False, what, str(error))
    except Exception as error:  # whatever a bundle's own code raises is a finding about the bundle
        yield Finding(False, what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _check_files(root: Path) -> Iterator[Finding]:
    for name in ("LICENSE", str(METADATA), "docs/README.md"):
        path = root / name
        present = path.is_file() and path.stat().st_size > 0
        yield Finding(present, f"file {name}", "" if present else "is absent or empty")
    for name in ("inference", "train"):
        present = any((root / "configs" / f"{name}{suffix}").is_file() for suffix in SUFFIXES)
        yield Finding(present, f"file configs/{name}.yaml", "" if present else "is absent, as YAML and as JSON")
    weights = [name for name in WEIGHTS if (root / "models" / name).is_file()]
    if not weights and not _ships_weights(root):
        yield Finding(True, "weights", "none are shipped, as the metadata say")
        return
    yield Finding(bool(weights), f"file models/{weights[0] if weights else WEIGHTS[0]}", "" if weights else "is absent")


def _ships_weights(root: Path) -> bool:
    """Whether a bundle should have weights: all do whose metadata do not say `"ships_weights": false`."""
    try:
        return read_metadata(root).get("ships_weights") is not False
    except BundleError:  # a finding of its own
        return True


def check_metadata(root: Path) -> Iterator[Finding]:
    """Compare the metadata with the fields that MONAI and its tools read.

    Raises:
        BundleError: If they cannot be read.
    """
    metadata = read_metadata(root)
    missing = [key for key in REQUIRED_METADATA if not metadata.get(key)]
    yield Finding(not missing, "metadata fields", f"lacks {', '.join(missing)}" if missing else "")
    changelog = metadata.get("changelog") or {}
    listed = isinstance(changelog, Mapping) and metadata.get("version") in changelog
    yield Finding(listed, "metadata changelog", "" if listed else f"has no entry for version {metadata.get('version')}")
    yield from _check_tensors(metadata.get("network_data_format") or {})
    yield from _check_versions(metadata)


def _check_tensors(data_format: Mapping[str, Any]) -> Iterator[Finding]:
    for group, name in (("inputs", "image"), ("outputs", "pred")):
        what = f"metadata network_data_format#{group}#{name}"
        tensors = data_format.get(group) or {}
        first = next(iter(tensors), None)
        if first != name:
            yield Finding(False, what, f"must come first among the {group}, which start with {first}")
            continue
        missing = [key for key in REQUIRED_TENSOR_FIELDS if key not in tensors[name]]
        channels, named = tensors[name].get("num_channels"), tensors[name].get("channel_def") or {}
        reason = f"lacks {', '.join(missing)}" if missing else ""
        if not missing and group == "outputs" and channels != len(named):
            reason = f"has {channels} channels, but channel_def names {len(named)}"
        yield Finding(not reason, what, reason)


def _check_versions(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the versions that the bundle asks for with what is installed."""
    wanted = {
        "monai": metadata.get("monai_version"),
        "torch": metadata.get("pytorch_version"),
        "numpy": metadata.get("numpy_version"),
        **(metadata.get("required_packages_version") or {}),
    }
    for package, minimum in wanted.items():
        what = f"installed {package}"
        try:
            installed = version(package)
        except PackageNotFoundError:
            if package != "dinomed":  # which may run from a source tree
                yield Finding(False, what, f"is absent; the bundle asks for {minimum}")
            continue
        try:
            enough = Version(installed) >= Version(str(minimum))
        except InvalidVersion:
            yield Finding(False, what, f"{installed} cannot be compared with {minimum!r}")
            continue
        yield Finding(enough, what, f"{installed}" if enough else f"{installed} is older than {minimum}")


def _check_programs(root: Path) -> Iterator[Finding]:
    for name in config_names(root):
        yield from _guarded(f"config {name}", partial(_check_program, root, name))


def _check_program(root: Path, name: str) -> Iterator[Finding]:
    try:
        names = program_configs(root, name)
    except BundleError:
        names = [name]  # its problems are listed one by one below
    parser = _read(root, names)
    label = f"config {'+'.join(names)}"
    yield Finding(True, f"{label} parses")
    kind = "train" if "train" in name else "infer"
    for what, problems in check_config(parser, kind).items():
        yield Finding(not problems, f"{label} {what}", "; ".join(problems[:8]))


def _read(root: Path, names: Sequence[str]) -> ConfigParser:
    return read_configs(root, [config_file(root, name) for name in names])


def _check_network(root: Path) -> Iterator[Finding]:
    """Load the weights and try the network on an input of the shape that the metadata promise."""
    parser = _read(root, ("inference",))
    network = resolve(parser, "network_def", root)
    path = Path(str(resolve(parser, "ckpt_path", root)))
    if path.is_file() or _ships_weights(root):
        try:
            load_network(network, path, "cpu")
            count = sum(parameter.numel() for parameter in network.parameters())
            yield Finding(True, "weights fit the network", f"{count:,} parameters")
        except DinomedError as error:
            yield Finding(False, "weights fit the network", str(error))
    del network
    try:
        with torch.random.fork_rng():
            verify_net_in_out(
                net_id="network_def",
                meta_file=str(root / METADATA),
                config_file=str(config_file(root, "inference")),
                device="cpu",
                n=2,
                p=2,
                any=FAKE_SIZE,
                bundle_root=str(root),
            )
    except Exception as error:
        raise BundleError(f"the network does not do what network_data_format says: {error}") from error
    yield Finding(True, "network gives what network_data_format says")
