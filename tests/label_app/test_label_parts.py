"""Parts of the app that need no server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from tiny_bundle import LABELS, NAME, make_bundle, make_scan, make_state

from dinomed.data.series_checks import content_mark
from dinomed.errors import BundleError, InputError
from dinomed.label_app.__main__ import main
from dinomed.label_app.embeddings import Embeddings, least_like
from dinomed.label_app.finetuning import split_preprocessing, start, window_side
from dinomed.label_app.models import find_models
from dinomed.label_app.predictions import Predicted, Predictions
from dinomed.label_app.workspace import PACKAGE, make_workspace, workspace_beside, workspace_of
from dinomed.transforms.intensity import FixedGammad, NormaliseIntensityd


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32) / np.linalg.norm(numbers)


def test_the_scan_least_like_those_labelled_is_chosen() -> None:
    candidates = {"like": vector(1, 0.1), "between": vector(1, 1), "other": vector(0.1, 1)}
    assert least_like(candidates, [vector(1, 0)])[0] == "other"
    assert least_like(candidates, [vector(1, 0), vector(0, 1)])[0] == "between"


def test_without_labels_the_most_typical_scan_is_chosen() -> None:
    candidates = {"left": vector(1, 0.3), "middle": vector(1, 1), "right": vector(0.3, 1)}
    assert least_like(candidates, [])[0] == "middle"


def test_uncertainty_is_of_what_was_labelled_alone() -> None:
    rows = [(0, 1000, 0.99), (1, 30, 0.9), (2, 10, 0.5), (3, 0, None)]
    table = [dict(zip(("value", "voxels", "mean_confidence"), row, strict=True)) for row in rows]
    assert Predicted(Path("labels"), {"table": table}).uncertainty == pytest.approx(1 - (30 * 0.9 + 10 * 0.5) / 40)
    assert Predicted(Path("labels"), {"table": table[:1]}).uncertainty == 1


def test_windows_are_as_long_as_the_longest_side_in_plane() -> None:
    scans = [{"image": torch.zeros(1, 40, 50, 300)}, {"image": torch.zeros(1, 60, 33, 20)}]
    assert window_side(scans, ["axial"], 224) == 64
    assert window_side(scans, ["axial", "coronal"], 224) == 224
    assert window_side(scans, ["axial"], 50) == 48


def test_the_last_normalisation_is_parted_from_what_goes_before() -> None:
    gamma, last = FixedGammad("image", 0.75), NormaliseIntensityd("image", 0.4, 0.2)
    before, after = split_preprocessing(Compose([gamma, last]))
    assert (list(before.transforms), after) == ([gamma], last)
    before, after = split_preprocessing(Compose([last, gamma]))
    assert (list(before.transforms), after) == ([last, gamma], None)


def test_a_network_without_a_backbone_is_not_fine_tuned(tmp_path: Path) -> None:
    torch.save(make_state(), tmp_path / "model.pt")
    with pytest.raises(BundleError, match="no DINOv3 backbone"):
        start(torch.nn.Conv2d(3, 3, 3, padding=1), tmp_path / "model.pt", "cpu")


def test_bundles_that_segment_scans_and_have_weights_are_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_bundle(tmp_path / "bundles")
    shutil.copytree(root, root.with_name("without_weights"))
    (root.with_name("without_weights") / "models" / "model.pt").unlink()
    monkeypatch.setenv("DINOMED_BUNDLES", str(tmp_path / "bundles"))
    found = find_models(tmp_path / "workspace")
    assert NAME in found
    assert "without_weights" not in found
    assert not {"ade20k_segmentation", "imagenette_classification"} & set(found)
    assert found[NAME].labels == {name: value for value, name in enumerate(LABELS) if value}


def test_predictions_are_kept_by_weights_and_new_weights_are_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOMED_BUNDLES", str(make_bundle(tmp_path / "bundles").parent))
    model = find_models(tmp_path / "model", "cpu")[NAME]
    predictions = Predictions(tmp_path / "predictions")
    scan = make_scan(tmp_path / "scan.nii.gz")
    assert predictions.known(model, scan) is None
    first = predictions.make(model, scan)
    assert predictions.known(model, scan) == first
    shipped = model.weights_sha256()
    model.folder.mkdir(parents=True)
    torch.save(make_state(seed=1), model.fine_tuned)
    assert predictions.known(model, scan) is None
    second = predictions.make(model, scan)
    assert second.facts["weights_sha256"] != shipped == first.facts["weights_sha256"]
    predictions.forget_others(model)
    assert not first.labels.exists()
    assert predictions.known(model, scan) == second
    json.dumps(second.facts, allow_nan=False)
    model.fine_tuned.unlink()
    assert model.weights_sha256() == shipped


def test_what_is_kept_of_a_scan_is_found_under_its_mark_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOMED_BUNDLES", str(make_bundle(tmp_path / "bundles").parent))
    model = find_models(tmp_path / "model", "cpu")[NAME]
    scan = make_scan(tmp_path / "scan.nii.gz")
    kept = Predictions(tmp_path / "predictions").make(model, scan)
    assert kept.labels.name == f"{content_mark(scan)}.nii.gz"
    renamed = shutil.copy(scan, tmp_path / "renamed.nii.gz")
    assert Predictions(tmp_path / "predictions").known(model, renamed) == kept
    (tmp_path / "lost.mhd").write_text("ObjectType = Image\nNDims = 3\nElementDataFile = gone.raw\n")
    for store in (Predictions(tmp_path / "predictions"), Embeddings(tmp_path / "embeddings")):
        for name, words in (("none.nii.gz", "cannot be read"), ("lost.mhd", "voxels in files that are not found")):
            with pytest.raises(InputError, match=f"{name} .*{words}"):
                store.known(model, tmp_path / name)


def test_the_workspace_lies_beside_the_scans_unless_named(tmp_path: Path) -> None:
    studies = tmp_path / "heads"
    assert workspace_beside(studies) == tmp_path / "heads_label_app"
    assert workspace_of(PACKAGE, studies) == tmp_path / "heads_label_app"
    made = make_workspace(tmp_path / "app")
    assert workspace_of(made, studies) == made
    assert "MyApp" in (made / "main.py").read_text()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--studies", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "nowhere_label_app").exists()
