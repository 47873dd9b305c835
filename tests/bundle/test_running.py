from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_bundle import make_scan

from dinomed.bundle.running import bundle_version, list_cases, list_pairs, list_scans
from dinomed.errors import BundleError, InputError, OutputError


def make(folder: Path, *names: str) -> list[Path]:
    return [make_scan(folder / name) for name in names]


def test_file_folder_and_list_name_scans(tmp_path: Path) -> None:
    a, b = make(tmp_path / "scans", "a.nii.gz", "b.nii")
    assert list_scans(a) == [a]
    assert list_scans(str(a)) == [a]
    assert list_scans(tmp_path / "scans") == [a, b]
    assert list_scans([b, str(a)]) == [b, a]
    assert list_cases([a]) == [{"image": str(a)}]


def test_two_scans_of_one_name_are_refused_since_one_would_replace_the_other(tmp_path: Path) -> None:
    first, second = make(tmp_path / "one", "t1.nii.gz")[0], make(tmp_path / "two", "t1.nii")[0]
    with pytest.raises(InputError, match=r"several files are called t1; give each case a name of its own"):
        list_cases([first, second])


@pytest.mark.parametrize("source", [None, []])
def test_nothing_named_is_an_input_error(source: list[str] | None) -> None:
    with pytest.raises(InputError, match="set input to a scan or to a folder of scans"):
        list_scans(source)


def test_empty_folder_and_absent_path_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: no scans here"):
        list_scans(tmp_path)
    with pytest.raises(InputError, match=r"absent\.nii\.gz: there is no such file or folder"):
        list_scans(tmp_path / "absent.nii.gz")


def test_pairs_match_by_case_name_whatever_the_format(tmp_path: Path) -> None:
    make(tmp_path / "scans", "a.nii.gz", "b.nii.gz")
    make(tmp_path / "labels", "b.nii", "a.nii", "c.nii")
    pairs = list_pairs(tmp_path / "scans", tmp_path / "labels")
    assert [(Path(pair["image"]).name, Path(pair["label"]).name) for pair in pairs] == [
        ("a.nii.gz", "a.nii"),
        ("b.nii.gz", "b.nii"),
    ]


def test_one_scan_goes_with_one_label_map_of_any_name(tmp_path: Path) -> None:
    scan, labels = make(tmp_path, "t1.nii.gz", "truth.nii.gz")
    assert list_pairs(scan, labels) == [{"image": str(scan), "label": str(labels)}]


def test_scan_without_label_map_is_named(tmp_path: Path) -> None:
    make(tmp_path / "scans", "a.nii.gz", "b.nii.gz")
    make(tmp_path / "labels", "a.nii.gz", "c.nii.gz")
    with pytest.raises(InputError, match=r"no label map of the same name for b\.nii\.gz"):
        list_pairs(tmp_path / "scans", tmp_path / "labels")


def test_two_files_of_one_name_are_not_guessed_at(tmp_path: Path) -> None:
    make(tmp_path / "scans", "a.nii.gz", "b.nii.gz")
    make(tmp_path / "labels", "a.nii.gz", "b.nii.gz", "old/a.nii.gz")
    with pytest.raises(InputError, match="several files are called a;"):
        list_pairs(tmp_path / "scans", tmp_path / "labels")


def test_missing_reference_says_which_id_to_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set reference to a label map"):
        list_pairs(make(tmp_path, "a.nii.gz")[0], None)


def test_version_is_that_of_the_metadata(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        bundle_version(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"version": "1.2.3"}))
    assert bundle_version(str(tmp_path)) == "1.2.3"


def test_a_scan_named_twice_counts_once_and_case_alone_tells_no_two_apart(tmp_path: Path) -> None:
    first = make(tmp_path / "one", "t1.nii.gz")[0]
    assert list_cases([tmp_path / "one", first]) == [{"image": str(first)}]
    with pytest.raises(InputError, match="several files are called t1"):
        list_cases([first, *make(tmp_path / "two", "T1.nii.gz")])


def test_results_that_would_replace_a_scan_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "t1.nii.gz", "t1_seg.nii.gz")
    assert len(list_cases(tmp_path, tmp_path / "elsewhere")) == 2
    with pytest.raises(OutputError, match=r"t1_seg\.nii\.gz is a scan of this run and the result of another"):
        list_cases(tmp_path, tmp_path)


def test_an_input_that_is_no_path_is_one_sentence() -> None:
    with pytest.raises(InputError, match="input is 5; set it to a scan"):
        list_cases(5)  # type: ignore[arg-type]
