"""What the real server must not let happen: shipped weights replaced, any file read, two trainings, orphans.

The tests follow one another; those that end the server come last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label has an environment of its own: make test-label-app")

import psutil
from label_server import MODEL, Server, refusal, wait_for
from monailabel.client import MONAILabelClient

from dinomed.bundle.locate import find_bundle
from dinomed.label_app.workspace import make_workspace

SCANS = ("head0", "head1")
LONG = {"max_epochs": 1000, "steps_per_epoch": 2, "slices_per_batch": 1}
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of a ball, one file that is no scan, a scan elsewhere, and a copy of the bundle."""
    root = tmp_path_factory.mktemp("label_safety")
    for name in ("scans", "truth", "downloads", "elsewhere"):
        (root / name).mkdir()
    place = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(-12, 12)] * 3, indexing="ij")), axis=0)
    affine = np.diag([4, 4, 4, 1])
    for index, name in enumerate(SCANS):
        scan = (place < 10) * 500 + np.random.default_rng(index).normal(100, 20, place.shape)
        nibabel.save(nibabel.Nifti1Image(scan.astype(np.int16), affine), root / "scans" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image((place < 8).astype(np.uint8) * 2, affine), root / "truth" / f"{name}.nii.gz")
    shutil.copy(root / "scans" / "head0.nii.gz", root / "elsewhere" / "secret.nii.gz")
    (root / "scans" / "broken.nii.gz").write_text("this is no scan")
    shutil.copytree(find_bundle(MODEL), root / "bundles" / MODEL)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOMED_BUNDLES", str(folder / "bundles"))
        patch.setenv("MONAI_LABEL_SESSION_PATH", str(folder / "sessions"))
        with Server(folder / "scans", folder / "server.log") as running:
            yield running


@pytest.fixture(scope="module")
def client(server: Server, folder: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(folder / "downloads"))


def checksums(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def multipart(**files: bytes) -> tuple[bytes, str]:
    parts = "".join(
        f'--end\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.pt"\r\n\r\n{content.decode()}\r\n'
        for name, content in files.items()
    )
    return f"{parts}--end--\r\n".encode(), "multipart/form-data; boundary=end"


def children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def test_weights_are_neither_replaced_nor_removed_over_http(server: Server, folder: Path) -> None:
    before = checksums(folder / "bundles")
    for method, body, kind in [("PUT", *multipart(file=b"no weights")), ("DELETE", None, FORM)]:
        status, sentence = server.ask(method, f"/model/{MODEL}", body, kind)
        assert (status, "not replaced or removed" in sentence) == (405, True), sentence
    assert checksums(folder / "bundles") == before
    assert server.status("GET", f"/model/info/{MODEL}") == 200


def test_the_app_is_not_made_anew_while_it_serves(server: Server) -> None:
    status, sentence = server.ask("POST", "/reload", b"")
    assert (status, "start the server again" in sentence) == (405, True)


def test_scans_are_named_never_reached_by_a_path(client: MONAILabelClient, server: Server, folder: Path) -> None:
    secret, drawn = str(folder / "elsewhere" / "secret.nii.gz"), str(folder / "truth" / "head0.nii.gz")
    status, sentence = refusal(lambda: client.infer(MODEL, secret, {}))
    assert (status, "no scan" in sentence) == (404, True), sentence
    for session in ("nothing", "../elsewhere"):
        status, sentence = server.ask("POST", f"/infer/{MODEL}?session_id={session}", b"params={}", FORM)
        assert (status, "no such session" in sentence) == (404, True), sentence
    status, sentence = refusal(lambda: client.infer("propagate", "head0", {"label": drawn}))
    assert (status, "needs a label map" in sentence) == (400, True), sentence
    status, sentence = server.ask("POST", f"/infer/{MODEL}", f'params={{"image": "{secret}"}}'.encode(), FORM)
    assert status == 400, sentence
    file, facts = client.infer(MODEL, "head1", {"image": secret, "label": secret, "model": "nothing"})
    assert Path(file).name.startswith("head1")
    assert facts["model"] == MODEL
    assert server.status("POST", f"/infer/wsi_v2/{MODEL}?image={secret}", b"", FORM) == 404


def test_a_session_that_tells_of_another_file_is_unknown(
    client: MONAILabelClient, server: Server, folder: Path
) -> None:
    (folder / "sessions" / "forged").mkdir(parents=True)
    told = {"name": "forged", "image": str(folder / "elsewhere" / "secret.nii.gz"), "expiry": 9}
    (folder / "sessions" / "forged" / "meta.info").write_text(json.dumps(told))
    assert refusal(lambda: client.infer(MODEL, "", {}, session_id="forged"))[0] == 404
    scan = str(folder / "scans" / "head0.nii.gz")
    session = client.create_session(scan)["session_id"]
    assert client.infer(MODEL, "", {}, session_id=session)[1]["model"] == MODEL
    assert client.infer(MODEL, "", {}, file=scan)[1]["model"] == MODEL


def test_dicom_is_refused_before_a_label_map_is_made(server: Server) -> None:
    status, sentence = server.ask("POST", f"/infer/{MODEL}?image=head0&output=dicom_seg", b"params={}", FORM)
    assert (status, "not sent as DICOM" in sentence) == (400, True)


def test_a_batch_segments_all_scans_but_a_broken_one(client: MONAILabelClient, server: Server, folder: Path) -> None:
    assert server.status("POST", "/batch/infer/propagate", b"{}") == 404
    assert server.status("POST", f"/batch/infer/{MODEL}", b"{}") == 200
    status, sentence = server.ask("POST", f"/batch/infer/{MODEL}", b"{}")
    assert (status, "a batch is running" in sentence) == (429, True)

    def ended() -> Any:
        state = json.loads(server.ask("GET", "/batch/infer")[1])
        return state["status"] in ("DONE", "ERROR") and state

    state = wait_for(server, "the end of the batch", ended)
    assert state["status"] == "DONE", state
    said = "\n".join(state["details"])
    assert "broken is left out" in said
    assert "2 of 3" in said or "3 of 3" in said
    assert {path.name for path in (folder / "scans" / "labels" / "original").iterdir()} == {
        f"{name}.nii.gz" for name in SCANS
    }


def test_of_several_trainings_at_once_one_begins_and_none_after_its_stop(
    client: MONAILabelClient, server: Server, folder: Path
) -> None:
    for name in SCANS:
        client.save_label(name, str(folder / "truth" / f"{name}.nii.gz"), params={"model": MODEL})
    status, sentence = refusal(lambda: client.train_start(MODEL, {**LONG, "slices_per_batch": 100_000}))
    assert (status, "from 1 to 64" in sentence) == (400, True), sentence
    body = json.dumps(LONG).encode()
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda _: server.status("POST", f"/train/{MODEL}", body), range(8)))
    assert sorted(statuses) == [200] + [429] * 7
    assert server.status("DELETE", "/train/") == 200
    states = [task["status"] for task in json.loads(server.ask("GET", "/train/?all=true")[1])]
    assert states == ["STOPPED"]
    time.sleep(2)
    assert not children(server)


def test_a_training_that_is_stopped_at_once_does_not_run(client: MONAILabelClient, server: Server) -> None:
    for _ in range(3):
        client.train_start(MODEL, LONG)
        assert server.status("DELETE", "/train/") == 200
    assert client.train_status()["status"] == "STOPPED"
    assert not children(server)


def test_a_training_ends_with_a_server_that_is_killed_as_it_begins(client: MONAILabelClient, server: Server) -> None:
    client.train_start(MODEL, LONG)
    begun = wait_for(server, "the training", lambda: children(server))
    time.sleep(1)
    server.kill()
    assert not psutil.wait_procs(begun, timeout=60)[1], "the training outlives its server"
    assert not (server.app / "model" / MODEL / "model.pt").exists()


def test_ctrl_c_ends_a_server_that_monai_label_started(client: MONAILabelClient, server: Server) -> None:
    server.started_with = ["-m", "monailabel.main", "start_server", "--app", make_workspace(server.app)]
    server.start()
    client.train_start(MODEL, LONG)
    begun = wait_for(server, "the training", lambda: children(server))
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) is not None
    assert not psutil.wait_procs(begun, timeout=30)[1]
