"""`dinomed data check`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from class_pictures import SHAPES, make_folders, make_rows, write_csv
from picture_sets import coco_content, make_ade20k, make_coco, make_masks, noise, save, square

from dinomed.cli import data as data_verb
from dinomed.cli.main import main
from dinomed.data.datasets import LAYOUTS


def test_sound_data_are_exit_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(make_ade20k(tmp_path))]) == 0
    printed = capsys.readouterr()
    assert "ade20k, split training, segmentation, 2 pictures" in printed.out
    assert printed.out.endswith("no findings\n")
    assert printed.err == ""


def test_findings_are_exit_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_masks(tmp_path)
    (tmp_path / "masks/p1.png").write_bytes(b"")
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "unreadable file: 1\n" in capsys.readouterr().out


def test_json_alone_goes_to_stdout_and_files_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content([{"category_id": 1, "segmentation": [square(2, 2, 6)]}])
    path, output = make_coco(tmp_path / "d", content), tmp_path / "out"
    assert main(["data", "check", str(path), "--json", "--output", str(output), "--workers", "1"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((output / "data_check.json").read_text(encoding="utf-8"))
    assert "class_balance.png" in printed.err
    assert {each.name for each in output.iterdir()} == {"data_check.txt", "data_check.json", "class_balance.png"}


def test_options_reach_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_masks(tmp_path, values=(0, 255))
    assert main(["data", "check", str(tmp_path)]) == 2
    assert main(["data", "check", str(tmp_path), "--label-values", "255=1", "--num-classes", "2"]) == 0
    make_masks(tmp_path, values=(0, 7))
    assert main(["data", "check", str(tmp_path), "--num-classes", "2"]) == 2
    assert main(["data", "check", str(tmp_path), "--num-classes", "2", "--ignore-index", "7"]) == 2  # only 0 is left
    assert main(["data", "check", str(tmp_path), "--num-classes", "7", "--reduce-zero-label"]) == 0
    assert main(["data", "check", str(make_ade20k(tmp_path / "a")), "--no-reduce-zero-label"]) == 2
    assert "has label 150" in capsys.readouterr().out


def labelled(tmp_path: Path, **changes: object) -> Path:
    rows = make_rows(tmp_path)
    for row in rows:
        row |= {f"label_{shape}": int(row["shape"] == shape) for shape in SHAPES}
    rows[3] |= changes
    return write_csv(tmp_path / "list.csv", rows)


def test_lists_of_several_labels_are_checked_as_a_training_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(labelled(tmp_path))]) == 0
    printed = capsys.readouterr().out
    assert "labelled, split training, classification, 12 pictures" in printed
    assert "split validation, classification, 4 pictures" in printed
    assert main(["data", "check", str(labelled(tmp_path, label_box="maybe"))]) == 2
    assert capsys.readouterr().out.count("'maybe'") == 1


def test_tasks_and_folders_are_checked_as_a_training_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(tmp_path)
    path = write_csv(tmp_path / "list.csv", rows)
    assert main(["data", "check", str(path), "--task", "multitask"]) == 0
    assert "colour amber" in capsys.readouterr().out
    (tmp_path / rows[0]["image"]).write_bytes(b"no picture")
    (tmp_path / rows[1]["image"]).write_bytes((tmp_path / rows[6]["image"]).read_bytes())
    assert main(["data", "check", str(path), "--task", "multitask"]) == 2
    printed = capsys.readouterr().out
    assert "unreadable file: 1\n" in printed
    assert ", there as colour " in printed
    folders = make_folders(tmp_path / "folders", validation=0)
    (folders / "empty").mkdir()
    assert main(["data", "check", str(folders), "--task", "multiclass", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [split["split"] for split in report["splits"]] == ["training", "validation"]  # held out, as in training
    assert sum(split["images"] for split in report["splits"]) == 18
    assert "empty" in report["findings"][0]["file"]


def test_folders_and_layout_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_masks(tmp_path)
    (tmp_path / "images").rename(tmp_path / "x")
    (tmp_path / "masks").rename(tmp_path / "y")
    named = ["--layout", "image-mask", "--images", str(tmp_path / "x"), "--masks", str(tmp_path / "y")]
    assert main(["data", "check", str(tmp_path), *named]) == 0
    assert "image-mask, segmentation, 3 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "there is no file or folder none; check the path"),
        (["."], "holds no data set of a known layout"),
        (["broken.json"], "broken.json is no JSON file"),
        (["half.json"], "half.json has no list `categories`"),
        ([".", "--output", ""], "--output is empty"),
        ([".", "--output", "half.json/x"], "cannot take the results"),
        ([".", "--num-classes", "0"], "--num-classes 0 is not positive"),
        ([".", "--workers", "0"], "--workers 0 is not positive"),
        ([".", "--masks", "x"], "--masks needs --images"),
        ([".", "--label-values", "255"], "--label-values 255 is not understood"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence_and_exit_status_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "half.json").write_text('{"images": [], "annotations": []}')
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("dinomed: ")
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_layouts_of_the_command_are_those_of_the_package() -> None:
    assert ("auto", *LAYOUTS) == data_verb.LAYOUTS


def test_odd_names_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ü b$.png", "a b.png"):
        save(tmp_path / name, noise(0))
    assert main(["data", "check", str(tmp_path)]) == 2
    assert f"{tmp_path / 'ü b$.png'} has the same pixels as {tmp_path / 'a b.png'}" in capsys.readouterr().out


def test_the_check_needs_neither_torch_nor_monai(tmp_path: Path, repository: Path) -> None:
    make_masks(tmp_path)
    code = (
        "import sys\nfrom dinomed.cli.main import main\n"
        f"status = main(['data', 'check', {str(tmp_path)!r}])\n"
        "print(status, [name for name in ('torch', 'monai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
