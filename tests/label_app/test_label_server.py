"""The real server, driven over HTTP with MONAI Label's own client as 3D Slicer's module drives it.

The tests follow one another as a session of labelling does, and build on what those before them left.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from head_maps import LABEL_SOURCES, write_maps

pytest.importorskip("monailabel", reason="MONAI Label has an environment of its own: make test-label-app")

import psutil
from label_server import MODEL, Server, refusal, wait_for
from monailabel.client import MONAILabelClient

from dinomed import Predictor
from dinomed.cli.main import main as dinomed
from dinomed.data.synthetic_scans import SyntheticScans

SCANS = ("head0", "head1", "head2", "head3")
TINY = {"max_epochs": 12, "steps_per_epoch": 2, "slices_per_batch": 2, "learning_rate": 0.003}
TURN = np.array([[0.96, -0.28, 0, 5], [0.28, 0.96, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small drawn heads, every other one oblique and in another voxel order; their labels beside them."""
    root = tmp_path_factory.mktemp("label_app")
    for name in ("scans", "truth", "downloads"):
        (root / name).mkdir()
    drawn = SyntheticScans(write_maps(root / "maps", 2, 32), LABEL_SOURCES, 2, seed=3)
    to_lia = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt("LIA")
    )
    for index, name in enumerate(SCANS):
        item = drawn[index]
        arrays = {"scans": (item["image"].numpy()[0] * 1000).astype(np.int16), "truth": item["label"].numpy()[0]}
        for kind, array in arrays.items():
            affine = item["image"].affine.numpy()
            image = nibabel.Nifti1Image(array, affine)
            if index % 2:
                image = nibabel.Nifti1Image(array, TURN @ affine).as_reoriented(to_lia)
                image.set_sform(image.affine, code=2)
            nibabel.save(image, root / kind / f"{name}.nii.gz")
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server(folder / "scans", folder / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server, folder: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(folder / "downloads"))


def voxels(path: str | Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def truth(folder: Path, name: str) -> str:
    return str(folder / "truth" / f"{name}.nii.gz")


def check_grid(label: str | Path, scan: str | Path) -> None:
    one, other = nibabel.load(label), nibabel.load(scan)
    assert one.shape == other.shape
    np.testing.assert_array_equal(one.affine, other.affine)
    assert one.get_sform(coded=True)[1] == other.get_sform(coded=True)[1]
    assert one.get_qform(coded=True)[1] == other.get_qform(coded=True)[1]


def training_state(client: MONAILabelClient) -> dict[str, Any]:
    return dict(client.info()["train_stats"][MODEL])


def epochs_done(client: MONAILabelClient, number: int) -> Callable[[], bool]:
    def done() -> bool:
        status = client.train_status()
        assert status["status"] in ("SUBMITTED", "RUNNING"), status
        return training_state(client).get("epoch", 0) >= number

    return done


def test_info_offers_models_trainings_strategies_and_scores(client: MONAILabelClient) -> None:
    info = client.info()
    assert info["models"][MODEL]["type"] == "segmentation"
    assert info["models"][MODEL]["labels"]["brainstem"] == 6
    assert info["labels"][0] == "CSF and ventricles"
    assert "background" not in info["labels"]
    assert set(info["strategies"]) == {"random", "first", "uncertainty", "coverage"}
    assert set(info["trainers"]) == {MODEL}
    assert set(info["scoring"]) == {"dice"}
    assert info["datastore"]["total"] == len(SCANS)


def test_label_maps_equal_those_of_the_command_line(client: MONAILabelClient, folder: Path) -> None:
    for model in [name for name, facts in client.info()["models"].items() if facts["type"] == "segmentation"]:
        scans = [str(folder / "scans" / f"{name}.nii.gz") for name in SCANS[:2]]
        assert dinomed(["segment", *scans, "--bundle", model, "--output", str(folder / model)]) == 0
        for name, scan in zip(SCANS, scans, strict=False):
            file, facts = client.infer(model, name, {"result_extension": ".nrrd", "result_dtype": "uint8"})
            check_grid(file, scan)
            np.testing.assert_array_equal(voxels(file), voxels(folder / model / f"{name}_seg.nii.gz"))
            assert nibabel.load(file).get_data_dtype() == np.uint8
            assert facts["label_names"]["cerebral cortex"] == 2
            assert set(facts["volumes_ml"]) == set(facts["label_names"])


def test_first_and_random_choose_scans_without_labels(client: MONAILabelClient, folder: Path) -> None:
    first = client.next_sample("first", {})
    assert first["id"] == "head0"
    assert Path(first["path"]) == folder / "scans" / "head0.nii.gz"
    assert {client.next_sample("random", {})["id"] for _ in range(40)} == set(SCANS)


def test_uncertainty_chooses_the_scan_of_lowest_confidence(client: MONAILabelClient) -> None:
    chosen = client.next_sample("uncertainty", {"model": MODEL, "seconds": 600})
    assert chosen["looked_at"] == len(SCANS)
    sure = {}
    for name in SCANS:
        rows = [row for row in client.infer(MODEL, name, {})[1]["table"] if row["value"] and row["voxels"]]
        sure[name] = np.average([row["mean_confidence"] for row in rows], weights=[row["voxels"] for row in rows])
    assert chosen["id"] == min(sure, key=lambda name: sure[name])
    assert chosen["uncertainty"] == pytest.approx(1 - min(sure.values()), abs=1e-3)


def test_coverage_chooses_a_scan_and_says_how_far_it_lies(client: MONAILabelClient) -> None:
    chosen = client.next_sample("coverage", {"seconds": 600})
    assert chosen["id"] in SCANS
    assert chosen["looked_at"] == len(SCANS)
    assert chosen["distance"] >= 0


def test_wrong_requests_get_a_sentence_and_leave_the_server_well(
    client: MONAILabelClient, server: Server, folder: Path
) -> None:
    text = folder / "no_scan.nii.gz"
    text.write_text("this is no scan")
    moved = folder / "moved.nii.gz"
    label = nibabel.load(truth(folder, "head0"))
    nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj), np.diag([1, 1, 1.2, 1])), moved)
    part = folder / "part.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj)[:-1], label.affine), part)
    good = truth(folder, "head0")
    named = [{"name": "tumour", "idx": 1}]
    cases: list[tuple[int, str, Callable[[], Any]]] = [
        (404, "no model 'nothing'", lambda: client.infer("nothing", "head0", {})),
        (404, "no scan 'nobody'", lambda: client.infer(MODEL, "nobody", {})),
        (404, "no strategy 'best'", lambda: client.next_sample("best", {})),
        (400, "seconds is -1", lambda: client.next_sample("coverage", {"seconds": -1})),
        (400, "model is 'nothing'", lambda: client.next_sample("uncertainty", {"model": "nothing"})),
        (404, "no scan 'nobody'", lambda: client.save_label("nobody", good)),
        (400, "voxels and its scan", lambda: client.save_label("head0", str(part))),
        (400, "another affine", lambda: client.save_label("head0", str(moved))),
        (400, "what was sent is no image", lambda: client.upload_image(str(text), "new")),
        (400, "the label map is no image", lambda: client.save_label("head0", str(text))),
        (400, "'tumour'", lambda: client.save_label("head0", good, params={"label_info": named, "model": MODEL})),
        (400, "no labels of", lambda: client.train_start(MODEL, {})),
        (404, "no model to train 'nothing'", lambda: client.train_start("nothing", {})),
        (400, "max_epochs is 'many'", lambda: client.train_start(MODEL, {"max_epochs": "many"})),
        (400, "no setting 'epochs'", lambda: client.train_start(MODEL, {"epochs": 3})),
    ]
    for status, words, ask in cases:
        found, sentence = refusal(ask)
        assert (found, words in sentence) == (status, True), sentence
    form = "application/x-www-form-urlencoded"
    for status, words, path, body, kind in [
        (400, "no JSON", f"/infer/{MODEL}?image=head0", b"params={", form),
        (400, "Neither Image", f"/infer/{MODEL}", b"params={}", form),
        (404, "no scoring method", "/scoring/nothing", b"{}", "application/json"),
        (404, "no model 'nothing'", "/batch/infer/nothing", b"{}", "application/json"),
        (400, "run_sync", f"/train/{MODEL}?run_sync=true", b"{}", "application/json"),
    ]:
        found, sentence = server.ask("POST", path, body, kind)
        assert (found, words in sentence) == (status, True), sentence
    assert client.info()["datastore"]["completed"] == 0
    assert not list((folder / "scans" / "labels" / "final").iterdir())


def drawn_slices(folder: Path, name: str, values: tuple[int, ...], position: int) -> Path:
    """A label map with some labels on two axial slices of a scan; the third voxel axis is the patient's."""
    image = nibabel.load(truth(folder, name))
    labels = np.asarray(image.dataobj)
    kept = np.zeros_like(labels)
    axis = [code in "SI" for code in nibabel.aff2axcodes(image.affine)].index(True)
    for index in (position, position + 6):
        chosen = tuple(index if each == axis else slice(None) for each in range(3))
        kept[chosen] = np.where(np.isin(labels[chosen], values), labels[chosen], 0)
    path = folder / f"{name}_drawn_{len(values)}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(kept, image.affine, image.header), path)
    return path


@pytest.mark.parametrize("name", ["head0", "head1"])
def test_labels_drawn_on_some_slices_are_carried_through_the_scan(
    client: MONAILabelClient, folder: Path, name: str
) -> None:
    drawn, scan = drawn_slices(folder, name, (2, 3, 7), 30), folder / "scans" / f"{name}.nii.gz"
    assert client.info()["models"]["propagate"]["type"] == "scribbles"
    file, facts = client.infer("propagate", name, {"result_dtype": "uint8"}, label_in=str(drawn))
    check_grid(file, scan)
    wanted = Predictor.from_bundle(MODEL).propagate(scan, drawn).labels
    np.testing.assert_array_equal(voxels(file), wanted)
    assert set(np.unique(wanted)) == {0, 2, 3, 7}
    assert (wanted > 0).sum() > (voxels(drawn) > 0).sum()
    assert set(facts["label_names"].values()) == {2, 3, 7}


def test_one_segment_of_several_is_carried_as_slicer_asks_for_it(client: MONAILabelClient, folder: Path) -> None:
    drawn = drawn_slices(folder, "head0", (2, 3), 30)
    params = {
        "label_info": [{"name": "cerebral cortex", "id": 2}, {"name": "cerebral white matter", "id": 3}],
        "selected_label_name": "cerebral white matter",
        "roi": [],
    }
    file, facts = client.infer("propagate", "head0", params, label_in=str(drawn))
    assert set(np.unique(voxels(file))) == {0, 1}
    np.testing.assert_array_equal(voxels(file)[voxels(drawn) == 3], 1)
    assert facts["label_names"] == {"cerebral white matter": 1}
    assert [row["name"] for row in facts["table"]] == ["background", "cerebral white matter"]


def test_wrong_drawings_are_refused(client: MONAILabelClient, folder: Path) -> None:
    drawn = str(drawn_slices(folder, "head0", (2,), 30))
    other = {"label_info": [{"name": "brainstem", "id": 6}], "selected_label_name": "brainstem"}
    for status, words, ask in [
        (400, "needs a label map", lambda: client.infer("propagate", "head0", {})),
        (400, "another affine", lambda: client.infer("propagate", "head0", {}, label_in=str(folder / "moved.nii.gz"))),
        (400, "nothing of 'brainstem'", lambda: client.infer("propagate", "head0", other, label_in=drawn)),
        (400, "plane is 'up'", lambda: client.infer("propagate", "head0", {"plane": "up"}, label_in=drawn)),
    ]:
        found, sentence = refusal(ask)
        assert (found, words in sentence) == (status, True), sentence


def test_submitted_labels_lie_on_the_scans_grid(client: MONAILabelClient, folder: Path) -> None:
    client.save_label("head0", truth(folder, "head0"), params={"model": MODEL})
    kept = client.download_label("head0", "final")
    check_grid(kept, folder / "scans" / "head0.nii.gz")
    np.testing.assert_array_equal(voxels(kept), voxels(truth(folder, "head0")))
    facts = client.datastore()["objects"]["head0"]
    assert 0 <= facts["image"]["info"]["dice"] <= 1
    assert facts["labels"]["final"]["info"]["model"] == MODEL


def test_names_of_segments_decide_what_their_numbers_mean(client: MONAILabelClient, folder: Path) -> None:
    names = client.info()["models"][MODEL]["labels"]
    image = nibabel.load(truth(folder, "head1"))
    wanted = np.asarray(image.dataobj)
    turned = np.array([0, 7, 6, 5, 4, 3, 2, 1], np.uint8)  # another order of segments than the bundle's
    sent = folder / "turned.nii.gz"
    nibabel.save(nibabel.Nifti1Image(turned[wanted], image.affine, image.header), sent)
    info = [{"name": name, "idx": int(turned[value])} for name, value in names.items()]
    client.save_label("head1", str(sent), params={"label_info": info, "model": MODEL})
    np.testing.assert_array_equal(voxels(client.download_label("head1", "final")), wanted)


def test_a_training_is_seen_cancelled_killed_and_ends_with_new_weights(
    client: MONAILabelClient, server: Server, folder: Path
) -> None:
    weights = server.app / "model" / MODEL / "model.pt"
    before, facts = client.infer(MODEL, "head2", {})

    assert client.train_start(MODEL, TINY)["status"] == "SUBMITTED"
    status, sentence = refusal(lambda: client.train_start(MODEL, TINY))
    assert (status, "a training is running" in sentence) == (429, True)
    wait_for(server, "an epoch", epochs_done(client, 1))
    assert client.train_status()["details"]
    assert client.train_stop()["status"] == "STOPPED"
    assert not client.train_status(check_if_running=True)
    assert not weights.exists()

    client.train_start(MODEL, TINY)  # goes on where it was cancelled
    wait_for(server, "the next epochs", epochs_done(client, 3))
    assert training_state(client)["resumed_after_epoch"] >= 1
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "the training outlives its server"
    assert not weights.exists()

    server.start()
    np.testing.assert_array_equal(voxels(client.infer(MODEL, "head2", {})[0]), voxels(before))
    client.train_start(MODEL, TINY)  # goes on where it was killed
    ended = wait_for(
        server, "the end", lambda: (state := client.train_status())["status"] in ("DONE", "ERROR") and state
    )
    assert ended["status"] == "DONE", ended
    state = training_state(client)
    assert state["resumed_after_epoch"] >= 3
    assert state["epoch"] == state["total_epochs"] == TINY["max_epochs"]

    after, new_facts = client.infer(MODEL, "head2", {})
    scan = folder / "scans" / "head2.nii.gz"
    check_grid(after, scan)
    assert new_facts["weights_sha256"] != facts["weights_sha256"]
    assert not np.array_equal(voxels(after), voxels(before))
    np.testing.assert_array_equal(voxels(after), Predictor.from_bundle(MODEL, weights=weights).segment(scan).labels)


def test_scoring_rates_the_new_weights(client: MONAILabelClient, server: Server) -> None:
    assert server.status("POST", "/scoring/dice", b"{}") == 200
    wait_for(server, "the score", lambda: json.loads(server.ask("GET", "/scoring/")[1])["status"] == "DONE")

    def rated() -> bool:
        facts = client.datastore()["objects"]["head0"]["image"]["info"]
        return bool(facts["dice_weights"] == client.infer(MODEL, "head0", {})[1]["weights_sha256"])

    wait_for(server, "the score in the table of scans", rated, 20)


def test_without_the_file_of_new_weights_the_shipped_ones_are_used(client: MONAILabelClient, server: Server) -> None:
    tuned = client.infer(MODEL, "head3", {})[1]["weights_sha256"]
    (server.app / "model" / MODEL / "model.pt").unlink()
    assert client.infer(MODEL, "head3", {})[1]["weights_sha256"] != tuned


def test_scans_with_labels_are_chosen_no_more(client: MONAILabelClient, folder: Path) -> None:
    for strategy in ("first", "random", "uncertainty", "coverage"):
        assert client.next_sample(strategy, {})["id"] in ("head2", "head3")
    for name in ("head2", "head3"):
        client.save_label(name, truth(folder, name))
    for strategy in ("first", "random", "uncertainty", "coverage"):
        assert client.next_sample(strategy, {}) == {"message": "all 4 scans have a submitted label; add scans to go on"}


def test_the_server_has_written_labels_alone_into_the_scans_folder(folder: Path, server: Server) -> None:
    kept = {path.name for path in (folder / "scans").iterdir()}
    assert kept == {f"{name}.nii.gz" for name in SCANS} | {"labels", "datastore_v2.json", ".lock"}
    assert (server.app / "main.py").is_file()


def test_ctrl_c_ends_the_server_and_its_training(client: MONAILabelClient, server: Server) -> None:
    client.train_start(MODEL, TINY)
    wait_for(server, "the training", lambda: client.train_status(check_if_running=True))
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) is not None
    assert children
    assert not psutil.wait_procs(children, timeout=30)[1]
