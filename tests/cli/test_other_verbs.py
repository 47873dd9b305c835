"""`dinomed bundle list`, `train`, `evaluate` and `doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_bundle import NAME, make_bundle, make_scan

from dinomed.cli import doctor
from dinomed.cli.main import main
from dinomed.cli.train import read_settings
from dinomed.errors import InputError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_bundle(tmp_path)
    monkeypatch.setenv("DINOMED_BUNDLES", str(tmp_path))
    return root


def test_bundle_list_names_version_task_and_weights(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "list"]) == 0
    assert f"{NAME}  0.2.0  weights  {root}\n    Two shapes\n" in capsys.readouterr().out
    assert main(["bundle", "list", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed[NAME]["weights"] == str(root / "models" / "model.pt")


def test_train_runs_the_bundle_with_the_settings(root: Path) -> None:
    assert main(["train", NAME, "--set", "max_epochs=3"]) == 0
    assert (root / "trained.txt").read_text() == "3"


def test_evaluate_runs_over_what_it_is_laid_over(root: Path) -> None:
    make_scan(root / "scans" / "a.nii.gz")
    assert main(["evaluate", NAME]) == 0
    assert (root / "evaluated.txt").read_text() == "1"


def test_variants_are_laid_over_in_order(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("max_epochs: 5\n")
    (tmp_path / "b.yaml").write_text("max_epochs: 4\n")
    overlays = ["--overlay", str(tmp_path / "a.yaml"), "--overlay", str(tmp_path / "b.yaml")]
    assert main(["train", NAME, *overlays]) == 0
    assert (root / "trained.txt").read_text() == "4"


def test_several_processes_train_with_the_config_for_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", NAME]) == 2
    assert "has no configs/multi_gpu_train.yaml, so that several processes would work apart" in capsys.readouterr().err
    assert not (root / "trained.txt").exists()
    own = root / "configs" / "multi_gpu_train.yaml"
    own.write_text("max_epochs: 3\n")
    (tmp_path / "a.yaml").write_text("max_epochs: 4\n")
    for overlay, trained in ((), "3"), (("--overlay", str(own)), "3"), (("--overlay", str(tmp_path / "a.yaml")), "4"):
        assert main(["train", NAME, *overlay]) == 0
        assert (root / "trained.txt").read_text() == trained
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["train", NAME]) == 0
    assert (root / "trained.txt").read_text() == "2"


def test_a_wrong_setting_is_one_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", NAME, "--set", "max_epochs"]) == 2
    assert "--set max_epochs has no value" in capsys.readouterr().err
    assert main(["train", NAME, "--set", "nothing#here=1"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main(["train", NAME, "--set", "max_epoch=1"]) == 2
    assert "has no id 'max_epoch'; did you mean max_epochs?" in capsys.readouterr().err


def test_an_argument_may_be_given_to_a_component(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", NAME, "--set", "network_def#bias=false"]) == 0
    assert main(["train", NAME, "--set", "network_def#bios=false"]) == 2
    assert "unexpected keyword argument 'bios'" in capsys.readouterr().err


def test_errors_of_ours_inside_a_bundle_keep_their_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_scan(root / "scans" / "a.nii.gz")
    (root / "models" / "model.pt").unlink()
    assert main(["evaluate", NAME]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("dinomed: ")
    assert "no such weights file" in error
    assert "Traceback" not in error


def test_other_errors_inside_a_bundle_are_told_by_their_cause(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("run: ['$1 / 0']\n")
    assert main(["train", NAME, "--overlay", str(tmp_path / "broken.yaml")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dinomed: internal error, please report it: ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("output_file=/nowhere/at/all.txt", "/nowhere/at/all.txt cannot be used (No such file or directory)"),
        ("device=tpu", "the train config of tiny_segmentation cannot be built (RuntimeError: Expected one of cpu"),
        ("gradient_norm=-1", "(ValueError: max_norm must be a positive number, not -1); correct what --set or"),
        ("refused=true", "the run stopped: ValueError: num_classes=0 leaves nothing to decide"),
    ],
)
def test_settings_that_fail_while_building_or_running_are_the_users(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    (tmp_path / "more.yaml").write_text(
        "imports: [$import torch, $import monai, $import dinomed.networks as networks]\n"
        "gradient_norm: 1.0\nrefused: false\n"
        "clip: {_target_: dinomed.handlers.optimisation.ClipGradients, network: '@network_def', max_norm: "
        "'@gradient_norm'}\n"
        "initialize: ['$torch.device(@device)', '$@clip']\n"
        "run: ['$@refused and networks.Segmenter(None, None, 0)', '$@train#trainer.run()', "
        "'$open(@output_file, \"w\").close()']\n"
    )
    assert main(["train", NAME, "--overlay", str(tmp_path / "more.yaml"), "--set", setting]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("dinomed: ")
    assert words in error


def test_settings_are_python_literals_or_text() -> None:
    read = read_settings(["a=1", "b=1e-4", "c=true", "d=null", "e=[1, 2]", "f=/data/x", "g=a=b", "h=None"])
    assert read == {"a": 1, "b": 1e-4, "c": True, "d": None, "e": [1, 2], "f": "/data/x", "g": "a=b", "h": None}
    with pytest.raises(InputError):
        read_settings(["=1"])


def test_doctor_says_what_is_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"]
    assert report["problems"] == []
    assert any(NAME in line for line in report["bundles"])
    assert set(report["deformable_attention"]) == {"CPU", "CUDA"}
    assert report["temporary_folder"]["writable"] is True
    assert main(["doctor"]) == 0
    assert "bfloat16 native: " in capsys.readouterr().out


def test_doctor_reports_what_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError("broken driver")

    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setitem(doctor.LOOKS, "gpus", fail)
    assert main(["doctor", "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert "no-such-package is not installed; reinstall dinomed" in problems
    assert any("broken driver" in problem for problem in problems)
