"""Strategies, scores and what is kept of scans, with small bundles and without a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bundle import NAME, make_bundle, make_scan, make_state

pytest.importorskip("monailabel", reason="MONAI Label has an environment of its own: make test-label-app")

from monailabel.interfaces.exception import ImageNotFoundException

from dinomed.errors import InputError
from dinomed.label_app.models import LabelModel, find_models
from dinomed.label_app.predictions import Predictions
from dinomed.label_app.scoring import Dice
from dinomed.label_app.strategies import Coverage, NoScanLeftError
from dinomed.label_app.studies import Studies
from dinomed.label_app.training import FineTune
from dinomed.transforms.volumes import read_grid, write_labels


def vector(degrees: float) -> np.ndarray:
    return np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], np.float32)


class Folder:
    """Names of scans with and without labels; those that are gone are listed still."""

    def __init__(self, labelled: list[str], names: list[str], gone: tuple[str, ...] = ()) -> None:
        self.labelled, self.names, self.gone = labelled, names, gone

    def get_labeled_images(self) -> list[str]:
        return self.labelled

    def get_unlabeled_images(self) -> list[str]:
        return self.names

    def scan(self, name: str) -> str:
        if name in self.gone:
            raise ImageNotFoundException(f"there is no scan {name!r}")
        return name


class Vectors:
    """Embeddings by scan: some known before, the others made when they are looked at."""

    def __init__(self, known: Mapping[str, Any] | None = None, made: Mapping[str, Any] | None = None) -> None:
        self.before, self.others = known or {}, made or {}

    def known(self, _: Any, scan: str) -> Any:
        return self.before.get(scan)

    def make(self, _: Any, scan: str) -> Any:
        if scan not in self.others:
            raise InputError(f"{scan} cannot be read")
        return self.others[scan]


def coverage(vectors: Vectors, folder: Folder, **request: Any) -> dict[str, Any]:
    strategy = Coverage({"tiny": SimpleNamespace(name="tiny")}, vectors)
    return strategy(request, folder)


def test_coverage_heeds_what_is_labelled() -> None:
    vectors = Vectors({"done": vector(30), "near": vector(35), "middle": vector(50), "far": vector(90)})
    assert coverage(vectors, Folder([], ["done", "far", "middle", "near"]))["id"] == "middle"
    chosen = coverage(vectors, Folder(["done"], ["far", "middle", "near"]))
    assert (chosen["id"], chosen["distance"]) == ("far", pytest.approx(0.5, abs=1e-4))


def test_a_scan_without_a_label_is_looked_at_however_short_the_time_is() -> None:
    everything = {name: vector(number) for number, name in enumerate("abcdef")}
    chosen = coverage(Vectors(made=everything), Folder(list("abc"), list("def")), seconds=1e-9)
    assert (chosen["id"], chosen["looked_at"], chosen["of"]) == ("d", 1, 3)


def test_scans_that_cannot_be_read_or_are_removed_meanwhile_are_left_out() -> None:
    folder = Folder(["b"], ["a", "c", "d", "e"], gone=("b", "c"))
    chosen = coverage(Vectors(made={"d": vector(1), "e": vector(2)}), folder)
    assert (chosen["id"], chosen["looked_at"]) == ("d", 2)
    with pytest.raises(InputError, match="a cannot be read"):
        coverage(Vectors(), Folder([], ["a"]))
    with pytest.raises(NoScanLeftError, match="were removed"):
        coverage(Vectors(), Folder([], ["c"], gone=("c",)))


@pytest.mark.parametrize("model", [[{}], {"tiny": 1}, 3, "nothing"])
def test_a_model_that_is_none_is_refused_by_strategies(model: Any) -> None:
    with pytest.raises(InputError, match="choose from tiny"):
        coverage(Vectors(), Folder([], ["a"]), model=model)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelModel:
    monkeypatch.setenv("DINOMED_BUNDLES", str(make_bundle(tmp_path / "bundles").parent))
    return find_models(tmp_path / "model", "cpu")[NAME]


def test_a_prediction_is_kept_under_the_weights_that_made_it(
    tmp_path: Path, model: LabelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, load = model.weights_sha256(), model.predictor

    def published_meanwhile() -> Any:
        model.folder.mkdir(parents=True, exist_ok=True)
        torch.save(make_state(seed=1), model.fine_tuned)
        return load()

    monkeypatch.setattr(model, "predictor", published_meanwhile)
    predictions, scan = Predictions(tmp_path / "predictions"), make_scan(tmp_path / "scan.nii.gz")
    made = predictions.make(model, scan)
    assert made.facts["weights_sha256"] == model.weights_sha256() != shipped
    assert predictions.known(model, scan) == made
    model.fine_tuned.unlink()
    assert predictions.known(model, scan) is None


def test_a_label_that_does_not_fit_leaves_the_scores_of_the_others(
    tmp_path: Path, model: LabelModel, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "scans"
    for name in ("good", "moved", "strange", "unreadable"):
        make_scan(folder / f"{name}.nii.gz")
    make_scan(tmp_path / "other.nii.gz", shape=(20, 18, 12))
    grid, other = (read_grid(path) for path in (folder / "good.nii.gz", tmp_path / "other.nii.gz"))
    (folder / "labels" / "final").mkdir(parents=True)
    for name, value, where in (("good", 1, grid), ("moved", 1, other), ("strange", 140, grid)):
        labels = np.zeros(where.shape, np.uint8)
        labels[4:9, 4:9, 4:9] = value
        write_labels(labels, where, folder / "labels" / "final" / f"{name}.nii.gz")
    (folder / "labels" / "final" / "unreadable.nii.gz").write_text("no label map")
    studies = Studies(str(folder), {NAME: model}, auto_reload=False)
    assert len(studies.get_labeled_images()) == 4
    dice = Dice({NAME: model}, Predictions(tmp_path / "predictions"))
    scored = dice({}, studies)
    assert set(scored) == {"good"}
    assert studies.get_image_info("good")["dice_weights"] == model.weights_sha256()
    said = caplog.text
    for words in ("moved is not scored: the label map has 20 x 18 x 12 voxels", "has no label 140"):
        assert words in said


def test_labels_of_another_bundle_or_grid_are_not_learnt_from(tmp_path: Path, model: LabelModel) -> None:
    folder = tmp_path / "scans"
    for name in ("strange", "replaced", "good"):
        make_scan(folder / f"{name}.nii.gz")
    grid = read_grid(folder / "good.nii.gz")
    labels = np.zeros(grid.shape, np.uint8)
    labels[4:9, 4:9, 4:9] = 1
    (folder / "labels" / "final").mkdir(parents=True)
    write_labels(labels * 140, grid, folder / "labels" / "final" / "strange.nii.gz")
    studies = Studies(str(folder), {NAME: model, "other": model}, auto_reload=False)
    training = FineTune(model, Predictions(tmp_path / "predictions"))
    with pytest.raises(InputError, match=f"no labels of {NAME} have been submitted"):
        training.check({}, studies)
    write_labels(labels, grid, tmp_path / "label.nii.gz")
    for name in ("replaced", "good"):
        studies.save_label(name, str(tmp_path / "label.nii.gz"), "final", {"model": NAME})
    write_labels(labels * 3, grid, folder / "labels" / "final" / "replaced.nii.gz")
    training.check({}, studies)
    assert [Path(pair["image"]).name for pair in training._pairs(studies)] == ["good.nii.gz"]


def test_a_model_that_finds_nothing_scores_nought(tmp_path: Path, model: LabelModel) -> None:
    scan = make_scan(tmp_path / "scans" / "a.nii.gz")
    (tmp_path / "scans" / "labels" / "final").mkdir(parents=True)
    torch.save({"weight": torch.zeros(3, 3, 3, 3), "bias": torch.tensor([9.0, 0, 0])}, model.shipped)
    labels = np.zeros(read_grid(scan).shape, np.uint8)
    labels[4:9, 4:9, 4:9] = 2
    write_labels(labels, read_grid(scan), tmp_path / "scans" / "labels" / "final" / "a.nii.gz")
    studies = Studies(str(tmp_path / "scans"), {NAME: model}, auto_reload=False)
    scored = Dice({NAME: model}, Predictions(tmp_path / "predictions"))({}, studies)
    assert scored["a"]["dice_by_label"] == {"core": 0.0}
