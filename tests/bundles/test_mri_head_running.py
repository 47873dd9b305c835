from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from head_bundle import BUNDLE, TINY_EVALUATION, TINY_NETWORK, make_workflow, run
from head_maps import LABEL_SOURCES, head_numbers

from dinomed.bundle.causes import explain
from dinomed.data.head_tissues import INTENSITY_GROUPS

REFERENCE_LABELS = {number: label for label, numbers in LABEL_SOURCES.items() for number in numbers}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans with FreeSurfer numbers beside them, in voxels of their own."""
    for seed, name in enumerate(("one", "two")):
        numbers = head_numbers(32, seed)
        generator = np.random.default_rng(seed)
        values = generator.random(600, np.float32)[numbers % 600] + generator.normal(0, 0.02, numbers.shape)
        affine = np.diag([-1.25, 1.25, 1.5, 1])
        for folder, array in (("scans", values.astype(np.float32)), ("numbers", numbers.astype(np.int16))):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / folder / f"{name}.nii.gz")
    return tmp_path


def table(path: Path, key: str = "case") -> dict[str, dict[str, str]]:
    with path.open(newline="") as stream:
        return {row[key]: row for row in csv.DictReader(stream)}


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def last_line(capsys: pytest.CaptureFixture[str], configs: list[str], run_id: str, **settings: Any) -> str:
    """What a user reads last on stderr when the run fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(configs, run_id, **{**TINY_EVALUATION, **settings})
    capsys.readouterr()
    explain(caught.type, caught.value, caught.tb)
    return capsys.readouterr().err.splitlines()[-1]


def test_evaluation_on_synthetic_scans_writes_tables_and_report(trained: Path, maps: Path, tmp_path: Path) -> None:
    settings = {"ckpt_path": str(trained / "best.pt"), "dataset_dir": str(maps), "output_dir": str(tmp_path)}
    run(["inference", "evaluate"], "evaluating", **TINY_EVALUATION, **settings, scans_per_map=2)
    assert list(table(tmp_path / "cases.csv")) == ["training_seg_03_scan0", "training_seg_03_scan1"]
    labels = make_workflow(["inference"]).parser["label_names"][1:]
    assert list(table(tmp_path / "classes.csv", "name")) == [*labels, "brain"]
    content = strict(tmp_path / "evaluation.json")
    assert content["summary"]["cases"] == 2
    assert content["about"]["bundle"] == "mri_head_segmentation"
    assert content["about"]["seed"] == 2
    assert content["about"]["weights_file"] == "best.pt"
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in ("training_seg_03_scan0", *labels, "NormalisePercentilesd", "SliceInferer"))


def test_evaluation_of_the_overlay_scores_its_two_labels(trained: Path, maps: Path, tmp_path: Path) -> None:
    settings = {"ckpt_path": str(trained / "best.pt"), "dataset_dir": str(maps), "output_dir": str(tmp_path)}
    run(["inference", "evaluate", "brain"], **TINY_EVALUATION, **settings, scans_per_map=1)
    assert list(table(tmp_path / "classes.csv", "name")) == ["brain"]


def test_evaluation_of_files_agrees_with_the_label_maps_that_inference_writes(trained: Path, scans: Path) -> None:
    settings = {**TINY_EVALUATION, "ckpt_path": str(trained / "best.pt"), "input": str(scans / "scans")}
    del settings["validation_maps"]
    run(["inference"], "inferring", **settings, output_dir=str(scans / "out"))
    run(
        ["inference", "evaluate", "evaluate_files"],
        "evaluating",
        **settings,
        reference=str(scans / "numbers"),
        reference_labels=REFERENCE_LABELS,
        output_dir=str(scans / "eval"),
    )
    cases = {case["case"]: case for case in strict(scans / "eval" / "evaluation.json")["cases"]}
    assert list(cases) == ["one.nii.gz", "two.nii.gz"]
    for name in ("one", "two"):
        written = np.asarray(nibabel.load(scans / "out" / f"{name}_seg.nii.gz").dataobj)
        numbers = np.asarray(nibabel.load(scans / "numbers" / f"{name}.nii.gz").dataobj)
        wanted = np.vectorize(lambda number: REFERENCE_LABELS.get(number, 0))(numbers)
        for row in cases[f"{name}.nii.gz"]["labels"]:
            given, meant = written == row["label"], wanted == row["label"]
            assert row["dice"] == pytest.approx(2 * (given & meant).sum() / (given.sum() + meant.sum()), abs=6e-5)
            assert (row["predicted_voxels"], row["reference_voxels"]) == (given.sum(), meant.sum())


@pytest.mark.parametrize("bundle", ["mri_head_segmentation", "ct_organ_segmentation"])
def test_evaluation_in_several_processes_changes_nothing_but_who_does_what(bundle: str) -> None:
    """Each bundle's own files: the overlay must not bring back or leave out what the evaluation says."""
    root = BUNDLE.parent / bundle
    one = make_workflow(["inference", "evaluate"], root=root).parser.get()
    several = make_workflow(["inference", "evaluate", "multi_gpu_evaluate"], root=root).parser.get()
    changed = {key for key in several if one.get(key) != several[key]}
    assert changed == {"imports", "device", "sampler", "dataloader", "initialize", "finalize", "evaluating"}
    assert set(one["imports"]) < set(several["imports"])


@pytest.mark.parametrize("configs", [["inference"], ["inference", "brain"], ["inference", "evaluate"]])
def test_missing_weights_stop_and_nothing_is_written(
    configs: list[str], maps: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"input": str(scans / "scans"), "output_dir": str(scans / "out"), "dataset_dir": str(maps)}
    line = last_line(capsys, configs, "run", ckpt_path=str(scans / "absent.pt"), **settings)
    assert line.startswith("dinomed:")
    assert "absent.pt: there is no such weights file" in line
    assert not (scans / "out").exists()


def test_weights_of_another_network_stop_and_nothing_is_written(
    trained: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"input": str(scans / "scans"), "output_dir": str(scans / "out"), "num_classes": 9}
    line = last_line(capsys, ["inference"], "inferring", ckpt_path=str(trained / "best.pt"), **settings)
    assert "best.pt does not fit the Segmenter of the bundle" in line
    assert not (scans / "out").exists()


def test_no_scans_stop_and_nothing_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    settings = {"ckpt_path": str(trained / "best.pt"), "output_dir": str(tmp_path / "out")}
    empty = last_line(capsys, ["inference"], "inferring", input=str(tmp_path / "empty"), **settings)
    assert empty.startswith("dinomed:")
    assert "empty: no scans here; set input" in empty
    absent = last_line(capsys, ["inference"], "inferring", input=str(tmp_path / "absent.nii"), **settings)
    assert "absent.nii: there is no such file or folder; set input" in absent
    unnamed = last_line(
        capsys, ["inference", "evaluate", "evaluate_files"], "evaluating", input=str(tmp_path / "empty"), **settings
    )
    assert "no scans here" in unnamed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "configs",
    [["inference"], ["inference", "brain"], ["inference", "evaluate"], ["inference", "evaluate", "evaluate_files"]],
)
def test_monai_finds_its_properties(configs: list[str], trained: Path, maps: Path, scans: Path) -> None:
    given = {"ckpt_path": str(trained / "best.pt"), "input": str(scans / "scans"), "reference": str(scans / "numbers")}
    if "evaluate_files" not in configs:
        del given["reference"]
    if configs == ["inference", "evaluate"]:
        given["dataset_dir"] = str(maps)
    workflow = make_workflow(configs, **TINY_EVALUATION, **given)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_network_takes_and_gives_what_the_metadata_say() -> None:
    from monai.bundle import verify_net_in_out

    files = {"meta_file": str(BUNDLE / "configs/metadata.json"), "config_file": str(BUNDLE / "configs/inference.yaml")}
    for size in (1, 3):
        verify_net_in_out(net_id="network_def", device="cpu", n=size, **files, **TINY_NETWORK)


def test_metadata_hold_what_the_schema_of_monai_demands() -> None:
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    for key in (
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "task",
        "description",
        "authors",
        "copyright",
    ):
        assert isinstance(metadata[key], str), key
    assert metadata["version"] in metadata["changelog"]
    assert "dinomed" in metadata["required_packages_version"]
    formats = metadata["network_data_format"]
    for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        assert tensor["type"] in ("image", "series", "tuples", "probabilities")
        assert isinstance(tensor["format"], str)
        assert len(tensor["channel_def"]) == tensor["num_channels"]
        assert len(tensor["value_range"]) == 2
        assert isinstance(tensor["is_patch_data"], bool)
        assert tensor["dtype"] == "float32"
        assert all(isinstance(size, (int, str)) for size in tensor["spatial_shape"])


def test_configurations_agree_where_training_and_inference_must() -> None:
    train, infer = (make_workflow([name]).parser for name in ("train", "inference"))
    evaluate = make_workflow(["inference", "evaluate"]).parser
    shared = ("num_classes", "label_names", "backbone_name", "planes", "lower_percentile", "upper_percentile", "gamma")
    for key in (*shared, "intensity_mean", "intensity_std", "network_def#decoder", "adapter#_target_"):
        assert train[key] == infer[key], key
    assert train["label_sources"] == evaluate["label_sources"]
    assert train["validation_maps"] == evaluate["validation_maps"]
    assert {number for numbers in train["label_sources"].values() for number in numbers} == {
        number for group in INTENSITY_GROUPS for number in group
    }
    channels = train["_meta_#network_data_format#outputs#pred#channel_def"]
    assert list(channels.values()) == train["label_names"]
    low, high = train["_meta_#network_data_format#inputs#image#value_range"]
    mean, std = train["intensity_mean"], train["intensity_std"]
    assert (low, high) == (pytest.approx(-mean / std, abs=0.01), pytest.approx((1 - mean) / std, abs=0.01))
    brain = make_workflow(["inference", "brain"]).parser
    assert sorted(number for group in brain["class_groups"] for number in group) == list(range(8))
    assert len(brain["class_groups"]) == len(brain["label_names"])


def test_trained_checkpoint_can_be_run_as_it_is(trained: Path, scans: Path) -> None:
    """The training's own checkpoint holds more than weights; inference finds them in it."""
    settings = {
        **TINY_EVALUATION,
        "ckpt_path": str(trained / "checkpoint.pt"),
        "input": str(scans / "scans/one.nii.gz"),
    }
    run(["inference"], **settings, output_dir=str(scans / "out"))
    assert (scans / "out" / "one_seg.nii.gz").is_file()


def test_bundle_infers_from_inside_with_relative_paths(
    trained: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(BUNDLE / "configs", root / "configs")
    (root / "models").mkdir()
    shutil.copy(trained / "best.pt", root / "models" / "model.pt")
    shutil.copytree(scans / "scans", root / "data" / "scans")
    monkeypatch.chdir(root)
    run(["inference"], root=Path(), **TINY_EVALUATION)
    written = sorted(path.name for path in (root / "predictions").glob("*.nii.gz"))
    assert written == ["one_seg.nii.gz", "two_seg.nii.gz"]


def test_weights_are_read_safely(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"network": print}, scans / "code.pt")
    settings = {"input": str(scans / "scans"), "output_dir": str(scans / "out"), "ckpt_path": str(scans / "code.pt")}
    assert "code.pt" in last_line(capsys, ["inference"], "inferring", **settings)
    assert not (scans / "out").exists()
