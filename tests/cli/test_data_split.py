"""`dinomed data split`."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from series_tables import row_of, write_ct, write_table

from dinomed.cli.main import main


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [row_of(f"n{k}", nifti_path=f"scans/n{k}.nii") for k in range(14)]
    rows += [row_of(f"p{k}", (1, 0, 0, 0, 0, 1), nifti_path=f"scans/p{k}.nii") for k in range(6)]
    for k, row in enumerate(rows):
        write_ct(tmp_path / row["nifti_path"], k, shape=(8, 8, 3))
    rows.append(row_of("gone", nifti_path="scans/gone.nii"))
    return write_table(tmp_path / "table.csv", rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_split_is_written_and_summarised(table, tmp_path, capsys):
    assert main(["data", "split", str(table), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "20 of 21 series are split (20 by study), 1 are left out" in printed.out
    assert "subdural                     4           1           1\n" in printed.out
    assert "row 22 (series gone): " in printed.err
    rows = read(tmp_path / "out" / "split.csv")
    assert [row["part"] for row in rows].count("train") == 14
    assert all((tmp_path / "out" / row["nifti_path"]).is_file() for row in rows)
    (problem,) = read(tmp_path / "out" / "problems.csv")
    assert (problem["row"], problem["series_uid"]) == ("22", "series gone")
    assert json.loads((tmp_path / "out" / "split_summary.json").read_text())["seed"] == 42


def test_arguments_reach_the_split(table, tmp_path, capsys):
    given = [
        "--fractions",
        "0.5,0.25,0.25",
        "--seed",
        "7",
        "--labels",
        "any,label_subdural",
        "--data-root",
        str(tmp_path),
    ]
    assert main(["data", "split", str(table), "--output", str(tmp_path / "out"), *given]) == 0
    summary = json.loads((tmp_path / "out" / "split_summary.json").read_text())
    assert summary["labels"] == ["any", "subdural"]
    assert summary["seed"] == 7
    assert [summary["parts"][part]["series"] for part in summary["parts"]] == [10, 5, 5]
    assert read(tmp_path / "out" / "split.csv")[0]["nifti_path"] == "scans/n0.nii"  # data_root is given again
    assert "column label_epidural is no label" in (tmp_path / "out" / "problems.csv").read_text()
    assert "label_epidural is no label" in capsys.readouterr().err


def test_splitting_a_split_anew_gives_other_parts(table, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    assert main(["data", "split", str(table), "--output", str(first)]) == 0
    assert main(["data", "split", str(first / "split.csv"), "--output", str(second), "--seed", "1"]) == 0
    one, other = ({row["series_uid"]: row["part"] for row in read(each / "split.csv")} for each in (first, second))
    assert one.keys() == other.keys()
    assert one != other
    assert list(read(second / "split.csv")[0]) == list(read(first / "split.csv")[0])


def test_torn_scans_are_left_out_of_the_split_unless_only_headers_are_read(table, tmp_path, capsys):
    packed = gzip.compress((tmp_path / "scans" / "n0.nii").read_bytes())
    (tmp_path / "scans" / "torn.nii.gz").write_bytes(packed[: len(packed) * 2 // 3])
    table.write_text(table.read_text().replace("scans/n0.nii", "scans/torn.nii.gz"))
    assert main(["data", "split", str(table), "--output", str(tmp_path / "out")]) == 0
    assert "19 of 21 series are split" in capsys.readouterr().out
    assert "torn.nii.gz" in (tmp_path / "out" / "problems.csv").read_text()
    assert main(["data", "split", str(table), "--output", str(tmp_path / "quick"), "--header-only"]) == 0
    assert "20 of 21 series are split" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["split.csv", "problems.csv"])
def test_a_table_is_not_overwritten_by_its_own_split(table, tmp_path, capsys, name):
    table = table.rename(tmp_path / name)
    before = table.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for output in (tmp_path, tmp_path / "link"):
        assert main(["data", "split", str(table), "--output", str(output)]) == 2
        assert "is the table itself" in capsys.readouterr().err
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fractions", "0.7,0.3"], "fractions must be the shares of train, validation, test"),
        (["--fractions", "most"], "--fractions most is not understood"),
        (["--seed", "-1"], "seed is -1; give a whole number"),
        (["--labels", ","], "--labels is empty"),
        (["--labels", "any,stroke"], "column label_stroke is missing"),
        (["--data-root", "/nowhere"], "data_root /nowhere is no folder"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(table, tmp_path, capsys, arguments, words):
    assert main(["data", "split", str(table), "--output", str(tmp_path / "out"), *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dinomed: ")
    assert words in last
    assert not (tmp_path / "out" / "split.csv").exists()


def test_a_table_whose_files_are_all_invalid_still_leaves_its_problems(tmp_path, capsys):
    table = write_table(
        tmp_path / "table.csv", [row_of("a"), row_of("b", (1, 0, 0, 0, 0, 1)), row_of("c", label_any="?")]
    )
    assert main(["data", "split", str(table), "--output", str(tmp_path / "out")]) == 2
    assert "none of its 3 rows can be used" in capsys.readouterr().err
    assert len(read(tmp_path / "out" / "problems.csv")) == 4
    assert main(["data", "split", str(tmp_path / "no.csv"), "--output", str(tmp_path / "out")]) == 2
    assert "there is no table" in capsys.readouterr().err


def test_one_class_only_is_refused(tmp_path, capsys):
    rows = [row_of(str(k)) for k in range(8)]
    for k in range(8):
        write_ct(tmp_path / f"{k}.nii", k, shape=(8, 8, 3))
    assert main(["data", "split", str(write_table(tmp_path / "t.csv", rows)), "--output", str(tmp_path / "out")]) == 2
    assert "every label has one value only in the 8 rows" in capsys.readouterr().err
