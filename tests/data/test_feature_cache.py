"""The cache of embeddings: what counts as the same, damage, and several processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from dinomed.data.feature_cache import FeatureCache
from dinomed.data.features import FeatureExtractor, FeatureSettings
from dinomed.errors import InputError, OutputError
from dinomed.networks import create_backbone


def make_extractor(seed=0, settings=None, precision="float32"):
    torch.manual_seed(seed)
    backbone = create_backbone("dinov3_vits16", embed_dim=32, depth=1, num_heads=2)
    return FeatureExtractor(backbone, settings or FeatureSettings(resize=32), precision=precision)


@pytest.fixture
def scan(tmp_path):
    array = (300 * np.random.default_rng(0).standard_normal((20, 20, 3))).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


@pytest.fixture
def counted(monkeypatch):
    """Count how often a scan is really embedded."""
    calls = []
    extract = FeatureExtractor.extract
    monkeypatch.setattr(FeatureExtractor, "extract", lambda self, path: calls.append(path) or extract(self, path))
    return calls


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


def test_a_scan_is_embedded_once_whatever_it_is_called(scan, tmp_path, counted):
    cache, extractor = FeatureCache(tmp_path / "cache"), make_extractor()
    first = cache.features(extractor, scan)
    shutil.copy(scan, tmp_path / "copy.nii.gz")
    again = cache.features(extractor, tmp_path / "copy.nii.gz")
    assert len(counted) == 1
    for name in ("slices", "indices", "volume"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
        assert getattr(again, name).dtype == getattr(first, name).dtype
    assert again.axis == first.axis


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"settings": FeatureSettings("patch", 32)},
        {"settings": FeatureSettings("meanmax", 32)},
        {"settings": FeatureSettings("cls", 48)},
        {"settings": FeatureSettings("cls", None)},
        {"settings": FeatureSettings("cls", 32, stride=2)},
        {"settings": FeatureSettings("cls", 32, max_slices=2)},
        {"precision": "bfloat16"},
    ],
)
def test_whatever_changes_the_embedding_changes_the_entry(scan, tmp_path, counted, changed):
    cache = FeatureCache(tmp_path / "cache")
    cache.features(make_extractor(), scan)
    cache.features(make_extractor(**changed), scan)
    assert len(counted) == 2
    assert len(entries(cache.folder)) == 2


def test_the_window_and_the_version_count(scan, tmp_path, counted, monkeypatch):
    cache = FeatureCache(tmp_path / "cache")
    cache.features(make_extractor(), scan)
    monkeypatch.setattr("dinomed.data.features.HIGH_HU", 900.0)
    cache.features(make_extractor(), scan)
    monkeypatch.setattr("dinomed.data.feature_cache.__version__", "another")
    cache.features(make_extractor(), scan)
    assert len(counted) == 3


def test_a_changed_file_is_embedded_again(scan, tmp_path, counted):
    cache, extractor = FeatureCache(tmp_path / "cache"), make_extractor()
    cache.features(extractor, scan)
    nibabel.save(nibabel.Nifti1Image(np.arange(1200.0, dtype=np.float32).reshape(20, 20, 3), np.eye(4)), scan)
    cache.features(extractor, scan)
    assert len(counted) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "bit", "encrypted", "array", "axes", "other"])
def test_a_damaged_entry_is_made_anew(scan, tmp_path, counted, damage):
    cache, extractor = FeatureCache(tmp_path / "cache"), make_extractor()
    wanted = cache.features(extractor, scan)
    (entry,) = entries(cache.folder)
    content = bytearray(entry.read_bytes())
    if damage == "bit":
        content[len(content) // 3] ^= 4
    if damage == "encrypted":  # as one bit of the archive's list says
        content[content.rindex(b"PK\1\2") + 8] |= 1
        content[content.index(b"PK\1\2") + 8] |= 1
    if damage == "array":
        with entry.open("wb") as stream:
            np.save(stream, wanted.volume)
    elif damage == "axes":
        with np.load(entry) as stored:
            arrays = dict(stored)
        np.savez(entry, **{**arrays, "axis": np.arange(2)})
    elif damage == "other":  # a sound file with other numbers and the old checksum
        with np.load(entry) as stored:
            arrays = dict(stored)
        arrays["slices"] = arrays["slices"] + 1
        np.savez(entry, **arrays)
    else:
        entry.write_bytes(
            {"cut": content[:200], "empty": b"", "garbage": b"x" * 500, "bit": content, "encrypted": content}[damage]
        )
    found = cache.features(extractor, scan)
    np.testing.assert_array_equal(found.slices, wanted.slices)
    np.testing.assert_array_equal(cache.features(extractor, scan).slices, wanted.slices)
    assert len(counted) == 2


def test_no_half_entry_is_left(scan, tmp_path, monkeypatch):
    cache, extractor = FeatureCache(tmp_path / "cache"), make_extractor()

    def fail(stream, **arrays):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OutputError, match="No space left"):
        cache.features(extractor, scan)
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def embed(folder: str, scan: str) -> list[float]:
    torch.set_num_threads(1)
    return FeatureCache(folder).features(make_extractor(), scan).volume.tolist()


def test_several_processes_may_share_a_folder(scan, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(embed, [(str(tmp_path / "cache"), str(scan))] * 4)
    assert all(vector == found[0] for vector in found)
    assert len(entries(tmp_path / "cache")) == 1
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written to"):
        FeatureCache(tmp_path / "file" / "cache")
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(OutputError, match="name another"):
            FeatureCache(tmp_path / "shut")


def test_an_absent_scan_is_the_users_error(tmp_path):
    with pytest.raises(InputError, match=r"absent\.nii"):
        FeatureCache(tmp_path).features(make_extractor(), tmp_path / "absent.nii")
