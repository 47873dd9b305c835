"""Reading weight files without running any code that they may hold."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dinomed.errors import WeightsError


def read_weights(path: Path) -> Mapping[str, object]:
    """Read a file or Hugging Face folder without running any code that it may hold.

    Raises:
        WeightsError: The file is absent, damaged, unsafe, or holds no dictionary.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise WeightsError(f"there is no file {path}: give the path of a .pth or .safetensors file, or a folder")
    _check_hash(path)
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            _check_kinds(path, tensors)
            return tensors
        # Mapped, a file of many gigabytes is not held twice; only the zip format allows it.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        if path.stat().st_size and "weights_only" in str(error).lower().replace(" ", "_"):
            raise WeightsError(
                f"{path} was refused, it holds objects other than tensors or is no PyTorch file, and loading those can "
                "run code: save the network's state_dict alone, as .safetensors for instance"
            ) from error
        raise damaged(path, error) from error
    except Exception as error:  # damaged files fail in many ways, all of them the file's fault
        raise damaged(path, error) from error
    _check_kinds(path, content)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, not a dictionary of named tensors: save a network's state_dict"
        )
    return content


def _check_kinds(path: Path, content: object) -> None:
    """Refuse tensors that are no plain numbers in memory, wherever they lie in the file."""
    pending = [("", content)]
    seen: set[int] = set()
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            pending += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, Tensor):
            plain = value.layout is torch.strided and value.device.type != "meta"
            if not plain or value.is_quantized or value.is_complex():
                raise WeightsError(
                    f"{path} holds a tensor that is sparse, quantised, complex or without values ({name}): "
                    "save the network's state_dict with dense real numbers"
                )


def damaged(path: Path, error: Exception) -> WeightsError:
    """Make the error for a file that cannot be read."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")
    return WeightsError(f"{path} ({path.stat().st_size} bytes) is damaged or no weights file ({reason}): get it anew")


def _read_folder(folder: Path) -> Mapping[str, object]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return read_weights(single)
    if not index.is_file():
        raise WeightsError(f"the folder {folder} holds no model.safetensors: give a Hugging Face folder, or a file")
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise damaged(index, error) from error
    state: dict[str, object] = {}
    for shard in shards:
        state.update(read_weights(folder / Path(shard).name))
    return state


def _check_hash(path: Path) -> None:
    """Compare a file whose name carries the start of its SHA-256 with it."""
    match = re.search(r"-([0-9a-fA-F]{8})\.(?:pth|pt|safetensors)$", path.name)
    if match is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    if not digest.hexdigest().startswith(match[1].lower()):
        raise WeightsError(
            f"{path} has the SHA-256 {digest.hexdigest()[:8]}..., but its name promises {match[1]}: "
            "download it again, or rename it if these digits are no hash"
        )
