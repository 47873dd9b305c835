"""Which scans a run works on and what their results are called."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from tiny_bundle import make_scan

from dinomed.cli.cases import find_cases, name_cases


def names(*paths: str) -> list[str]:
    return [case.name for case in name_cases([Path(path) for path in paths])]


def test_a_case_is_named_after_its_file() -> None:
    assert names("a/t1.nii.gz", "a/t2.mha") == ["t1", "t2"]


def test_scans_of_one_name_get_their_folders_names() -> None:
    assert names("s1/t1.mgz", "s2/t1.mgz", "s3/flair.mgz") == ["s1_t1", "s2_t1", "flair"]


def test_only_as_many_folders_as_are_needed() -> None:
    assert names("a/x/t1.nii", "b/x/t1.nii", "c/y/t1.nii") == ["a_x_t1", "b_x_t1", "y_t1"]


def test_names_that_differ_in_case_only_are_told_apart() -> None:
    assert names("a/T1.nii", "b/t1.nii") == ["a_T1", "b_t1"]


def test_formats_in_one_folder_are_told_apart() -> None:
    assert names("a/t1.nii.gz", "a/t1.nrrd") == ["t1_nii_gz", "t1_nrrd"]


@pytest.mark.parametrize(
    "paths",
    [["x/t1.nii", "y/t1.nii", "x_t1.nii"], ["a/b_c.nii", "a_b/c.nii", "c.nii"], ["a/t.nii", "a/t.mgz", "b/t.nii"]],
)
def test_no_two_cases_share_a_name(paths: list[str]) -> None:
    found = names(*paths)
    assert len(set(found)) == len(paths)


def test_a_scan_given_twice_counts_once(tmp_path: Path) -> None:
    scan = make_scan(tmp_path / "a" / "t1.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(scan)
    cases, refused = find_cases([str(scan), str(scan.parent), str(scan.parent / ".." / "a" / "t1.nii.gz")])
    assert [case.name for case in cases] == ["t1"]
    assert refused == []


def test_bad_inputs_are_refused_and_the_others_stay(tmp_path: Path) -> None:
    scan = make_scan(tmp_path / "good" / "t1.nii.gz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    inputs = [str(tmp_path / name) for name in ("empty", "bad.nii.gz", "absent.nii.gz", "good")]
    cases, refused = find_cases(inputs)
    assert [case.path for case in cases] == [scan]
    assert sorted(each.given for each in refused) == sorted(inputs[:3])
    for each in refused:
        assert each.given in each.reason
        assert "; " in each.reason  # what to do


def test_our_own_results_are_no_scans(tmp_path: Path) -> None:
    make_scan(tmp_path / "t1.nii.gz")
    make_scan(tmp_path / "t1_seg.nii.gz")
    (tmp_path / "t1_seg.json").write_text("{}")
    cases, _ = find_cases([str(tmp_path)])
    assert [case.name for case in cases] == ["t1"]


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_scan(tmp_path / "t1.nii.gz")
    monkeypatch.chdir(tmp_path)
    cases, refused = find_cases([""])
    assert cases == []
    assert "empty name" in refused[0].reason


def test_a_pair_and_a_link_given_with_their_file_count_once(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(np.random.default_rng(0).random((6, 5, 4)), np.eye(4)), tmp_path / "pair.hdr")
    scan = make_scan(tmp_path / "t1.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(scan)
    inputs = [str(tmp_path / name) for name in ("pair.img", "pair.hdr", "t1.nii.gz", "link.nii.gz")]
    cases, refused = find_cases(inputs)
    assert [case.name for case in cases] == ["pair", "t1"]
    assert refused == []
