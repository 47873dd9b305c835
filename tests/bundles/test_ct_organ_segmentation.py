"""The CT bundle from training to report, with a tiny network on tiny scans made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from head_bundle import make_workflow
from head_bundle import run as run_configs

from dinomed import Predictor
from dinomed.bundle.check import check_bundle
from dinomed.cli.main import main
from dinomed.errors import InputError, VolumeError, WeightsError

ROOT = Path(__file__).resolve().parents[2] / "bundles" / "ct_organ_segmentation"
TINY_NETWORK: dict[str, Any] = {
    "backbone#embed_dim": 64,
    "backbone#depth": 4,
    "backbone#num_heads": 2,
    "adapter_unet#decoder#decoder_channels": [24, 16, 12, 8],
    "adapter_unet#decoder#fine_channels": [8, 8],
}
TINY_TRAINING: dict[str, Any] = {
    **TINY_NETWORK,
    "precision": "float32",
    "slices_per_batch": 4,
    "slice_size": 32,
    "steps_per_epoch": 30,
    "max_epochs": 3,
    "warmup_steps": 2,
    "learning_rate": 1.0e-2,
    "backbone_learning_rate": 3.0e-3,
    "val_interval": 1,
    "validation_items": 2,
    "tensorboard": False,
}
AFFINE = np.array([[-2.0, 0.1, 0, 40], [0.1, 2.0, 0.2, -30], [0, -0.3, 4.0, 7], [0, 0, 0, 1]])


def run(configs: list[str], run_id: str = "run", **settings: Any) -> Any:
    return run_configs(configs, run_id, **{"root": ROOT, **settings})


def write_scan(root: Path, name: str, seed: int = 0) -> None:
    """A body of 40 HU in air with two organs; oblique, flipped, with other header codes than the usual ones."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((36, 32, 12), np.uint8)
    labels[6:18, 8:22, 2:9] = 5
    labels[20 + seed : 30, 8:20, 3:11] = 1
    values = np.full(labels.shape, -1000.0)
    values[3:33, 4:28] = 40
    values[labels == 5] = 160
    values[labels == 1] = 320
    values += generator.normal(0, 8, labels.shape)
    for folder, array in (("images", values.astype(np.int16)), ("labels", labels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(array, AFFINE)
        image.set_sform(AFFINE, code=2)
        image.set_qform(AFFINE, code=1)
        image.header.set_xyzt_units("mm", "sec")
        nibabel.save(image, root / folder / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ct")
    for seed, name in enumerate(("one", "two")):
        write_scan(root, name, seed)
    return root


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ct_trained")
    run(["train"], "training", dataset_dir=str(data), output_dir=str(output), **TINY_TRAINING)
    return output / "best.pt"


def state(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    return content.get("network", content)


def test_training_learns_and_leaves_what_it_should(weights: Path) -> None:
    rows = (weights.parent / "validation.csv").read_text().splitlines()
    assert len(rows) == 4
    assert float(rows[-1].split(",")[2]) > 0.5
    assert (weights.parent / "checkpoint.pt").is_file()


def test_training_that_was_stopped_ends_with_the_same_weights(data: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        """In place of a kill."""

    def stop(engine: Any) -> None:
        if engine.state.iteration == 6:
            raise StoppedError

    short = {**TINY_TRAINING, "steps_per_epoch": 4, "dataset_dir": str(data)}
    run(["train"], "training", output_dir=str(tmp_path / "whole"), **short)
    settings = {"root": ROOT, "output_dir": str(tmp_path / "stopped"), **short}
    workflow = make_workflow(["train"], "training", **settings)
    workflow.initialize()
    from ignite.engine import Events

    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        workflow.run()
    assert isinstance(caught.value, StoppedError) or isinstance(caught.value.__cause__, StoppedError)
    run_configs(["train"], "training", **settings)
    whole, resumed = (state(tmp_path / name / "checkpoint.pt") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_segmentation_lies_on_the_scan_s_grid_and_finds_the_organs(data: Path, weights: Path, tmp_path: Path) -> None:
    settings = {"ckpt_path": str(weights), "output_dir": str(tmp_path), "precision": "float32"}
    run(["inference"], "inferring", input=str(data / "images"), **TINY_NETWORK, **settings)
    for name in ("one", "two"):
        scan, found, wanted = (
            nibabel.load(path)
            for path in (
                data / "images" / f"{name}.nii.gz",
                tmp_path / f"{name}_seg.nii.gz",
                data / "labels" / f"{name}.nii.gz",
            )
        )
        assert found.shape == scan.shape
        assert np.array_equal(found.affine, scan.affine)
        for code in ("sform_code", "qform_code", "xyzt_units"):
            assert found.header[code] == scan.header[code]
        inside = [np.asarray(each.dataobj) == 5 for each in (found, wanted)]
        assert 2 * (inside[0] & inside[1]).sum() / (inside[0].sum() + inside[1].sum()) > 0.5
    report = json.loads((tmp_path / "one_seg.json").read_text())
    assert {row["name"] for row in report["labels"] if row["voxels"]} >= {"liver"}


def test_evaluation_reports_the_voxels_of_the_segmentation(data: Path, weights: Path, tmp_path: Path) -> None:
    settings = {"input": str(data / "images"), "ckpt_path": str(weights), "precision": "float32", **TINY_NETWORK}
    run(["inference"], "inferring", output_dir=str(tmp_path / "seg"), **settings)
    reference = {"reference": str(data / "labels"), "output_dir": str(tmp_path / "eval")}
    run(["inference", "evaluate"], "evaluating", **reference, **settings)
    content = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert [case["case"] for case in content["cases"]] == ["one.nii.gz", "two.nii.gz"]
    for case in content["cases"]:
        found = np.asarray(nibabel.load(tmp_path / "seg" / case["case"].replace(".nii", "_seg.nii")).dataobj)
        wanted = np.asarray(nibabel.load(data / "labels" / case["case"]).dataobj)
        (liver,) = (row for row in case["labels"] if row["label"] == 5)
        both = ((found == 5) & (wanted == 5)).sum()
        assert liver["name"] == "liver"
        assert liver["dice"] == pytest.approx(2 * both / ((found == 5).sum() + (wanted == 5).sum()), abs=1e-6)
    assert content["classes"][2]["dice_mean"] is None or content["classes"][2]["spurious"]  # no left kidney there
    assert (tmp_path / "eval" / "report.html").stat().st_size > 10_000


def test_the_network_is_chosen_by_one_line(data: Path, tmp_path: Path) -> None:
    settings = {**TINY_TRAINING, "network_def": "@plain_unet", "max_epochs": 1, "steps_per_epoch": 3, "warmup_steps": 1}
    run(["train"], "training", dataset_dir=str(data), output_dir=str(tmp_path), **settings)
    inference = {key: value for key, value in settings.items() if key in (*TINY_NETWORK, "network_def", "precision")}
    given = {"input": str(data / "images" / "one.nii.gz"), "output_dir": str(tmp_path / "seg"), "window": 16}
    run(["inference"], "inferring", ckpt_path=str(tmp_path / "best.pt"), **given, **inference)
    assert (tmp_path / "seg" / "one_seg.nii.gz").is_file()
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(["inference"], "inferring", ckpt_path=str(tmp_path / "best.pt"), **given, **TINY_NETWORK)
    assert "does not fit" in str(_root_cause(caught.value))


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def test_a_json_list_and_cases_kept_for_validation(data: Path, tmp_path: Path) -> None:
    pairs = [{key: str(data / f"{key}s" / f"{name}.nii.gz") for key in ("image", "label")} for name in ("one", "two")]
    (tmp_path / "list.json").write_text(json.dumps({"training": pairs}))
    settings = {"root": ROOT, "dataset_dir": str(tmp_path / "list.json"), "validation_cases": ["two"], **TINY_TRAINING}
    workflow = make_workflow(["train"], **settings)
    workflow.initialize()
    assert [Path(pair["image"]).name for pair in workflow.parser.get_parsed_content("training_pairs")] == ["one.nii.gz"]
    kept = workflow.parser.get_parsed_content("validation_pairs")
    assert [Path(pair["image"]).name for pair in kept] == ["two.nii.gz"]


def test_labels_beyond_the_classes_are_refused(data: Path, tmp_path: Path) -> None:
    settings = {"dataset_dir": str(data), "output_dir": str(tmp_path), **TINY_TRAINING, "num_classes": 5}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(["train"], "training", **settings)
    cause = _root_cause(caught.value)
    assert isinstance(cause, VolumeError)
    assert "labels run from 0 to 5" in str(cause)


def test_without_weights_there_is_one_clear_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert not (ROOT / "models" / "model.pt").exists()
    scan = str(data / "images" / "one.nii.gz")
    assert main(["segment", scan, "--bundle", str(ROOT), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "comes without weights" in error
    assert "Traceback" not in error
    with pytest.raises(WeightsError, match="train it"):
        Predictor.from_bundle(ROOT)
    assert not (tmp_path / "out").exists()


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(["train"], "training", dataset_dir=str(tmp_path), output_dir=str(tmp_path), **TINY_TRAINING)
    assert isinstance(_root_cause(caught.value), InputError)
    assert "images: there is no such file or folder" in str(_root_cause(caught.value))


def test_the_bundle_is_sound_and_says_that_it_ships_no_weights() -> None:
    assert [finding for finding in check_bundle(ROOT) if not finding.ok] == []
    assert json.loads((ROOT / "configs" / "metadata.json").read_text())["ships_weights"] is False


def test_the_bundle_works_from_inside(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(ROOT / "configs", root / "configs")
    shutil.copytree(data, root / "data")
    (root / "models").mkdir()
    shutil.copy(weights, root / "models" / "model.pt")
    monkeypatch.chdir(root)
    run(["inference"], root=Path(), **TINY_NETWORK)
    assert len(list((root / "predictions").glob("*_seg.nii.gz"))) == 2
    run(["inference", "evaluate"], "evaluating", root=Path(), **TINY_NETWORK)
    assert (root / "eval" / "report.html").is_file()


def test_configurations_agree_where_training_and_inference_must() -> None:
    train, infer = (make_workflow([name], root=ROOT).parser for name in ("train", "inference"))
    shared = ("num_classes", "label_names", "backbone_name", "planes", "spacing_mm", "window_hu", "network_def")
    for key in (*shared, "intensity_mean", "intensity_std", "plain_unet", "adapter_unet", "adapter#_target_"):
        assert train[key] == infer[key], key
    assert len(infer["label_names"]) == len(set(infer["label_names"])) == infer["num_classes"] == 118
    assert list(train["_meta_#network_data_format#outputs#pred#channel_def"].values()) == infer["label_names"]
    low, high = train["_meta_#network_data_format#inputs#image#value_range"]
    mean, std = train["intensity_mean"], train["intensity_std"]
    assert (low, high) == (pytest.approx(-mean / std, abs=0.01), pytest.approx((1 - mean) / std, abs=0.01))
    evaluate = make_workflow(["inference", "evaluate"], root=ROOT).parser
    names = infer["label_names"]
    for region, prefix in (("vertebrae", "vertebrae_"), ("ribs", "rib_"), ("lungs", "lung_"), ("kidneys", "kidney_")):
        members = evaluate.get_parsed_content(f"region_groups#{region}")
        wanted = [k for k, name in enumerate(names) if name.startswith(prefix) and "cyst" not in name]
        assert sorted(members) == wanted
