"""The classification bundle from end to end: train, go on, evaluate, classify; on tiny pictures drawn here."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_pictures import as_labels, make_folders, make_rows, write_csv
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from picture_sets import noise, save
from PIL import Image

from dinomed import Predictor
from dinomed.bundle.causes import own_error
from dinomed.bundle.check import check_bundle
from dinomed.cli.main import main
from dinomed.data.datasets.imagenette import IMAGENETTE_CLASSES
from dinomed.errors import InputError

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "imagenette_classification"
TINY_NETWORK: dict[str, Any] = {
    "backbone_name": "dinov3_vit_tiny16",
    "backbone#embed_dim": 64,
    "backbone#depth": 1,
    "backbone#num_heads": 2,
    "precision": "float32",
    "image_size": 32,
    "evaluation_resize": 36,
}
TINY_TRAINING: dict[str, Any] = {
    **TINY_NETWORK,
    "class_names": None,
    "pictures_per_batch": 6,
    "max_epochs": 2,
    "learning_rate": 0.1,
    "num_workers": 0,
    "tensorboard": False,
}


def make_workflow(configs: Sequence[str], run_id: str, **settings: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / f"{name}.yaml") for name in configs],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train" if "train" in configs else "infer",
        run_id=run_id,
        **{"bundle_root": str(BUNDLE), **settings},
    )


def run(configs: Sequence[str], run_id: str, **settings: Any) -> ConfigWorkflow:
    workflow = make_workflow(configs, run_id, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def train(data: Path, output: Path, **settings: Any) -> ConfigWorkflow:
    return run(
        ["train"], "training", **{**TINY_TRAINING, "dataset_dir": str(data), "output_dir": str(output), **settings}
    )


def infer(source: Path, output: Path, weights: Path, **settings: Any) -> ConfigWorkflow:
    given = {"input": str(source), "output_dir": str(output), "ckpt_path": str(weights)}
    return run(["inference"], "inferring", **{**TINY_NETWORK, **given, **settings})


def evaluate(data: Path, output: Path, weights: Path, **settings: Any) -> ConfigWorkflow:
    given = {"dataset_dir": str(data), "output_dir": str(output), "ckpt_path": str(weights), "num_workers": 0}
    given["bootstrap_repeats"] = 20
    return run(["inference", "evaluate"], "evaluating", **{**TINY_NETWORK, **given, **settings})


def refused(work: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        work(*arguments, **settings)
    own = own_error(caught.value)
    assert own is not None, caught.value
    return str(own)


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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours, 16 pictures of each for training and 8 for validation."""
    return make_folders(tmp_path_factory.mktemp("folders"), 16, 8)


@pytest.fixture(scope="module")
def trained(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a linear probe on a random tiny backbone."""
    output = tmp_path_factory.mktemp("trained")
    train(folders, output, max_epochs=5)
    return output


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of several labels (`labels.csv`) and one of two tasks (`tasks.csv`)."""
    folder = tmp_path_factory.mktemp("lists")
    found = make_rows(folder, 24, 12)
    write_csv(folder / "labels.csv", as_labels(found))
    write_csv(folder / "tasks.csv", found)
    return folder


def test_linear_probe_of_a_random_backbone_learns_colours(trained: Path) -> None:
    scores = [float(row["top1"]) for row in rows(trained / "validation.csv")]
    assert max(scores) > 0.9


def test_probe_trains_the_head_alone_and_keeps_the_backbone(folders: Path, trained: Path, tmp_path: Path) -> None:
    workflow = make_workflow(
        ["train"], "training", **{**TINY_TRAINING, "dataset_dir": str(folders), "output_dir": str(tmp_path)}
    )
    network = workflow.parser.get_parsed_content("network_def")
    groups = workflow.parser.get_parsed_content("groups")
    assert sum(p.numel() for group in groups for p in group["params"]) == 3 * (2 * 64 + 1)
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    assert not network.embed(torch.zeros(1, 3, 32, 32)).requires_grad
    best = torch.load(trained / "best.pt", weights_only=True)["network"]
    last = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(best[key], last["network"][key]) for key in best if key.startswith("backbone."))
    assert len(last["optimizer"]["state"]) == 2, "no momentum is kept for the frozen backbone"


def test_best_weights_name_their_classes_and_settings(trained: Path) -> None:
    about = torch.load(trained / "best.pt", weights_only=True)["about"]
    assert about["label_names"] == ["amber", "blue", "green"]
    assert (about["task"], about["features"], about["backbone_name"]) == ("multiclass", "both", "dinov3_vit_tiny16")


def test_stopped_training_ends_as_one_that_was_not(folders: Path, tmp_path: Path) -> None:
    settings = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "mixing_probability": 0.7, "ema_decay": 0.9, "max_epochs": 2}
    settings |= {"sampler": "@balanced", "hidden_features": 8, "dropout": 0.3, "steps_per_epoch": 3}
    train(folders, tmp_path / "unbroken", **settings)
    given = {**TINY_TRAINING, **settings, "dataset_dir": str(folders), "output_dir": str(tmp_path / "broken")}

    def stop(engine: Any) -> None:
        raise KeyboardInterrupt

    workflow = make_workflow(["train"], "training", **given)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), stop)
    with pytest.raises(KeyboardInterrupt):
        workflow.run()
    assert torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["epoch"] == 1
    run(["train"], "training", **given)
    for name in ("checkpoint.pt", "best.pt"):
        one, other = (torch.load(tmp_path / way / name, weights_only=True) for way in ("unbroken", "broken"))
        for key in one:
            if key != "random":
                assert equal(one[key], other[key]), (name, key)
    assert "was written with other settings: mixup_alpha (0.4 then, 0.0 now)" in refused(
        train, folders, tmp_path / "broken", **{**settings, "mixup_alpha": 0.0}
    )


def test_full_fine_tune_has_two_learning_rates_and_moves_the_backbone(folders: Path, tmp_path: Path) -> None:
    settings = {"backbone_frozen": False, "optimizer": "@adamw", "learning_rate": 1.0e-3, "max_gradient_norm": 1.0}
    settings |= {"backbone_learning_rate": 2.0e-4, "max_epochs": 1, "steps_per_epoch": 2, "precision": "bfloat16"}
    workflow = train(folders, tmp_path, **settings)
    optimizer = workflow.parser.get_parsed_content("optimizer")
    assert {group["initial_lr"] for group in optimizer.param_groups} == {1.0e-3, 2.0e-4}
    torch.manual_seed(0)
    start = make_workflow(["train"], "training", **{**TINY_TRAINING, **settings, "dataset_dir": str(folders)})
    start.parser.get_parsed_content("initialize#1")
    before = start.parser.get_parsed_content("network_def").backbone.state_dict()
    after = torch.load(tmp_path / "best.pt", weights_only=True)["network"]
    moved = [not torch.equal(value, after[f"backbone.{key}"]) for key, value in before.items()]
    assert sum(moved) > len(moved) // 2


def test_inference_names_classes_as_training_did(folders: Path, trained: Path, tmp_path: Path) -> None:
    infer(folders / "val" / "green", tmp_path, trained / "best.pt")
    table = rows(tmp_path / "predictions.csv")
    assert len(table) == 8
    assert sum(row["predicted"] == "green" for row in table) >= 7
    case = table[0]["case"]
    report = strict(tmp_path / f"{case}_class.json")
    assert report["tasks"][0]["probabilities"]["green"] == pytest.approx(float(table[0]["prob_green"]), abs=1e-6)
    assert Image.open(tmp_path / f"{case}_class.png").width == 948
    assert report["model"]["bundle"] == "imagenette_classification"
    # Alone a picture has the probabilities that it has among others, but for the rounding of larger batches.
    infer(next((folders / "val" / "green").glob(f"{case}.*")), tmp_path / "alone", trained / "best.pt")
    alone = strict(tmp_path / "alone" / f"{case}_class.json")
    assert alone["tasks"][0]["probabilities"] == pytest.approx(report["tasks"][0]["probabilities"], abs=1e-5)


def test_the_predictor_and_the_command_give_the_bundles_answer(
    folders: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = sorted((folders / "val" / "blue").iterdir())[0]
    infer(picture, tmp_path / "bundle", trained / "best.pt")
    model = tmp_path / "model.yaml"
    model.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in TINY_NETWORK.items()))
    given = {"overlay": model, "weights": trained / "best.pt", "device": "cpu"}
    Predictor.from_bundle(BUNDLE, **given).classify(picture).save(tmp_path / "predictor")
    arguments = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    inputs = [str(picture), str(tmp_path / "broken.jpg")]
    assert main(["classify", *inputs, "--bundle", str(BUNDLE), "--output", str(tmp_path / "cli"), *arguments]) == 2
    printed = capsys.readouterr()
    assert "blue" in printed.out
    assert "broken" in printed.err
    reports = [strict(tmp_path / way / f"{picture.stem}_class.json") for way in ("bundle", "predictor", "cli")]
    assert reports[0]["tasks"] == reports[1]["tasks"] == reports[2]["tasks"]
    assert reports[1]["preprocessing"] == reports[0]["preprocessing"]
    assert [row["predicted"] for row in rows(tmp_path / "cli" / "predictions.csv")] == ["blue"]
    with pytest.raises(InputError, match="makes no maps; leave maps out"):
        Predictor.from_bundle(BUNDLE, **given).classify(picture, maps=["rollout"])


def test_a_folder_that_is_classified_into_itself_twice_gives_the_same_table(
    folders: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.yaml"
    model.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in TINY_NETWORK.items()))
    mine = tmp_path / "mine"
    mine.mkdir()
    pictures = sorted((folders / "val" / "blue").iterdir())[:3]
    for picture in pictures[:2]:
        (mine / picture.name).write_bytes(picture.read_bytes())
    given = [
        "--bundle",
        str(BUNDLE),
        "--overlay",
        str(model),
        "--weights",
        str(trained / "best.pt"),
        "--output",
        str(mine),
    ]
    assert main(["classify", str(mine), *given]) == 0
    assert len(rows(mine / "predictions.csv")) == 2
    (mine / pictures[2].name).write_bytes(pictures[2].read_bytes())
    capsys.readouterr()
    assert main(["classify", str(mine), *given]) == 0
    assert "1 done, 2 skipped" in capsys.readouterr().out
    assert [row["case"] for row in rows(mine / "predictions.csv")] == [picture.stem for picture in pictures]
    own = mine / f"{pictures[0].stem}_class.png"
    (mine / f"{pictures[0].stem}_class.json").unlink()  # now this is a picture of the user's
    before = own.read_bytes()
    assert main(["classify", str(mine), *given, "--overwrite"]) == 2
    assert "change the output folder" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_evaluation_scores_what_inference_writes(folders: Path, trained: Path, tmp_path: Path) -> None:
    evaluate(folders, tmp_path / "eval", trained / "best.pt")
    infer(folders / "val", tmp_path / "out", trained / "best.pt")
    predicted = {row["case"]: row["predicted"] for row in rows(tmp_path / "out" / "predictions.csv")}
    right = np.mean([name.startswith(colour) for name, colour in predicted.items()])
    metrics = strict(tmp_path / "eval" / "metrics.json")
    assert find(metrics, "top1") == pytest.approx(right)
    assert find(metrics, "top5") == 1.0, "of three classes the top five are all"
    assert len(rows(tmp_path / "eval" / "cases.csv")) == 24
    assert (tmp_path / "eval" / "report.html").stat().st_size > 1000


def find(content: Any, key: str) -> float:
    """The first value of a key, at whatever depth; of an interval its middle."""
    if isinstance(content, dict):
        if key in content:
            value = content[key]
            return value["value"] if isinstance(value, dict) else value
        content = list(content.values())
    if isinstance(content, list):
        for each in content:
            found = find(each, key)
            if found is not None:
                return found
    return None  # type: ignore[return-value]


def test_several_labels_train_by_macro_auroc_and_are_reported(listed: Path, tmp_path: Path) -> None:
    data, output = listed / "labels.csv", tmp_path / "out"
    train(data, output, task="multilabel", balanced_loss=True, sampler="@balanced", cutmix_alpha=1.0, max_epochs=3)
    assert float(rows(output / "validation.csv")[-1]["macro_auroc"]) > 0.6
    evaluate(data, tmp_path / "eval", output / "best.pt", task="multilabel")
    assert (tmp_path / "eval" / "report.html").is_file()
    infer(listed / "pictures", tmp_path / "pred", output / "best.pt", task="multilabel", threshold=0.0)
    assert rows(tmp_path / "pred" / "predictions.csv")[0]["predicted"] == "blue|green|stripe"


def test_several_tasks_have_a_head_a_loss_and_a_report_each(listed: Path, tmp_path: Path) -> None:
    data, output = listed / "tasks.csv", tmp_path / "out"
    train(data, output, task="multitask", max_epochs=3, mixup_alpha=0.2)
    last = rows(output / "validation.csv")[-1]
    assert float(last["top1_colour"]) > 0.8
    assert float(last["mean_top1"]) == pytest.approx((float(last["top1_colour"]) + float(last["top1_shape"])) / 2)
    state = torch.load(output / "best.pt", weights_only=True)
    assert state["network"]["head.colour.0.weight"].shape == (3, 128)
    assert state["about"]["label_names"] == {"colour": ["amber", "blue", "green"], "shape": ["box", "stripe"]}
    evaluate(data, tmp_path / "eval", output / "best.pt", task="multitask")
    for task in ("colour", "shape"):
        assert len(rows(tmp_path / "eval" / task / "cases.csv")) == 12
    infer(listed / "pictures", tmp_path / "pred", output / "best.pt", task="multitask")
    assert {"colour_predicted", "shape_prob_box"} <= set(rows(tmp_path / "pred" / "predictions.csv")[0])


def test_weights_of_other_classes_and_settings_are_refused(folders: Path, trained: Path, tmp_path: Path) -> None:
    source, best = folders / "val" / "blue", trained / "best.pt"

    def said(**settings: Any) -> str:
        return refused(infer, source, tmp_path, best, **settings)

    assert "was trained with the label_names ['amber', 'blue', 'green'], not ['blue', 'amber', 'green']" in said(
        label_names=["blue", "amber", "green"]
    )
    assert "was trained with the features both, not patch; set features to what it was" in said(features="patch")
    assert "the task multiclass, not multilabel" in said(task="multilabel")
    assert "image_mean [0.485, 0.456, 0.406], not [0.5, 0.5, 0.5]" in said(image_mean=[0.5, 0.5, 0.5])
    assert "there is no such weights file" in refused(infer, source, tmp_path, tmp_path / "absent.pt")
    bare = tmp_path / "bare.pt"
    torch.save(torch.load(best, weights_only=True)["network"], bare)
    assert "does not say which classes its weights have; take best.pt" in refused(infer, source, tmp_path, bare)
    assert "does not say which classes" in refused(infer, source, tmp_path, trained / "checkpoint.pt")
    assert list(tmp_path.glob("*.json")) == []


def test_weights_bring_all_settings_that_are_not_given(folders: Path, trained: Path, tmp_path: Path) -> None:
    picture = sorted((folders / "val" / "blue").iterdir())[0]
    infer(picture, tmp_path / "given", trained / "best.pt")
    sizes = {key: value for key, value in TINY_NETWORK.items() if "#" in key or key == "precision"}
    model = tmp_path / "model.yaml"
    model.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in sizes.items()))
    given = {"overlay": str(model), "weights": str(trained / "best.pt"), "bundle": str(BUNDLE), "device": "cpu"}
    arguments = [part for key, value in given.items() for part in (f"--{key}", value)]
    assert main(["classify", str(picture), "--output", str(tmp_path / "cli"), *arguments]) == 0
    one, other = (strict(tmp_path / way / f"{picture.stem}_class.json") for way in ("given", "cli"))
    assert one["tasks"] == other["tasks"]
    assert one["preprocessing"] == other["preprocessing"]
    said = refused(infer, picture, tmp_path, trained / "best.pt", image_size=16)
    assert "was trained with the image_size 32, not 16; set image_size to what it was" in said
    said = refused(infer, picture, tmp_path, trained / "best.pt", evaluation_resize=64)
    assert "was trained with the evaluation_resize 36, not 64" in said


def test_what_was_held_out_in_training_is_scored_and_nothing_else(tmp_path: Path) -> None:
    data, output = make_folders(tmp_path / "data", 10, 0), tmp_path / "out"
    train(data, output, seed=3, max_epochs=1)
    best = output / "best.pt"
    evaluate(data, tmp_path / "eval", best)
    metrics = strict(tmp_path / "eval" / "metrics.json")
    assert metrics["about"]["pictures"] == "6 of 30 held out for validation (seed 3, validation_share 0.2)"
    assert not any("trained on" in warning for warning in metrics["warnings"])
    assert "(with seed 3 and validation_share 0.2, here 0 and 0.2)" in refused(
        *(evaluate, data, tmp_path / "no", best), seed=0
    )
    new = make_folders(tmp_path / "new", 5, 0)
    assert "set part to all if these are new pictures" in refused(evaluate, new, tmp_path / "no", best)
    for source, part, said in (
        (data, "all", "24 of 30 pictures were trained on"),
        (data, "training", "24 of 24 pictures were trained on"),
        (new, "all", "some may be among them"),
    ):
        place = tmp_path / f"{source.name}_{part}"
        evaluate(source, place, best, part=part)
        assert said in strict(place / "metrics.json")["warnings"][0]
        assert said in (place / "report.html").read_text()


def test_report_says_what_was_left_out(folders: Path, trained: Path, tmp_path: Path) -> None:
    pictures = sorted((folders / "val").glob("*/*.jpg"))
    rows_ = [{"image": str(path), "label": path.parent.name, "split": "val"} for path in pictures]
    bad = [{"image": "absent.jpg", "label": "blue", "split": "val"}, {**rows_[0], "image": "a.jpg", "label": "purple"}]
    data = write_csv(tmp_path / "list.csv", [*rows_, *bad])
    evaluate(data, tmp_path / "eval", trained / "best.pt", strict=False)
    warning = strict(tmp_path / "eval" / "metrics.json")["warnings"][0]
    assert "2 problems" in warning
    assert "label out of range: 1, missing pair: 1" in warning


def test_training_does_not_go_on_with_other_data_of_the_same_size(folders: Path, tmp_path: Path) -> None:
    found = [
        {"image": str(path), "label": path.parent.name, "split": path.parts[-3]}
        for path in sorted(folders.glob("*/*/*.jpg"))
    ]
    data = write_csv(tmp_path / "list.csv", found)
    train(data, tmp_path / "out", max_epochs=1)
    first, other = (next(row for row in found if row["label"] == label) for label in ("amber", "blue"))
    first["label"], other["label"] = other["label"], first["label"]
    write_csv(data, found)
    assert "was written with other settings" in refused(train, data, tmp_path / "out", max_epochs=1)


def test_evaluation_refuses_data_of_other_classes(trained: Path, tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data", 2, 2)
    (data / "val" / "green").rename(data / "val" / "purple")
    said = refused(evaluate, data, tmp_path / "eval", trained / "best.pt")
    assert "has the class 'purple', which is none of amber, blue, green" in said


def test_unreadable_picture_is_named_when_training_meets_it(tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data", 4, 2)
    broken = data / "train" / "blue" / "blue101.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    said = refused(train, data, tmp_path / "out")
    assert "blue101.jpg cannot be read as a picture" in said
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_imagenettes_folders_need_no_settings(tmp_path: Path) -> None:
    for seed, folder in enumerate(IMAGENETTE_CLASSES):
        for part in ("train", "val"):
            save(tmp_path / "data" / part / folder / f"{folder}_{part}.jpg", noise(seed))
    classes = make_workflow(["train"], "training").parser["class_names"]
    train(tmp_path / "data", tmp_path / "out", class_names=classes, max_epochs=1, pictures_per_batch=5)
    infer(tmp_path / "data" / "val" / "n01440764", tmp_path / "out", tmp_path / "out" / "best.pt")
    report = strict(tmp_path / "out" / "n01440764_val_class.json")
    assert list(report["tasks"][0]["probabilities"]) == list(IMAGENETTE_CLASSES.values())
    assert len(report["tasks"][0]["top"]) == 5


def test_verbs_train_and_evaluate_with_one_small_file(folders: Path, tmp_path: Path) -> None:
    model, output = tmp_path / "model.yaml", tmp_path / "out"
    model.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in TINY_NETWORK.items()))
    settings = {"dataset_dir": folders, "output_dir": output, "class_names": "null", "max_epochs": 1, "num_workers": 0}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert main(["train", str(BUNDLE), "--overlay", str(model), *given, "--set", "tensorboard=false"]) == 0
    settings = {"dataset_dir": folders, "output_dir": tmp_path / "eval", "ckpt_path": output / "best.pt"}
    settings |= {"num_workers": 0, "bootstrap_repeats": 5, "part": "all"}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert main(["evaluate", str(BUNDLE), "--overlay", str(model), *given]) == 0
    assert len(rows(tmp_path / "eval" / "cases.csv")) == 72


def test_bundle_is_sound_and_says_that_it_ships_no_weights() -> None:
    findings = check_bundle(BUNDLE)
    assert [finding for finding in findings if not finding.ok] == []
    assert len(findings) > 30


def test_classes_of_the_bundle_are_imagenettes() -> None:
    named = strict(BUNDLE / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(named.values()) == list(IMAGENETTE_CLASSES.values())
    config = ConfigParser.load_config_file(str(BUNDLE / "configs" / "train.yaml"))
    assert (config["image_size"], config["pictures_per_batch"], config["learning_rate"], config["momentum"]) == (
        *(224, 32, 0.01, 0.9),
    )
    assert config["backbone_frozen"] is True
    assert config["features"] == "both"


def test_training_and_inference_describe_the_same_network_and_pictures() -> None:
    train_config, inference = (
        ConfigParser.load_config_file(str(BUNDLE / "configs" / f"{name}.yaml")) for name in ("train", "inference")
    )
    parser = make_workflow(["inference"], "inferring", ckpt_path="absent.pt").parser
    same = ("task", "backbone_name", "features", "hidden_features", "image_size", "evaluation_resize", "image_mean")
    for key in (*same, "image_std"):
        assert train_config[key] == parser.get_parsed_content(key), key
    of_data = ("given_classes", "seed", "validation_share", "data")
    described = {key for key in train_config["about"] if key not in ("_target_", *of_data)}
    loaded = {key for key in inference["network"] if key not in ("_target_", "network", "path", "device")}
    assert described == loaded, "what weights say of themselves is what inference asks"
