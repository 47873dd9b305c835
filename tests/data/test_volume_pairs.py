from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinomed.data.volume_pairs import list_pairs
from dinomed.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    touch(tmp_path / "images", "a.nii.gz", "b.nii.gz", "c.mha")
    touch(tmp_path / "labels", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    return tmp_path


def names(pairs: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(Path(pair["image"]).name, Path(pair["label"]).name) for pair in pairs]


def test_scans_and_label_maps_meet_by_name(root: Path) -> None:
    assert names(list_pairs(root)) == [("a.nii.gz", "a.nii.gz"), ("b.nii.gz", "b.nii.gz"), ("c.mha", "c.nii.gz")]


def test_cases_kept_for_validation_are_not_trained_on(root: Path) -> None:
    assert names(list_pairs(root, "training", ["b"])) == [("a.nii.gz", "a.nii.gz"), ("c.mha", "c.nii.gz")]
    assert names(list_pairs(root, "validation", ["b"])) == [("b.nii.gz", "b.nii.gz")]
    assert list_pairs(root, "validation") == list_pairs(root, "training")
    with pytest.raises(InputError, match="no case d"):
        list_pairs(root, "training", ["d"])
    with pytest.raises(InputError, match="leaves no case to train on"):
        list_pairs(root, "training", ["a", "b", "c"])


def test_two_files_are_a_pair_whatever_they_are_called(tmp_path: Path) -> None:
    touch(tmp_path, "ct.nii.gz", "seg.nii.gz")
    pairs = list_pairs("unused", images=tmp_path / "ct.nii.gz", labels=str(tmp_path / "seg.nii.gz"))
    assert names(pairs) == [("ct.nii.gz", "seg.nii.gz")]


def test_a_json_list_names_files_from_its_own_folder(root: Path) -> None:
    entry = {"image": "images/a.nii.gz", "label": "labels/b.nii.gz"}
    (root / "list.json").write_text(
        json.dumps({"training": [entry], "validation": [{**entry, "label": "labels/a.nii.gz"}]})
    )
    assert names(list_pairs(root / "list.json")) == [("a.nii.gz", "b.nii.gz")]
    assert names(list_pairs(root / "list.json", "validation")) == [("a.nii.gz", "a.nii.gz")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold"),
        ('{"training": [{"image": "images/a.nii.gz"}]}', "lacks 'label'"),
        ('{"training": [{"image": "images/x.nii.gz", "label": "labels/a.nii.gz"}]}', "names images/x.nii.gz"),
        ('{"training": []}', "no case to train on"),
    ],
)
def test_lists_that_make_no_sense_are_refused(root: Path, content: str, said: str) -> None:
    (root / "list.json").write_text(content)
    with pytest.raises(InputError, match=said):
        list_pairs(root / "list.json")


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    (root / "labels" / "b.nii.gz").unlink()
    with pytest.raises(InputError, match="b: only in one of"):
        list_pairs(root)
    with pytest.raises(InputError, match="no such file or folder"):
        list_pairs(tmp_path / "absent")
    with pytest.raises(InputError, match="no volumes here"):
        list_pairs(root, labels=touch(tmp_path / "empty"))
