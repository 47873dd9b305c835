"""The bundles for photographs from end to end: train, go on, evaluate, segment; on tiny scenes made here."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from photo_bundles import BUNDLES, CLASSES, MAKERS, NAMES, TINY_NETWORK, TINY_TRAINING, make_workflow, run
from photo_sets import SIZES, make_coco_scenes
from picture_sets import save
from PIL import Image

from dinomed.bundle.causes import explain
from dinomed.bundle.check import check_bundle
from dinomed.cli.main import main
from dinomed.errors import InputError
from dinomed.transforms.natural_images import read_label_map
from dinomed.transforms.report import deciding


@dataclass
class Trained:
    """A bundle, its tiny data, and the folder of its training."""

    bundle: str
    data: Path
    output: Path
    settings: dict[str, Any]

    @property
    def weights(self) -> str:
        return str(self.output / "best.pt")


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each bundle, trained for a few steps."""
    folder = tmp_path_factory.mktemp(request.param)
    data = MAKERS[request.param](folder / "data")
    settings: dict[str, Any] = {"dataset_dir": str(data)}
    if request.param == "coco_segmentation":
        settings["cache_dir"] = str(folder / "cache")
    run(request.param, ["train"], "training", output_dir=str(folder / "out"), **settings, **TINY_TRAINING)
    return Trained(request.param, data, folder / "out", settings)


@pytest.fixture
def overlay(trained: Trained, tmp_path: Path) -> Path:
    """The tiny network as a file for `--overlay`."""
    path = tmp_path / "tiny.yaml"
    settings = {**TINY_NETWORK, "label_names": CLASSES[trained.bundle]}
    path.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in settings.items()))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def pictures_of(trained: Trained) -> list[Path]:
    folder = {"ade20k_segmentation": "images/validation", "coco_segmentation": "val2017"}[trained.bundle]
    return sorted((trained.data / folder).iterdir())


def infer(trained: Trained, source: Path, output: Path, **settings: Any) -> None:
    given = {"input": str(source), "output_dir": str(output), "ckpt_path": trained.weights, **TINY_NETWORK, **settings}
    run(trained.bundle, ["inference"], "inferring", **given)


def last_line(capsys: pytest.CaptureFixture[str], bundle: str, configs: list[str], **settings: Any) -> str:
    """What a user reads last on stderr when the run fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(bundle, configs, "run", **settings)
    capsys.readouterr()
    explain(caught.type, caught.value, caught.tb)
    return capsys.readouterr().err.splitlines()[-1]


def test_training_leaves_logs_a_checkpoint_and_the_best_weights(trained: Trained) -> None:
    assert [row["step"] for row in rows(trained.output / "log.csv")] == ["3", "6"]
    validation = rows(trained.output / "validation.csv")
    assert len(validation) == 2
    assert {"mean_iou", "pixel_accuracy"} <= set(validation[0])
    assert torch.load(trained.output / "checkpoint.pt", weights_only=True)["epoch"] == 2
    state = torch.load(trained.weights, weights_only=True)
    assert state["head.weight"].shape[0] == 3
    assert list((trained.output / "validation").glob("events.*"))


def test_stopped_training_ends_as_one_that_was_not(trained: Trained, tmp_path: Path) -> None:
    settings = {"output_dir": str(tmp_path), **trained.settings, **TINY_TRAINING}

    def stop(engine: Any) -> None:
        raise KeyboardInterrupt

    workflow: ConfigWorkflow = make_workflow(trained.bundle, ["train"], "training", **settings)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 1
    run(trained.bundle, ["train"], "training", **settings)
    unbroken, broken = (
        torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (trained.output, tmp_path)
    )
    for key in ("network", "optimizer", "scheduler", "epoch", "iteration", "best_metric"):
        assert equal(unbroken[key], broken[key]), key
    assert equal(*(torch.load(folder / "best.pt", weights_only=True) for folder in (trained.output, tmp_path)))


def test_evaluation_scores_what_inference_writes_at_each_pictures_size(trained: Trained, tmp_path: Path) -> None:
    run(
        trained.bundle,
        ["inference", "evaluate"],
        "evaluating",
        output_dir=str(tmp_path / "eval"),
        ckpt_path=trained.weights,
        num_workers=0,
        **trained.settings,
        **TINY_NETWORK,
    )
    infer(trained, pictures_of(trained)[0].parent, tmp_path / "out")
    found, wanted = [], []
    for picture in pictures_of(trained):
        found.append(np.asarray(Image.open(tmp_path / "out" / f"{picture.stem}_seg.png")).ravel())
        if trained.bundle == "ade20k_segmentation":
            reference = read_label_map(
                trained.data / "annotations" / "validation" / f"{picture.stem}.png", reduce_zero_label=True
            )
        else:
            cached = Path(trained.settings["cache_dir"]).rglob(f"{int(picture.stem)}.png")
            reference = read_label_map(next(cached))
        wanted.append(reference.ravel())
    predicted, reference = np.concatenate(found), np.concatenate(wanted)
    assert 255 in reference, "without ignored pixels the test would prove less"
    counted = reference != 255
    predicted, reference = predicted[counted], reference[counted]
    content = strict(next((tmp_path / "eval").glob("*.json")))
    assert content["summary"]["pixel_accuracy"] == pytest.approx(float((predicted == reference).mean()), abs=1e-5)
    ious = [
        ((predicted == label) & (reference == label)).sum() / ((predicted == label) | (reference == label)).sum()
        for label in range(3)
    ]
    assert content["summary"]["mean_iou"] == pytest.approx(float(np.mean(ious)), abs=1e-5)
    assert [row["name"] for row in content["classes"]] == CLASSES[trained.bundle]
    assert (tmp_path / "eval" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("tta", [False, True])
def test_command_predictor_and_bundle_run_give_the_same_pixels(
    trained: Trained, overlay: Path, tmp_path: Path, tta: bool
) -> None:
    picture = pictures_of(trained)[0]
    # The scene's colours, so that more than one class is found.
    infer(trained, picture, tmp_path / "run", tta=tta)
    command = ["segment", str(picture), "--bundle", str(BUNDLES / trained.bundle), "--weights", trained.weights]
    command += ["--overlay", str(overlay), "--output", str(tmp_path / "command"), "--device", "cpu"]
    assert main([*command, *(["--tta"] if tta else [])]) == 0

    from dinomed import Predictor

    predictor = Predictor.from_bundle(
        BUNDLES / trained.bundle, device="cpu", overlay=overlay, weights=trained.weights, tta=tta
    )
    predictor.segment(picture).save(tmp_path / "predictor")
    names = [f"{picture.stem}_seg{ending}" for ending in (".png", "_overlay.png", "_side_by_side.png")]
    for name in names:
        contents = [np.asarray(Image.open(tmp_path / way / name)) for way in ("run", "command", "predictor")]
        assert all(np.array_equal(content, contents[0]) for content in contents), name
    reports = [strict(tmp_path / way / f"{picture.stem}_seg.json") for way in ("run", "command", "predictor")]
    for report in reports:
        assert deciding(report) == deciding(reports[0])
        assert report["labels"] == reports[0]["labels"]
        assert report["inference"][0]["parameters"]["flip"] is tta
    assert Image.open(tmp_path / "run" / names[0]).size == Image.open(picture).size


NETWORKS: dict[str, dict[str, Any]] = {
    "linear": {},
    "dpt": {},
    "unet": {},
    "primus": {},
    "unet_full": {"networks#unet_full#decoder#decoder_channels": [24, 16, 12, 8]},
    "fapm": {},
    "segformer": {
        "segformer_size": "b0",
        "networks#segformer#depths": [1, 1, 1, 1],
        "networks#segformer#hidden_sizes": [8, 16, 16, 16],
        "networks#segformer#decoder_hidden_size": 16,
        "networks#segformer#num_attention_heads": [1, 1, 2, 2],
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_line_chooses_the_network_in_training_and_inference(name: str, tmp_path: Path) -> None:
    data = MAKERS["ade20k_segmentation"](tmp_path / "data", training=2, validation=1)
    chosen = {"network_def": f"@networks#{name}", **NETWORKS[name]}
    settings = {**TINY_TRAINING, "steps_per_epoch": 1, "max_epochs": 1, "warmup_steps": 0, **chosen}
    output = tmp_path / "out"
    workflow = run(
        "ade20k_segmentation", ["train"], "training", dataset_dir=str(data), output_dir=str(output), **settings
    )
    network = workflow.parser.get_parsed_content("network_def")
    kind = type(network.decoder).__name__ if hasattr(network, "decoder") else type(network).__name__
    assert kind.lower().removesuffix("decoder") == name.replace("_", "")
    rates = {group["lr"] for group in workflow.parser.get_parsed_content("optimizer").param_groups}
    assert len(workflow.parser.get_parsed_content("optimizer").param_groups) >= 2
    assert rates == {0.0}, "the schedule has come to its end"
    picture = next((data / "images" / "validation").iterdir())
    given = {"input": str(picture), "output_dir": str(output), "ckpt_path": str(output / "best.pt")}
    run("ade20k_segmentation", ["inference"], "inferring", **given, **{**TINY_NETWORK, **chosen})
    assert Image.open(output / f"{picture.stem}_seg.png").size == Image.open(picture).size


def test_training_and_inference_describe_the_same_networks() -> None:
    for bundle in NAMES:
        parsers = [make_workflow(bundle, [name], "run").parser for name in ("train", "inference")]
        for name in ("frozen", "gradient_checkpointing"):  # of training alone, as the backbone's
            del parsers[0]["networks"]["segformer"][name]
        for key in ("networks", "adapter", "network_def", "num_classes", "image_mean", "image_std", "shorter_side"):
            assert parsers[0].get(key) == parsers[1].get(key), key


@pytest.mark.parametrize(("bundle", "count", "last"), [(NAMES[0], 150, "flag"), (NAMES[1], 81, "toothbrush")])
def test_classes_are_those_of_the_published_data_sets(bundle: str, count: int, last: str) -> None:
    root = BUNDLES / bundle / "configs"
    named = strict(root / "metadata.json")["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert (len(named), named[str(count - 1)]) == (count, last)
    for name in ("train", "inference"):
        parser = ConfigParser(ConfigParser.load_config_file(str(root / f"{name}.yaml")))
        assert parser.get_parsed_content("label_names") == list(named.values())
        assert parser.get_parsed_content("num_classes") == count


@pytest.mark.parametrize("bundle", NAMES)
def test_training_learns(bundle: str, tmp_path: Path) -> None:
    """The network over-fits four scenes: it labels them rightly, which it does not after a single tiny step."""
    data = MAKERS[bundle](tmp_path / "data")
    settings: dict[str, Any] = {
        **TINY_TRAINING,
        "dataset_dir": str(data),
        "validation_split": {"ade20k_segmentation": "training", "coco_segmentation": "train2017"}[bundle],
        "augmentation_preset": "medical-conservative",
        "pictures_per_batch": 4,
    }
    if bundle == "coco_segmentation":
        settings["cache_dir"] = str(tmp_path / "cache")
    short = {"steps_per_epoch": 1, "max_epochs": 1, "warmup_steps": 0}
    short |= {"learning_rate": 1.0e-6, "backbone_learning_rate": 1.0e-6}
    long = {"steps_per_epoch": 60, "max_epochs": 2, "warmup_steps": 5}
    scores = []
    for name, length in (("short", short), ("long", long)):
        run(bundle, ["train"], "training", output_dir=str(tmp_path / name), **{**settings, **length})
        scores.append(float(rows(tmp_path / name / "validation.csv")[-1]["mean_iou"]))
    assert scores[0] < 0.5
    assert scores[1] > 0.8


def test_options_of_training_work_together(tmp_path: Path) -> None:
    data = MAKERS["ade20k_segmentation"](tmp_path / "data")
    settings = {
        **TINY_TRAINING,
        "sampler": "@balanced",
        "lr_scheduler": "@cosine",
        "accumulation_steps": 2,
        "ema_decay": 0.9,
        "patience": 1,
        "gradient_checkpointing": True,
        "precision": "bfloat16",
        "max_epochs": 3,
    }
    output = tmp_path / "out"
    run("ade20k_segmentation", ["train"], "training", dataset_dir=str(data), output_dir=str(output), **settings)
    checkpoint = torch.load(output / "checkpoint.pt", weights_only=True)
    assert checkpoint["parts"]["average"]["updates"] == 2 * checkpoint["epoch"], "two optimiser steps an epoch of three"


def test_coco_with_its_own_classes_takes_81_outputs(tmp_path: Path) -> None:
    data = make_coco_scenes(tmp_path / "data", training=2, validation=1)
    for path in (data / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"] = [{"id": 3, "name": "car"}, {"id": 8, "name": "truck"}]
        path.write_text(json.dumps(content))
    from dinomed.data.datasets.class_names import COCO_CLASSES

    settings = {**TINY_TRAINING, "steps_per_epoch": 1, "max_epochs": 1, "warmup_steps": 0}
    run(
        "coco_segmentation",
        ["train"],
        "training",
        dataset_dir=str(data),
        output_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path / "cache"),
        label_names=list(COCO_CLASSES),
        **settings,
    )
    assert torch.load(tmp_path / "out" / "best.pt", weights_only=True)["head.weight"].shape[0] == 81


def test_verbs_take_a_model_from_one_small_file(tmp_path: Path) -> None:
    data = MAKERS["ade20k_segmentation"](tmp_path / "data", training=2, validation=1)
    model = tmp_path / "model.yaml"
    settings = {**TINY_NETWORK, "network_def": "@networks#linear", "label_names": CLASSES["ade20k_segmentation"]}
    model.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in settings.items()))
    root, output = str(BUNDLES / "ade20k_segmentation"), tmp_path / "out"
    run_settings = {"dataset_dir": data, "output_dir": output, "steps_per_epoch": 1, "max_epochs": 1, "num_workers": 0}
    run_settings |= {"warmup_steps": 0, "pictures_per_batch": 1, "crop_size": [32, 32], "val_interval": 1}
    given = [part for key, value in run_settings.items() for part in ("--set", f"{key}={value}")]
    assert main(["train", root, "--overlay", str(model), *given]) == 0
    weights = str(output / "best.pt")
    given = [
        "--set",
        f"ckpt_path={weights}",
        "--set",
        f"dataset_dir={data}",
        "--set",
        f"output_dir={tmp_path / 'eval'}",
    ]
    assert main(["evaluate", root, "--overlay", str(model), *given, "--set", "num_workers=0", "--set", "tta=true"]) == 0
    assert (tmp_path / "eval" / "report.html").is_file()
    photo = str(next((data / "images" / "validation").iterdir()))
    command = ["segment", photo, "--bundle", root, "--overlay", str(model), "--weights", weights]
    assert main([*command, "--output", str(tmp_path / "results"), "--device", "cpu"]) == 0


@pytest.mark.parametrize("bundle", NAMES)
def test_bundle_is_sound_and_says_that_it_ships_no_weights(bundle: str) -> None:
    findings = check_bundle(BUNDLES / bundle)
    assert [finding for finding in findings if not finding.ok] == []
    assert "weights" in {finding.what for finding in findings}
    assert len(findings) > 30
    assert not list(BUNDLES.glob(f"{bundle}/models/*"))


def test_classes_that_are_not_those_of_the_data_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_coco_scenes(tmp_path / "data", training=2, validation=1)
    settings = {"dataset_dir": str(data), "output_dir": str(tmp_path / "out"), **TINY_TRAINING}
    line = last_line(capsys, "coco_segmentation", ["train"], **settings, label_names=["background", "stripe", "box"])
    assert "has 3 classes (background, box, stripe), but label_names lists 3 others or in another order" in line


def test_broken_files_are_named_when_training_meets_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = MAKERS["ade20k_segmentation"](tmp_path / "data")
    settings = {"dataset_dir": str(data), "output_dir": str(tmp_path / "out"), **TINY_TRAINING}
    label, picture = data / "annotations" / "training" / "s0.png", data / "images" / "training" / "s1.jpg"
    whole = label.read_bytes()
    save(label, np.full(SIZES[0], 9, dtype=np.uint8))
    line = last_line(capsys, "ade20k_segmentation", ["train"], **settings)
    assert "s0.png holds the label 8, but the classes are 0 to 2" in line
    label.write_bytes(whole)
    picture.write_bytes(picture.read_bytes()[:900])
    # Processes that load pictures hand their errors over as text.
    line = last_line(capsys, "ade20k_segmentation", ["train"], **{**settings, "num_workers": 1})
    assert line.startswith("dinomed: ")
    assert "s1.jpg cannot be read as a picture" in line
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


@pytest.mark.parametrize("bundle", NAMES)
def test_absent_data_and_weights_are_said_in_one_sentence(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    assert "absent" in last_line(capsys, bundle, ["train"], dataset_dir=absent, **TINY_TRAINING)
    picture = save(tmp_path / "a.png", np.zeros((*SIZES[0], 3), dtype=np.uint8))
    line = last_line(capsys, bundle, ["inference"], input=str(picture), output_dir=absent, **TINY_NETWORK)
    assert line.startswith("dinomed: ")
    assert "models/model.pt: there is no such weights file" in line


def test_empty_folder_of_pictures_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        infer(trained, tmp_path, tmp_path / "out")
    causes: BaseException | None = caught.value
    while causes is not None and not isinstance(causes, InputError):
        causes = causes.__cause__
    assert "holds no picture" in str(causes)
