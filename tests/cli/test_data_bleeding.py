"""`dinomed data bleeding`: a data set out of label maps, from the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dinomed.cli.main import main
from tests.head_maps import head_numbers, write_map


def test_a_data_set_with_its_parts_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_map(tmp_path / "maps" / f"{name}.nii.gz", head_numbers(96))
    output = tmp_path / "out"
    arguments = ["--output", str(output), "--scans-per-map", "1", "--test", "two.nii.gz"]
    assert main(["data", "bleeding", str(tmp_path / "maps"), *arguments]) == 0
    assert "2 scans of 2 label maps" in capsys.readouterr().out
    with (output / "series.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["patient_id"], row["part"]) for row in rows] == [("one", "train"), ("two", "test")]
    assert all((output / row["nifti_path"]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--scans-per-map", "0"], "one scan or more"),
        (["--test", "three.nii.gz"], "three.nii.gz are not among the label maps"),
        (["--seed", "-1"], "--seed -1 is negative"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    write_map(tmp_path / "maps" / "one.nii.gz", head_numbers(48))
    assert main(["data", "bleeding", str(tmp_path / "maps"), "--output", str(tmp_path / "out"), *more]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert "Traceback" not in printed


def test_a_folder_without_label_maps_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "bleeding", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "no label maps" in capsys.readouterr().err
