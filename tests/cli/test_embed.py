"""`dinomed embed`, from the command line to its files."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.cli.main import main
from dinomed.networks import create_backbone


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Whole weights of the smallest backbone, in timm's layout."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(create_backbone("dinov3_vit_tiny16").model.state_dict(), path)
    return path


@pytest.fixture
def scan(tmp_path):
    array = (300 * np.random.default_rng(0).standard_normal((30, 30, 9))).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def embed(*arguments):
    return main(["embed", *map(str, arguments)])


def test_scans_and_pictures_become_folders_of_arrays(scan, weights, tmp_path, capsys):
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    common = ["--backbone", "dinov3_vit_tiny16", "--weights", weights, "--resize", 32, "--max-slices", 4]
    out = tmp_path / "out"
    assert embed(scan, tmp_path / "photo.png", "--output", out, "--cache", tmp_path / "cache", *common) == 0
    assert np.load(out / "ct" / "slice_embeddings.npy").shape == (4, 192)
    assert np.load(out / "ct" / "slice_indices.npy").tolist() == [0, 3, 5, 8]
    assert np.load(out / "ct" / "volume_embedding.npy").shape == (192,)
    summary = json.loads((out / "ct" / "summary.json").read_text())
    assert summary["slices"] == 4
    assert summary["backbone"] == "dinov3_vit_tiny16"
    assert summary["pool"] == "cls"
    assert [json.loads(line)["case"] for line in capsys.readouterr().out.splitlines()] == ["ct", "photo"]
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2
    before = np.load(out / "ct" / "slice_embeddings.npy")
    assert embed(scan, "--output", out, "--cache", tmp_path / "cache", *common) == 0
    np.testing.assert_array_equal(np.load(out / "ct" / "slice_embeddings.npy"), before)


def test_one_bad_scan_does_not_stop_the_others(scan, weights, tmp_path, capsys):
    (tmp_path / "bad.nii.gz").write_bytes(b"no scan")
    common = ["--backbone", "dinov3_vit_tiny16", "--weights", weights, "--resize", 32]
    assert embed(tmp_path / "bad.nii.gz", scan, "--output", tmp_path / "out", *common) == 2
    assert (tmp_path / "out" / "ct" / "summary.json").is_file()
    assert "bad.nii.gz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backbone", "resnet50"], "there is no backbone 'resnet50'"),
        (["--pool", "max"], "pool 'max' is unknown"),
        (["--resize", "4"], "resize must be 16 or more"),
        (["--precision", "int8"], "precision 'int8' is unknown"),
        (["--batch-size", "0"], "the batch size must be 1 or more"),
        (["--weights", "absent.pth"], "absent.pth"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(scan, weights, tmp_path, capsys, arguments, sentence):
    given = [scan, "--backbone", "dinov3_vit_tiny16", "--weights", weights, "--output", tmp_path / "out", *arguments]
    assert embed(*given) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_weights_must_be_named(scan, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        embed(scan, "--output", tmp_path / "out")
    assert left.value.code == 2
    assert "--weights" in capsys.readouterr().err
