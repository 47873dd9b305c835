"""Embeddings on disk, so that a scan is embedded once whatever is done with it afterwards.

An entry's name is the checksum of all that decides its content: the scan's bytes, the backbone's weights, precision,
preprocessing, pooling, and the versions of entry and package. Entries are written to a name of their own and renamed,
so several processes may share a folder; the last one to finish wins with the same content. An entry that cannot be
read, or whose checksum is wrong, is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dinomed import __version__
from dinomed.data.features import FeatureExtractor, Features
from dinomed.errors import InputError, OutputError
from dinomed.transforms.provenance import scan_sha256

logger = logging.getLogger(__name__)

ENTRY_VERSION = 2
_ARRAYS = ("slices", "indices", "volume")


class FeatureCache:
    """A folder of embeddings.

    Args:
        folder: Made where it is absent.

    Raises:
        OutputError: If the folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OutputError(
                f"the cache folder {self.folder} cannot be written to ({error.strerror}); name another one"
            ) from error

    def features(self, extractor: FeatureExtractor, path: str | os.PathLike[str]) -> Features:
        """Embeddings of a scan or picture: from the folder if they are there, else made and kept.

        Raises:
            InputError: If the file cannot be read.
            OutputError: If the entry cannot be written.
        """
        key = self.key(extractor.describe(), Path(path))
        if key is None:  # the voxels lie where the header's name does not tell: nothing to know them by
            return extractor.extract(path)
        entry = self.folder / key[:2] / f"{key}.npz"
        found = _read(entry)
        if found is None:
            found = extractor.extract(path)
            _write(entry, found)
        return found

    @staticmethod
    def key(description: dict[str, Any], path: Path) -> str | None:
        """Name of a scan's entry; None where its content cannot be told.

        Raises:
            InputError: If the file cannot be read.
        """
        try:
            content = scan_sha256(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); check the name and your rights") from error
        if content is None:
            return None
        whole = {"scan": content, "entry": ENTRY_VERSION, "dinomed": __version__, **description}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _read(entry: Path) -> Features | None:
    """Read an entry; None where there is none or it is damaged."""
    try:
        stored = np.load(entry, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it is no archive of arrays")
        with stored:
            arrays = {name: stored[name] for name in (*_ARRAYS, "axis")}
            checksum = str(stored["checksum"])
        features = Features(arrays["slices"], arrays["indices"], arrays["volume"], int(arrays["axis"]))
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever zipfile and NumPy make of damaged bytes
        logger.warning("%s is damaged (%s) and is made anew", entry, error)
        return None
    if checksum != _checksum(features):
        logger.warning("%s is damaged (its checksum is wrong) and is made anew", entry)
        return None
    return features


def _write(entry: Path, features: Features) -> None:
    temporary = None
    try:
        entry.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".tmp", delete=False) as stream:
            temporary = Path(stream.name)
            arrays = {name: getattr(features, name) for name in _ARRAYS}
            np.savez(stream, **arrays, axis=np.int64(features.axis), checksum=np.array(_checksum(features)))
        temporary.replace(entry)
    except OSError as error:
        raise OutputError(f"{entry} cannot be written ({error.strerror}); make room or name another cache") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _checksum(features: Features) -> str:
    digest = hashlib.sha256(str(features.axis).encode())
    for name in _ARRAYS:
        array = getattr(features, name)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
