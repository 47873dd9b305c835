from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from head_bundle import BUNDLE, TINY_TRAINING, make_workflow, run
from head_maps import head_numbers, write_map, write_maps
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dinomed.bundle.causes import explain


class KilledError(Exception):
    """Stands for whatever ends a run."""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def weights(output: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(output / "checkpoint.pt", weights_only=True)["network"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def last_line(capsys: pytest.CaptureFixture[str], configs: list[str], **settings: Any) -> str:
    """What a user reads last on stderr when the training fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(configs, "training", **{**TINY_TRAINING, **settings})
    capsys.readouterr()
    explain(caught.type, caught.value, caught.tb)
    return capsys.readouterr().err.splitlines()[-1]


def test_training_leaves_checkpoint_best_weights_tables_and_events(trained: Path) -> None:
    assert not [path.name for path in trained.rglob("*.tmp")]
    steps = [(row["epoch"], row["step"]) for row in rows(trained / "log.csv")]
    assert steps == [("1", "5"), ("2", "10"), ("3", "15"), ("4", "20")]
    validations = rows(trained / "validation.csv")
    assert [(row["epoch"], row["step"]) for row in validations] == steps
    assert all(0 <= float(row["mean_dice"]) <= 1 for row in validations)
    events = EventAccumulator(str(trained))
    events.Reload()
    assert {"train/loss", "train/learning_rate"} <= set(events.Tags()["scalars"])
    events = EventAccumulator(str(trained / "validation"))
    events.Reload()
    assert events.Tags()["scalars"] == ["validation/mean_dice"]
    assert "validation/slice_0" in events.Tags()["images"]
    assert [event.step for event in events.Scalars("validation/mean_dice")] == [5, 10, 15, 20]


def test_loss_falls(trained: Path) -> None:
    losses = [float(row["loss"]) for row in rows(trained / "log.csv")]
    assert losses[-1] < losses[0] - 0.1


def test_best_weights_are_those_of_the_best_validation(trained: Path) -> None:
    scores = [float(row["mean_dice"]) for row in rows(trained / "validation.csv")]
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert checkpoint["best_metric"] == max(scores)
    assert checkpoint["best_metric_epoch"] == 1 + scores.index(max(scores))
    best = torch.load(trained / "best.pt", weights_only=True)
    assert best.keys() == checkpoint["network"].keys()
    if checkpoint["best_metric_epoch"] == checkpoint["epoch"]:
        assert same(best, checkpoint["network"])


def test_logged_rate_is_that_of_the_step(trained: Path) -> None:
    rates = [float(row["learning_rate"]) for row in rows(trained / "log.csv")]
    peak = TINY_TRAINING["learning_rate"]
    assert rates == pytest.approx([peak * ((20 - step) / 18) ** 0.9 for step in (4, 9, 14, 19)])


def test_run_stopped_after_an_epoch_and_resumed_ends_bit_for_bit_the_same(
    trained: Path, maps: Path, tmp_path: Path
) -> None:
    """The familiar `training` and the bundle's `run` are the same program, too."""
    settings = {**TINY_TRAINING, "dataset_dir": str(maps), "output_dir": str(tmp_path)}
    first = make_workflow(["train"], "run", **settings)
    first.initialize()
    trainer = first.parser.get_parsed_content("train#trainer")

    def kill() -> None:
        raise KilledError

    trainer.add_event_handler(Events.ITERATION_STARTED(once=13), kill)  # in the middle of the third epoch
    with pytest.raises(RuntimeError) as caught:
        first.run()
    assert isinstance(caught.value.__cause__, KilledError)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2
    run(["train"], "run", **settings)
    assert same(weights(tmp_path), weights(trained))
    assert same(torch.load(tmp_path / "best.pt", weights_only=True), torch.load(trained / "best.pt", weights_only=True))
    assert rows(tmp_path / "validation.csv") == rows(trained / "validation.csv")
    for row, other in zip(rows(tmp_path / "log.csv"), rows(trained / "log.csv"), strict=True):
        assert {**row, "seconds_per_step": ""} == {**other, "seconds_per_step": ""}


def test_every_option_together_survives_a_kill_within_an_accumulation_group(maps: Path, tmp_path: Path) -> None:
    """SGD, cosine, a loss scale, accumulation with a smaller last group, averaged weights, patience and the rest."""
    options = {
        **TINY_TRAINING,
        "dataset_dir": str(maps),
        "max_epochs": 2,
        "warmup_steps": 1,
        "optimizer": "@sgd",
        "lr_scheduler": "@cosine",
        "loss_scaling#precision": "float16",  # the network itself is slow in float16 on CPUs
        "accumulation_steps": 2,
        "ema_decay": 0.5,
        "patience": 5,
        "gradient_checkpointing": True,
        "adapter_drop_path": 0.2,
        "tensorboard": False,
    }
    whole = run(["train"], "run", output_dir=str(tmp_path / "whole"), **options)
    assert type(whole.parser.get_parsed_content("optimizer")) is torch.optim.SGD
    first = make_workflow(["train"], "run", output_dir=str(tmp_path / "killed"), **options)
    first.initialize()

    def kill() -> None:
        raise KilledError

    trainer = first.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), kill)  # the first of a group's two batches was 8
    with pytest.raises(RuntimeError):
        first.run()
    run(["train"], "run", output_dir=str(tmp_path / "killed"), **options)
    ends = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    assert same(ends[0]["network"], ends[1]["network"])
    assert same(ends[0]["parts"]["average"]["network"], ends[1]["parts"]["average"]["network"])
    assert ends[0]["parts"]["average"]["updates"] == ends[0]["scheduler"]["last_epoch"] == 6
    assert ends[0]["parts"]["loss_scaling"] == ends[1]["parts"]["loss_scaling"] != {}
    best = [torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("whole", "killed")]
    assert same(*best)
    assert not same(best[0], ends[0]["network"])  # the average is kept, not the last weights
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {"checkpoint.pt", "best.pt", "log.csv", "log.jsonl", "validation.csv", "validation.jsonl"}


def test_overlay_trains_two_groups_of_classes(maps: Path, tmp_path: Path) -> None:
    settings = {**TINY_TRAINING, "max_epochs": 1, "steps_per_epoch": 3, "warmup_steps": 1}
    workflow = run(["train", "brain"], dataset_dir=str(maps), output_dir=str(tmp_path), **settings)
    loss = workflow.parser.get_parsed_content("loss")
    assert loss.class_groups == [[0, 7], [1, 2, 3, 4, 5, 6]]
    assert len(rows(tmp_path / "validation.csv")) == 1
    network = workflow.parser.get_parsed_content("network")
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape[1] == 8
    logits, target = torch.zeros(1, 8, 2, 2), torch.zeros(1, 1, 2, 2)
    logits[:, 7] = 50.0  # background and other head tissue are one group
    assert float(loss(logits, target)) < 1e-3


def test_frozen_backbone_keeps_the_weights_that_the_training_starts_from(
    trained: Path, maps: Path, tmp_path: Path
) -> None:
    settings = {**TINY_TRAINING, "max_epochs": 1, "steps_per_epoch": 2, "warmup_steps": 1, "seed": 5}
    start = {"initial_weights": str(trained / "best.pt"), "backbone_frozen": True}
    run(["train"], dataset_dir=str(maps), output_dir=str(tmp_path), **settings, **start)
    before, after = torch.load(trained / "best.pt", weights_only=True), weights(tmp_path)
    unchanged = {name for name, value in before.items() if torch.equal(value, after[name])}
    backbone = {name for name in before if name.startswith("backbone.backbone.")}
    assert backbone
    assert backbone <= unchanged
    assert not {name for name in unchanged if name.startswith("decoder.") and name.endswith(".weight")}


def test_groups_given_on_the_command_line_need_no_other_setting(maps: Path, tmp_path: Path) -> None:
    settings = {**TINY_TRAINING, "class_groups": [[0], [1, 2, 3, 4, 5, 6, 7]]}
    workflow = make_workflow(["train"], dataset_dir=str(maps), output_dir=str(tmp_path), **settings)
    workflow.initialize()
    loss = workflow.parser.get_parsed_content("loss")
    assert bool(loss(torch.zeros(1, 8, 2, 2), torch.ones(1, 1, 2, 2)).isfinite())


def test_bundle_trains_from_inside_with_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the label maps in its data folder the defaults find everything."""
    shutil.copytree(BUNDLE / "configs", tmp_path / "bundle" / "configs")
    folder = tmp_path / "bundle" / "data" / "head_labels"
    write_maps(folder, 1, size=40)
    for name in ("training_seg_15.nii.gz", "training_seg_16.nii.gz"):
        write_map(folder / name, head_numbers(40, 9))
    monkeypatch.chdir(tmp_path / "bundle")
    settings = {**TINY_TRAINING, "max_epochs": 1, "steps_per_epoch": 2, "warmup_steps": 1}
    del settings["validation_maps"]
    workflow = ConfigWorkflow("configs/train.yaml", logging_file=False, workflow_type="train", **settings)
    workflow.initialize()
    workflow.run()
    assert {"checkpoint.pt", "best.pt", "log.csv"} <= {path.name for path in (tmp_path / "bundle/runs/train").iterdir()}


def test_bundle_starts_from_the_repository_root(
    maps: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    config = "bundles/mri_head_segmentation/configs/train.yaml"
    workflow = ConfigWorkflow(
        config,
        logging_file=False,
        workflow_type="train",
        bundle_root="bundles/mri_head_segmentation",
        **{**TINY_TRAINING, "dataset_dir": str(maps), "output_dir": str(tmp_path)},
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, nn.Module)
    assert workflow.max_epochs == TINY_TRAINING["max_epochs"]
    assert len(workflow.train_dataset) == TINY_TRAINING["steps_per_epoch"]


def test_several_processes_draw_different_slices_and_validate_all_once(maps: Path, tmp_path: Path) -> None:
    drawn, validated = [], []
    for rank in (0, 1):
        place = {"rank": rank, "world_size": 2}
        workflow = make_workflow(
            ["train", "multi_gpu_train"],
            **{**TINY_TRAINING, **place, "validation_items": 3, "dataset_dir": str(maps)},
        )
        workflow.parser.parse(reset=True)
        drawn.append(list(workflow.parser.get_parsed_content("train#sampler")))
        validated.append(list(workflow.parser.get_parsed_content("validate#sampler")))
    assert len(drawn[0]) == len(drawn[1]) == TINY_TRAINING["steps_per_epoch"]
    assert sorted(drawn[0] + drawn[1]) == list(range(10))
    assert validated == [[0, 2], [1]]


def test_several_processes_need_torchrun(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = last_line(capsys, ["train", "multi_gpu_train"], dataset_dir=str(maps))
    assert line.startswith("dinomed: multi_gpu_train.yaml needs torchrun; start it with torchrun")


def test_wrong_folders_and_names_are_said_in_one_sentence(
    maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = last_line(capsys, ["train"], dataset_dir=str(tmp_path / "absent"))
    assert absent.startswith("dinomed:")
    assert "absent: there is no such folder; set dataset_dir" in absent
    assert "no label maps (*.nii.gz) here; set dataset_dir" in last_line(capsys, ["train"], dataset_dir=str(tmp_path))
    misnamed = last_line(capsys, ["train"], dataset_dir=str(maps), validation_maps=["x.nii.gz"])
    assert "x.nii.gz are named in the configuration but not there; correct validation_maps" in misnamed
    all_taken = last_line(capsys, ["train"], dataset_dir=str(maps), validation_maps=[p.name for p in maps.iterdir()])
    assert "there are no label maps to draw from; set dataset_dir" in all_taken


def test_label_map_with_unknown_numbers_is_named(
    maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(maps, tmp_path / "maps")
    strange = head_numbers(24)
    strange[12, 12, 12] = 999
    write_map(tmp_path / "maps" / "strange.nii.gz", strange)
    line = last_line(capsys, ["train"], dataset_dir=str(tmp_path / "maps"))
    assert "strange.nii.gz: cannot be used as a label map (labels 999 are no FreeSurfer" in line


def test_wrong_numbers_are_the_last_line(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = last_line(capsys, ["train"], dataset_dir=str(maps), output_dir=str(tmp_path), warmup_steps=20)
    assert (
        line == "The cause: ValueError: warmup_steps is 20 and the whole training takes 20 steps; shorten the warm-up"
    )


def test_other_settings_do_not_go_on_from_the_checkpoint(
    trained: Path, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "checkpoint.pt").read_bytes()
    line = last_line(capsys, ["train"], dataset_dir=str(maps), output_dir=str(trained), weight_decay=0.2, seed=7)
    assert line.startswith("dinomed:")
    assert "was written with other settings: seed (0 then, 7 now), weight_decay (0.05 then, 0.2 now)" in line
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_loss_that_is_no_number_leaves_the_last_checkpoint(
    maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"dataset_dir": str(maps), "output_dir": str(tmp_path), "steps_per_epoch": 2, "warmup_steps": 1}
    line = last_line(capsys, ["train"], **settings, **{"loss#loss#cross_entropy_weight": float("nan")})
    assert "the loss became nan at step 1 (epoch 1) in a batch of " in line
    assert f"{maps}/training_seg_0" in line
    assert not (tmp_path / "checkpoint.pt").exists()
