"""`dinomed bundle check`: a sound bundle passes, and each fault is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bundle import make_bundle, make_state

from dinomed.bundle.check import Finding, check_bundle
from dinomed.cli.main import main
from dinomed.errors import BundleError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bundle(tmp_path)


def failures(root: Path) -> list[str]:
    return [f"{finding.what}: {finding.reason}" for finding in check_bundle(root) if not finding.ok]


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def change_metadata(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def test_a_sound_bundle_passes_and_is_not_changed(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    findings = check_bundle(root)
    assert [finding for finding in findings if not finding.ok] == []
    what = {finding.what for finding in findings}
    assert {"config inference parses", "config inference+brain parses", "config inference+evaluate parses"} <= what
    assert Finding(True, "weights fit the network", "84 parameters") in findings
    assert Finding(True, "network gives what network_data_format says") in findings
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_weights_may_be_absent_where_the_metadata_say_so(root: Path) -> None:
    (root / "models" / "model.pt").unlink()
    assert any("model.pt" in failure for failure in failures(root))
    change_metadata(root, lambda metadata: metadata.update(ships_weights=False))
    assert failures(root) == []


@pytest.mark.parametrize("name", ["LICENSE", "docs/README.md", "configs/train.yaml", "models/model.pt"])
def test_missing_files_are_found(name: str, root: Path) -> None:
    (root / name).unlink()
    assert any(failure.startswith(f"file {name}: is absent") for failure in failures(root))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("authors"), "metadata fields: lacks authors"),
        (lambda m: m.update(version="9"), "metadata changelog: has no entry for version 9"),
        (
            lambda m: m["network_data_format"]["outputs"].pop("pred"),
            "network_data_format#outputs#pred: must come first",
        ),
        (
            lambda m: m["network_data_format"]["outputs"]["pred"]["channel_def"].pop("2"),
            "has 3 channels, but channel_def names 2",
        ),
        (lambda m: m["network_data_format"]["inputs"]["image"].pop("dtype"), "inputs#image: lacks dtype"),
        (lambda m: m.update(monai_version="99.0"), "installed monai: "),
        (lambda m: m["required_packages_version"].update(nonesuch="1"), "installed nonesuch: is absent"),
        (lambda m: m["network_data_format"]["outputs"]["pred"].update(num_channels=5), "network: the network does not"),
    ],
)
def test_faults_of_the_metadata_are_found(change: Callable[[dict[str, Any]], Any], words: str, root: Path) -> None:
    change_metadata(root, change)
    assert any(words in failure for failure in failures(root))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("'@spacing_mm'", "'@spacing'", "refers to @spacing, which is not defined"),
        ("intensity.FixedGammad", "intensity.FixedGama", "wants dinomed.transforms.intensity.FixedGama"),
        ("gamma: 0.75", "gama: 0.75", "the argument 'gama', which it does not take"),
        (
            "$running.list_cases(@input, @output_dir)",
            "$runing.list_cases(@input)",
            "uses the name 'runing', which is not imported",
        ),
        ("running.list_cases", "running.list_case", "uses dinomed.bundle.running.list_case, which does not exist"),
        ("$running.list_cases(@input, @output_dir)", "$running.list_cases(@input", "is no Python expression"),
        ("$import dinomed.bundle.running", "$import dinomed.bundle.runing", "imports what cannot be found"),
        ("dataset_dir:", "data_dir:", "lacks dataset_dir"),
        (
            "postprocessing: '@postprocessing'",
            "postprocessing: '@decide'",
            "must be '@postprocessing' for tools to find",
        ),
    ],
)
def test_faults_of_the_inference_config_are_found(old: str, new: str, words: str, root: Path) -> None:
    replace(root / "configs" / "inference.yaml", old, new)
    assert any(words in failure for failure in failures(root))


def test_a_train_config_without_its_trainer_is_found(root: Path) -> None:
    replace(root / "configs" / "train.yaml", "  trainer:\n", "  trainers:\n")
    assert any("lacks train::trainer" in failure for failure in failures(root))


def test_a_config_that_is_no_yaml_is_found_and_the_rest_is_checked(root: Path) -> None:
    (root / "configs" / "train.yaml").write_text("a: [1")
    found = failures(root)
    assert any("train.yaml cannot be parsed" in failure for failure in found)
    assert not any("inference" in failure for failure in found)


def test_weights_of_another_network_are_found(root: Path) -> None:
    torch.save({"weight": make_state()["weight"]}, root / "models" / "model.pt")
    assert any("weights fit the network: " in f and "1 missing (bias)" in f for f in failures(root))


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no MONAI bundle"):
        check_bundle(tmp_path)


def test_the_command_prints_one_line_per_finding(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "check", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok  ") for line in lines[:-1])
    (root / "LICENSE").unlink()
    assert main(["bundle", "check", str(root)]) == 2
    assert "FAIL  file LICENSE: is absent or empty" in capsys.readouterr().out
    assert main(["bundle", "check", str(root), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["failed"] == 1
