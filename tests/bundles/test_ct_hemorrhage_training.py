"""The haemorrhage bundle: training of a head from a table, its evaluation, and what each refuses."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hemorrhage_bundle import (
    ROOT,
    TINY,
    TINY_TRAINING,
    root_cause,
    run,
    workflow,
    write_backbone,
    write_series,
)
from ignite.engine import Events
from series_tables import LABELS, row_of, write_ct, write_table

from dinomed.bundle.causes import own_error
from dinomed.bundle.head_checkpoint import HeadAbout, group_marks, read_about
from dinomed.bundle.head_evaluation import Evaluated, threshold_source
from dinomed.bundle.head_training import open_split
from dinomed.cli.main import main
from dinomed.data.embedded_series import collate_bags
from dinomed.data.feature_cache import FeatureCache
from dinomed.data.features import HEAD_WINDOWS_HU
from dinomed.errors import InputError, OutputError, WeightsError
from dinomed.metrics.classification import YOUDEN


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_series(folder)
    write_backbone(folder / "backbone.pt")
    return folder


@pytest.fixture(scope="module")
def places(data: Path) -> dict[str, str]:
    return {
        "table": str(data / "series.csv"),
        "backbone_weights": str(data / "backbone.pt"),
        "cache_dir": str(data / "cache"),
    }


@pytest.fixture(scope="module")
def trained(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    run(["train"], "training", output_dir=str(output), **places, **TINY_TRAINING)
    return output


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["network"]


def fails(kind: type[Exception], words: str, work: Any) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        work()
    cause = own_error(caught.value) or root_cause(caught.value)
    assert isinstance(cause, kind), cause
    assert words in str(cause)


def evaluate(places: dict[str, str], trained: Path, output: Path, **settings: Any) -> dict[str, Any]:
    given = {**places, **TINY, "ckpt_path": str(trained / "best.pt"), "bootstrap_repeats": 20, **settings}
    run(["inference", "evaluate"], "evaluating", output_dir=str(output), **given)
    return json.loads((output / "metrics.json").read_text())


def filled_head(places: dict[str, str], trained: Path, **settings: Any) -> HeadAbout:
    """What inference is told by the file of a head, after it has filled the head from it."""
    given = {**TINY, "backbone_weights": places["backbone_weights"], "ckpt_path": str(trained / "best.pt"), **settings}
    return workflow(["inference"], **given).parser.get_parsed_content("head")


def test_training_learns_and_leaves_what_it_should(trained: Path) -> None:
    rows = list(csv.DictReader((trained / "validation.csv").open()))
    assert len(rows) == 12
    assert max(float(row["macro_auroc"]) for row in rows) > 0.8
    for name in ("checkpoint.pt", "best.pt", "best.json", "log.csv", "split.csv", "split_summary.json", "problems.csv"):
        assert (trained / name).is_file(), name


def test_the_best_head_says_what_it_belongs_to(trained: Path) -> None:
    about = read_about(trained / "best.pt")
    assert about.labels == LABELS
    assert (about.pooling, about.features, about.in_features, about.seed) == ("attention", "patch", 32, 42)
    assert about.preprocessing["resize"] == 32
    assert about.preprocessing["windows_hu"] == [list(window) for window in HEAD_WINDOWS_HU]
    assert "precision" not in about.preprocessing
    assert about.calibration["any"] is not None
    assert 0 < about.thresholds["any"] < 1
    assert about.validation["any"] > 0.9
    # Nothing of these occurs, so there is nothing to calibrate or to decide.
    for name in ("intraparenchymal", "intraventricular", "subarachnoid"):
        assert about.calibration[name] is about.thresholds[name] is about.validation[name] is None
    split = list(csv.DictReader((trained / "split.csv").open()))
    assert len(about.seen["train"]) == sum(row["part"] == "train" for row in split)
    written = json.loads((trained / "best.json").read_text())
    assert written["thresholds"] == about.thresholds


def test_a_training_that_was_stopped_ends_with_the_same_head(
    places: dict[str, str], trained: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        """In place of a kill."""

    def stop(engine: Any) -> None:
        if engine.state.iteration == 18:  # within the fifth epoch
            raise StoppedError

    settings = {"output_dir": str(tmp_path), **places, **TINY_TRAINING}
    stopped = workflow(["train"], "training", **settings)
    stopped.initialize()
    stopped.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED, stop)
    fails(StoppedError, "", stopped.run)
    with pytest.raises(WeightsError, match="run its training to the end"):
        read_about(tmp_path / "best.pt")
    run(["train"], "training", **settings)
    for name in ("checkpoint.pt", "best.pt"):
        whole, resumed = state(trained / name), state(tmp_path / name)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert read_about(tmp_path / "best.pt") == read_about(trained / "best.pt")


def test_a_training_that_has_ended_is_not_done_again(places: dict[str, str], trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "again")
    run(["train"], "training", output_dir=str(tmp_path / "again"), **places, **TINY_TRAINING)
    assert read_about(tmp_path / "again" / "best.pt") == read_about(trained / "best.pt")
    assert (tmp_path / "again" / "validation.csv").read_text() == (trained / "validation.csv").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resize": 48}, "preprocessing ("),
        ({"dropout": 0.5}, "dropout (0.2 then, 0.5 now)"),
        ({"pooling": "mean"}, "pooling ('attention' then, 'mean' now)"),
        ({"weight_decay": 0.5}, "weight_decay (0.01 then, 0.5 now)"),
        ({"fractions": [0.6, 0.2, 0.2]}, "training_items ("),
    ],
)
def test_a_run_with_other_settings_does_not_go_on(
    places: dict[str, str], trained: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    shutil.copytree(trained, tmp_path / "again")
    settings = {"output_dir": str(tmp_path / "again"), **places, **TINY_TRAINING, **change}
    fails(WeightsError, words, lambda: run(["train"], "training", **settings))


def test_the_split_of_the_training_is_the_one_that_is_evaluated(
    places: dict[str, str], trained: Path, tmp_path: Path
) -> None:
    table = {**places, "table": str(trained / "split.csv")}
    found = evaluate(table, trained, tmp_path)
    split = list(csv.DictReader((trained / "split.csv").open()))
    wanted = sorted(row["series_uid"] for row in split if row["part"] == "test")
    assert sorted(row["case"] for row in csv.DictReader((tmp_path / "cases.csv").open())) == wanted
    assert found["about"]["part"] == "test"
    assert not [warning for warning in found["warnings"] if "trained on" in warning]
    assert found["counts"]["studies"] == len(wanted)
    about = read_about(trained / "best.pt")
    labels = {row["label"]: row for row in found["labels"]}
    assert labels["any"]["auroc"] > 0.8
    assert labels["any"]["threshold"] == pytest.approx(about.thresholds["any"], abs=1e-6)
    assert labels["subarachnoid"]["threshold"] is None
    assert "validation part of the training" in found["about"]["threshold_source"]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_evaluated_probabilities_are_the_calibrated_ones_of_inference(
    data: Path, places: dict[str, str], trained: Path, tmp_path: Path
) -> None:
    evaluate({**places, "table": str(trained / "split.csv")}, trained, tmp_path)
    rows = {row["case"]: row for row in csv.DictReader((tmp_path / "cases.csv").open())}
    name = next(iter(rows))
    scan = data / f"{name.removeprefix('series ')}.nii"
    settings = {**TINY, "backbone_weights": places["backbone_weights"], "ckpt_path": str(trained / "best.pt")}
    parser = workflow(["inference"], **settings).parser
    embed, network, head = (parser.get_parsed_content(key) for key in ("embed", "network", "head"))
    batch = collate_bags([embed({"image": str(scan)})])
    with torch.no_grad():
        probs = head.probabilities(network(batch["image"], batch["valid"]))
    for label, prob in zip(LABELS, probs[0].tolist(), strict=True):
        assert float(rows[name][f"{label}_probability"]) == pytest.approx(prob, abs=1e-4)


def scored(trained: Path, table: Path, part: str = "test", allow_seen: bool = False, **options: Any) -> Evaluated:
    return Evaluated(table, options.get("data_root"), LABELS, part, read_about(trained / "best.pt"), allow_seen)


def test_the_part_that_trained_is_refused_unless_it_is_asked_for(trained: Path) -> None:
    table = trained / "split.csv"
    with pytest.raises(InputError, match="say nothing of new scans; set part to test, or allow_seen to true"):
        scored(trained, table, "train")
    with pytest.raises(InputError, match="part 'all' is unknown; choose from train, validation, test"):
        scored(trained, table, "all")
    asked = scored(trained, table, "train", allow_seen=True)
    assert asked.about["warnings"] == ["25 of 25 series were trained on: their scores flatter the head"]
    (warning,) = scored(trained, table, "validation").about["warnings"]
    assert "5 of 5 series chose the weights, calibration and thresholds" in warning


def test_a_table_without_parts_is_scored_whole_unless_it_holds_what_was_trained_on(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"25 of the 36 series were trained on \(series "):
        scored(trained, data / "series.csv")
    whole = scored(trained, data / "series.csv", allow_seen=True)
    assert (whole.about["part"], len(whole.items), len(whole.about["warnings"])) == ("all rows", 36, 2)
    table = write_series(tmp_path, 8, name="new ")
    for k in range(8):
        write_ct(tmp_path / f"{k}.nii", 100 + k, 40.0 * (k % 2), shape=(16, 20, 4))
    new = scored(trained, table)
    assert new.about["warnings"] == []
    assert len(new.items) == 8


def test_the_test_part_of_another_split_is_refused_where_it_was_trained_on(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    used = {row["series_uid"] for row in csv.DictReader((trained / "split.csv").open()) if row["part"] == "train"}
    header, *rows = (data / "series.csv").read_text().splitlines()
    parts = ["test" if row.split(",")[2] in used else "train" for row in rows]
    table = tmp_path / "table.csv"
    table.write_text("\n".join([f"{header},part", *map(",".join, zip(rows, parts, strict=True))]) + "\n")
    with pytest.raises(InputError, match="25 of the 25 series were trained on"):
        scored(trained, table, data_root=data)
    assert len(scored(trained, table, allow_seen=True, data_root=data).items) == 25


def test_scans_without_any_finding_can_be_evaluated(places: dict[str, str], trained: Path, tmp_path: Path) -> None:
    table = write_series(tmp_path, 4, name="new ")
    for k in range(4):
        write_ct(tmp_path / f"{k}.nii", 100 + k, shape=(16, 20, 4))
    table.write_text(table.read_text().replace(",1", ",0"))
    found = evaluate({**places, "table": str(table)}, trained, tmp_path / "out")
    labels = {row["label"]: row for row in found["labels"]}
    assert labels["any"]["auroc"] is None
    assert labels["any"]["specificity"] is not None
    assert found["about"]["part"] == "all rows"


def test_patients_are_drawn_where_the_table_knows_them(trained: Path, tmp_path: Path) -> None:
    table = write_series(tmp_path, 4, patient_id="P")
    table.write_text(table.read_text().replace(",P\n", ",\n", 1))
    found = scored(trained, table, allow_seen=True)
    assert [item["patient"] for item in found.items] == ["study study 0", "P", "P", "P"]
    assert "patient" not in scored(trained, trained / "split.csv").items[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooling": "mean"}, "its pooling is attention"),
        ({"resize": 48}, "its resize was 32 in training, and is 48 here"),
        ({"labels": list(LABELS[:5])}, "was trained for the labels any, epidural"),
        ({"windows_hu": None}, "its windows_hu was"),
        ({"backbone_weights": None}, "a frozen backbone with random weights sees nothing"),
    ],
)
def test_a_head_is_not_used_with_other_settings(
    places: dict[str, str], trained: Path, change: dict[str, Any], words: str
) -> None:
    fails(WeightsError, words, lambda: filled_head(places, trained, **change))


def test_a_head_is_not_used_on_another_backbone(places: dict[str, str], trained: Path, tmp_path: Path) -> None:
    other = {**places, "backbone_weights": str(write_backbone(tmp_path / "other.pt", seed=1))}
    fails(WeightsError, "its backbone had weights with the checksum", lambda: filled_head(other, trained))


@pytest.mark.parametrize("change", [{"features": "both"}, {"pooling": "smoothmax"}, {"hidden_features": 0}])
def test_the_head_follows_by_one_line(places: dict[str, str], tmp_path: Path, change: dict[str, Any]) -> None:
    settings = {**places, **TINY_TRAINING, "max_epochs": 1, **change}
    run(["train"], "training", output_dir=str(tmp_path), **settings)
    about = read_about(tmp_path / "best.pt")
    assert about.in_features == (64 if change.get("features") == "both" else 32)
    assert filled_head(places, tmp_path, **change) == about


def test_meddinov3_is_chosen_by_one_line_and_gets_no_windows(places: dict[str, str], tmp_path: Path) -> None:
    from dinomed.networks import create_backbone

    torch.manual_seed(0)
    made = create_backbone("meddinov3_vitb16", embed_dim=32, depth=1, num_heads=2)
    torch.save(made.state_dict(), tmp_path / "meddino.pt")
    given = {"backbone_name": "meddinov3_vitb16", "backbone_weights": str(tmp_path / "meddino.pt")}
    settings = {**places, **TINY_TRAINING, "max_epochs": 1, **given}
    run(["train"], "training", output_dir=str(tmp_path), **settings)
    about = read_about(tmp_path / "best.pt")
    assert about.backbone == "meddinov3_vitb16"
    assert about.preprocessing["windows_hu"] == [[-1000.0, 1000.0]] * 3
    assert about.preprocessing["normalisation"] == [65.1084213256836, 178.01663208007812]
    assert filled_head(places, tmp_path, **given) == about


def test_bad_rows_are_left_out_of_the_split_and_written_down(
    data: Path, places: dict[str, str], tmp_path: Path
) -> None:
    rows = (data / "series.csv").read_text().splitlines()
    broken = [rows[1].replace("0.nii", "gone.nii").replace("series 0", "series x"), rows[2].replace("1.nii", "")]
    (tmp_path / "table.csv").write_text("\n".join([*rows, *broken]) + "\n")
    settings = {
        **places,
        **TINY_TRAINING,
        "max_epochs": 1,
        "table": str(tmp_path / "table.csv"),
        "data_root": str(data),
    }
    run(["train"], "training", output_dir=str(tmp_path / "out"), **settings)
    summary = json.loads((tmp_path / "out" / "split_summary.json").read_text())
    assert (summary["rows"], summary["used"]) == (38, 36)
    problems = list(csv.DictReader((tmp_path / "out" / "problems.csv").open()))
    assert {row["row"] for row in problems} == {"38", "39"}


def test_series_that_break_while_they_are_embedded_stop_the_training_and_are_all_named(
    data: Path, places: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    for k in (3, 4):
        content = (tmp_path / "data" / f"{k}.nii").read_bytes()
        (tmp_path / "data" / f"{k}.nii").write_bytes(content[:352] + bytes(len(content) - 352))
    rows = (data / "series.csv").read_text().splitlines()
    parts = ["part", *("train" if k < 20 else ("validation", "test")[k // 2 % 2] for k in range(36))]
    table = tmp_path / "data" / "parts.csv"
    table.write_text("\n".join(f"{row},{part}" for row, part in zip(rows, parts, strict=True)) + "\n")
    settings = {**places, **TINY_TRAINING, "table": str(table), "output_dir": str(tmp_path / "out"), "check": "header"}
    fails(InputError, "2 of 20 series cannot be embedded: series 3 (", lambda: run(["train"], "training", **settings))
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_scans_without_sound_voxels_leave_before_the_split(data: Path, trained: Path, tmp_path: Path) -> None:
    for k in range(36):
        shutil.copy(data / f"{k}.nii", tmp_path)
    content = (tmp_path / "3.nii").read_bytes()
    (tmp_path / "3.nii").write_bytes(content[:352] + bytes(len(content) - 352))
    table = shutil.copy(data / "series.csv", tmp_path)
    split = open_split(table, None, LABELS, (0.7, 0.15, 0.15), 42, tmp_path / "out")
    assert "series 3" not in {series.series_uid for series in split.table.series}
    assert len(split.table.series) == len(scored(trained, Path(table), allow_seen=True).items) == 35
    with pytest.raises(InputError, match="is the table itself"):
        open_split(shutil.copy(table, tmp_path / "split.csv"), None, LABELS, (0.7, 0.15, 0.15), 42, tmp_path)


def test_a_validation_part_without_both_classes_stops_the_training(
    data: Path, places: dict[str, str], tmp_path: Path
) -> None:
    rows = (data / "series.csv").read_text().splitlines()
    parts = ["part", *("train" if k < 20 else ("validation", "test")[k % 2] for k in range(36))]
    table = tmp_path / "parts.csv"
    table.write_text("\n".join(f"{row},{part}" for row, part in zip(rows, parts, strict=True)) + "\n")
    settings = {**places, **TINY_TRAINING, "table": str(table), "data_root": str(data), "output_dir": str(tmp_path)}
    fails(InputError, "no label has positive and negative cases", lambda: run(["train"], "training", **settings))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("table=nowhere.csv", "table nowhere.csv cannot be read"),
        ("data_root=nowhere", "data_root nowhere is no folder"),
        ("fractions=[0.5, 0.6, 0.1]", "fractions must be the shares"),
        ("features=mean", "features 'mean' are unknown; choose from cls, patch, both"),
        ("pooling=max", "pooling 'max' is unknown; choose from mean, meanmax, attention, smoothmax"),
        ("learning_rate=abc", "learning_rate is 'abc'; give a positive number"),
        ("resize=8", "resize must be 16 or more, not 8"),
        ("backbone_weights=nowhere.pt", "nowhere.pt"),
        ("backbone_weights=null", "backbone_weights is null, and a frozen backbone"),
        ("labels=['any', 'stroke']", "column label_stroke is missing"),
        ("labels=[any, stroke]", "labels must be a list of names, not '[any, stroke]'"),
        ("seed=abc", "seed is 'abc'; give a whole number"),
        ("pool=cls", "has no id 'pool'"),
    ],
)
def test_settings_that_cannot_be_used_are_one_sentence(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    given = {**places, **TINY_TRAINING, "output_dir": tmp_path}
    settings = [*(f"{key}={value}" for key, value in given.items()), setting]
    assert main(["train", str(ROOT), *(word for each in settings for word in ("--set", each))]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dinomed: ")
    assert words in last


def test_a_cache_folder_that_cannot_be_written_to_is_one_sentence(
    data: Path, places: dict[str, str], tmp_path: Path
) -> None:
    settings = {**places, **TINY_TRAINING, "cache_dir": str(data / "series.csv"), "output_dir": str(tmp_path)}
    fails(OutputError, "cannot be written to", lambda: run(["train"], "training", **settings))
    with pytest.raises(OutputError):
        FeatureCache(data / "series.csv")


def test_train_and_evaluate_from_the_command_line(places: dict[str, str], trained: Path, tmp_path: Path) -> None:
    def command(verb: str, settings: dict[str, Any]) -> int:
        return main(
            [verb, str(ROOT), *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
        )

    assert command("train", {**places, **TINY_TRAINING, "output_dir": tmp_path / "out"}) == 0
    assert read_about(tmp_path / "out" / "best.pt") == read_about(trained / "best.pt")
    weights = {"ckpt_path": tmp_path / "out" / "best.pt", "table": tmp_path / "out" / "split.csv"}
    assert (
        command("evaluate", {**places, **TINY, **weights, "output_dir": tmp_path / "eval", "bootstrap_repeats": 5}) == 0
    )
    assert (tmp_path / "eval" / "report.html").is_file()


def test_configurations_agree_where_training_and_inference_must() -> None:
    train, infer = (workflow([name]).parser for name in ("train", "inference"))
    names = ("labels", "backbone_name", "backbone_weights", "windows_hu", "resize", "stride", "max_slices", "features")
    for key in (*names, "pooling", "hidden_features", "attention_features", "dropout", "backbone", "settings"):
        assert train[key] == infer[key], key
    for key in ("extractor", "embed", "network_def"):
        assert train[key] == infer[key], key
    assert (
        list(train["_meta_#network_data_format#outputs#pred#channel_def"].values()) == infer["labels"] == list(LABELS)
    )
    published = {"learning_rate": 1.0e-3, "weight_decay": 1.0e-2, "batch_size": 64, "seed": 42}
    assert {key: train[key] for key in published} == published
    assert (train["hidden_features"], train["dropout"], train["fractions"]) == (256, 0.2, [0.7, 0.15, 0.15])


def test_a_scan_that_was_trained_on_is_known_again_under_another_name(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    split = list(csv.DictReader((trained / "split.csv").open()))
    used = next(row for row in split if row["part"] == "train" and row["label_any"] == "1")
    shutil.copy(data / f"{used['series_uid'].removeprefix('series ')}.nii", tmp_path / "renamed.nii")
    header = "study_uid,series_uid,nifti_path," + ",".join(f"label_{name}" for name in LABELS)
    (tmp_path / "table.csv").write_text(f"{header}\na,b,renamed.nii,1,1,0,0,0,0\n")
    with pytest.raises(InputError, match=r"1 of the 1 series were trained on \(b\)"):
        scored(trained, tmp_path / "table.csv")


@pytest.fixture(scope="module")
def trained_by_patient(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head trained on a table that knows patients of two studies each."""
    folder = tmp_path_factory.mktemp("by_patient")
    table = write_series(folder, 24)
    rows = list(csv.DictReader(table.open()))
    write_table(table, [{**row, "patient_id": f"P{k // 4 * 2 + k % 2}"} for k, row in enumerate(rows)])
    changed = {**places, "table": str(table), "output_dir": str(folder / "run"), "max_epochs": 2}
    run(["train"], "training", **{**TINY_TRAINING, **changed})
    return folder / "run"


def other_scan(folder: Path, **names: str) -> Path:
    """Write a table of one new scan."""
    write_ct(folder / "other.nii", 1000, shape=(16, 20, 4))
    return write_table(folder / "other.csv", [row_of("other", **names)])


@pytest.mark.parametrize("column", ["patient_id", "study_uid"])
def test_other_scans_of_patients_and_studies_that_were_trained_on_are_refused(
    trained_by_patient: Path, tmp_path: Path, column: str
) -> None:
    split = {row["part"]: row for row in csv.DictReader((trained_by_patient / "split.csv").open())}
    used = other_scan(tmp_path, **{column: split["train"][column]})
    with pytest.raises(InputError, match=r"1 of the 1 series are of patients or studies that were trained on \(series"):
        scored(trained_by_patient, used)
    (told,) = scored(trained_by_patient, used, allow_seen=True).about["warnings"]
    assert told.startswith("1 of 1 series are of patients or studies that were trained on")
    chose = other_scan(tmp_path, **{column: split["validation"][column]})
    (told,) = scored(trained_by_patient, chose).about["warnings"]
    assert told.startswith("1 of 1 series are of patients or studies that chose the weights")
    assert scored(trained_by_patient, other_scan(tmp_path, **{column: "nobody"})).about["warnings"] == []


def test_the_file_of_a_head_holds_no_names_of_patients_and_studies(trained_by_patient: Path) -> None:
    known = read_about(trained_by_patient / "best.pt").seen
    assert all(len(mark) == 32 and int(mark, 16) for marks in known.values() for mark in marks)
    assert len(known["train_groups"]) > len(set(known["train"]))  # studies and patients
    assert b"study 1" not in (trained_by_patient / "best.pt").read_bytes()
    assert group_marks(["patient P"], ["a"]) != group_marks(["patient P"], ["b"])


def test_scans_that_are_hardly_in_hounsfield_units_are_told_in_the_report(trained: Path, tmp_path: Path) -> None:
    table = write_series(tmp_path, 2, name="grey ")
    image = nibabel.load(tmp_path / "1.nii")
    grey = np.clip(np.asarray(image.dataobj) + 100, 0, 255).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(grey, image.affine), tmp_path / "1.nii")
    write_ct(tmp_path / "0.nii", 1000, shape=(16, 20, 4))
    (told,) = scored(trained, table).about["warnings"]
    assert told == "1 of 2 series have values that are hardly Hounsfield units (series 1)"


def test_the_rule_of_the_thresholds_is_in_the_head_and_its_report(
    places: dict[str, str], trained: Path, tmp_path: Path
) -> None:
    about = read_about(trained / "best.pt")
    assert about.threshold_rule == YOUDEN
    found = evaluate({**places, "table": str(trained / "split.csv")}, trained, tmp_path / "out")
    assert YOUDEN in found["about"]["threshold_source"]
    assert threshold_source(replace(about, threshold_rule="")).endswith("(Youden's index)")


def test_a_head_that_knows_no_patients_is_used_and_the_report_says_so(trained: Path, tmp_path: Path) -> None:
    about = read_about(trained / "best.pt")
    older = replace(about, seen={part: about.seen[part] for part in ("train", "validation")})
    (told,) = Evaluated(other_scan(tmp_path), None, LABELS, "test", older).about["warnings"]
    assert "knows scans only" in told


def test_a_head_for_other_labels_is_no_start(places: dict[str, str], trained: Path) -> None:
    head = {**places, **TINY_TRAINING, "initial_weights": str(trained / "best.pt")}
    assert workflow(["train"], "training", **head).parser.get_parsed_content("network") is not None
    other = workflow(["train"], "training", **head, labels=[*LABELS[:5], "fracture"])
    fails(WeightsError, "was trained for the labels any, epidural", lambda: other.parser.get_parsed_content("network"))
