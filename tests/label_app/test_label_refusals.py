"""Wrong requests, odd files and sessions, asked of one real server with two bundles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from tiny_bundle import NAME, make_bundle, make_scan

pytest.importorskip("monailabel", reason="MONAI Label has an environment of its own: make test-label-app")

import requests
from label_server import Server, refusal, wait_for
from monailabel.client import MONAILabelClient


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans, and files that are called as scans are: broken, four-dimensional, without numbers."""
    root = tmp_path_factory.mktemp("refusals")
    scans = root / "scans"
    for seed, name in enumerate(("a", "b")):
        make_scan(scans / f"{name}.nii.gz", seed=seed)
    image = nibabel.load(scans / "a.nii.gz")
    values = image.get_fdata(dtype=np.float32)
    (scans / "broken.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes()[:2000])
    nibabel.save(nibabel.Nifti1Image(np.stack([values, values], -1), image.affine), scans / "four.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values * np.nan, image.affine), scans / "nan.nii.gz")
    for name, value in (("label", 1), ("empty", 0)):
        labels = np.zeros(values.shape, np.uint8)
        labels[5:12, 5:12, 4:9] = value
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), root / f"{name}.nii.gz")
    (root / "downloads").mkdir()
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOMED_BUNDLES", str(make_bundle(folder / "bundles").parent))
        patch.setenv("MONAI_LABEL_SESSION_PATH", str(folder / "sessions"))
        with Server(folder / "scans", folder / "server.log") as running:
            yield running


@pytest.fixture(scope="module")
def client(server: Server, folder: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(folder / "downloads"))


def answer(server: Server, method: str, path: str, **sent: Any) -> tuple[int, Any]:
    session = requests.Session()
    session.trust_env = False
    found = session.request(method, server.url + path, timeout=120, **sent)
    return found.status_code, found.json()


def check_refused(server: Server, folder: Path, status: int, words: str, *request: str, **sent: Any) -> None:
    """One sentence with these words, and no path of this machine."""
    found, said = answer(server, *request, **sent)
    assert (found, list(said)) == (status, ["detail"]), said
    assert isinstance(said["detail"], str)
    assert words in said["detail"], said
    assert "/" not in said["detail"].replace("image/info", ""), said
    assert str(folder) not in said["detail"]


@pytest.mark.parametrize("params", ["[1]", "3", '"x"', "null", "{", '{"x": NaN}', '{"x": -1e999}'])
def test_params_that_are_no_object_are_refused(server: Server, folder: Path, params: str) -> None:
    words = "is no number that can be kept" if '"x":' in params else "send an object such as {}"
    data = {"params": params}
    check_refused(server, folder, 400, words, "POST", f"/infer/{NAME}?image=a", data=data)
    for path, kind in (("/datastore/label?image=a", "label"), ("/datastore/image?image=new", "file")):
        files = {kind: ("x.nii.gz", (folder / "label.nii.gz").read_bytes())}
        check_refused(server, folder, 400, words, "PUT", path, data=data, files=files)
    info = {"info": params}
    check_refused(server, folder, 400, words, "PUT", "/datastore/image/info?image=a", data=info)
    for path in ("/activelearning/first", f"/batch/infer/{NAME}", "/scoring/dice", f"/train/{NAME}"):
        if params != "null":
            check_refused(server, folder, 400, words, "POST", path, data=params.encode())


def test_what_monai_label_fails_at_gets_a_sentence(server: Server, folder: Path) -> None:
    long = "x" * 300
    label = {"label": ("x.nii.gz", (folder / "label.nii.gz").read_bytes())}
    scan = (folder / "scans" / "a.nii.gz").read_bytes()
    cases: list[tuple[int, str, str, str, dict[str, Any]]] = [
        (400, "says not where it lies", "POST", f"/infer/{NAME}?image=a", {"files": {"label": ("x.bin", b"abc")}}),
        (400, "cannot be a scan's name", "PUT", f"/datastore/image?image={long}", {"files": {"file": ("x.nii", scan)}}),
        (400, "cannot be a scan's name", "PUT", "/datastore/image?image=n%00l", {"files": {"file": ("x.nii", scan)}}),
        (400, "its name must end in", "PUT", "/datastore/image?image=new", {"files": {"file": ("x.json", scan)}}),
        (400, "cannot be a tag", "PUT", f"/datastore/label?image=a&tag={long}", {"files": label}),
        (400, "cannot be a tag", "PUT", "/datastore/label?image=a&tag=n%00l", {"files": label}),
        (400, "send one of", "PUT", "/datastore/label?image=a", {"files": label}),
        (400, "'id', which the server", "PUT", "/datastore/image/info?image=a", {"data": {"info": '{"id": "x"}'}}),
        (400, "model is {}", "POST", "/activelearning/uncertainty", {"json": {"model": [{}]}}),
        (400, "files cannot be used", "PUT", "/session/", {}),
        (400, "cannot be unpacked", "PUT", "/session/?uncompress=true", {"files": {"files": ("x.zip", b"abc")}}),
        (404, "no such session", "POST", f"/infer/{NAME}?session_id=nothing", {"data": {"params": "{}"}}),
        (404, "no DICOMweb server", "GET", "/proxy/dicom/wado/studies", {}),
        (404, "no DICOMweb server", "POST", "/proxy/dicom/studies", {}),
    ]
    for status, words, method, path, sent in cases:
        check_refused(server, folder, status, words, method, path, **sent)
    assert {path.name for path in (folder / "scans" / "labels" / "final").iterdir()} == set()
    assert answer(server, "GET", "/info/")[1]["datastore"]["total"] == 5


def test_the_state_of_gpus_is_told_or_refused(server: Server) -> None:
    assert server.status("GET", "/logs/gpu") in (200, 404)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("four", "the scan is four-dimensional: it holds 2 frames; convert it to a three-dimensional volume first"),
        ("nan", "NaN or infinite voxels; replace them, for example with numpy.nan_to_num"),
        ("broken", "the scan"),
    ],
)
def test_scans_that_cannot_be_used_are_called_the_scan(server: Server, folder: Path, name: str, words: str) -> None:
    check_refused(server, folder, 400, words, "POST", f"/infer/{NAME}?image={name}", data={"params": "{}"})


def test_strategies_go_on_beside_broken_scans(client: MONAILabelClient) -> None:
    for strategy in ("uncertainty", "first", "random"):
        assert client.next_sample(strategy, {"model": NAME})["id"] in ("a", "b", "broken", "four", "nan")
    chosen = client.next_sample("uncertainty", {"model": NAME})
    assert (chosen["id"] in ("a", "b"), chosen["looked_at"], chosen["of"]) == (True, 2, 5)


def test_an_answer_is_kept_under_a_tag_or_refused_before_it_is_made(
    client: MONAILabelClient, server: Server, folder: Path
) -> None:
    for tag in ("../../evil", "x" * 300):
        wanted = {"save_label": True, "label_tag": tag}
        status, sentence = refusal(lambda wanted=wanted: client.infer(NAME, "a", wanted))
        assert (status, "cannot be a tag" in sentence) == (400, True), sentence
    client.infer(NAME, "a", {"save_label": True, "label_tag": "mine"})
    assert (folder / "scans" / "labels" / "mine" / "a.nii.gz").is_file()


def test_an_empty_label_map_is_called_empty(client: MONAILabelClient, folder: Path) -> None:
    status, sentence = refusal(lambda: client.save_label("a", str(folder / "empty.nii.gz"), params={"model": NAME}))
    assert (status, "the label map is empty; draw or keep at least one label" in sentence) == (400, True), sentence


def test_facts_without_numbers_leave_the_table_of_scans_readable(server: Server, client: MONAILabelClient) -> None:
    for facts in ('{"x": NaN}', '{"x": 1e999}', '{"x": "\\ud800"}'):
        assert answer(server, "PUT", "/datastore/image/info?image=b", data={"info": facts})[0] == 400
    assert set(client.datastore()["objects"]) == {"a", "b", "broken", "four", "nan"}
    assert client.next_sample("first", {})["id"] == "a"
    assert answer(server, "GET", "/datastore/image/info?image=b")[0] == 200


def test_a_scan_that_is_sent_is_one_of_the_folder_until_it_is_removed(
    client: MONAILabelClient, server: Server, folder: Path
) -> None:
    sent = make_scan(folder / "c.nii.gz", seed=7)
    assert client.upload_image(str(sent), "sent")["image"] == "sent"
    assert (folder / "scans" / "sent.nii.gz").read_bytes() == sent.read_bytes()
    file, _ = client.infer(NAME, "sent", {})
    assert nibabel.load(file).shape == nibabel.load(sent).shape
    client.save_label("sent", str(folder / "label.nii.gz"), params={"model": NAME})
    assert client.info()["datastore"] == {"total": 6, "completed": 1, "label_tags": {"mine": 1, "final": 1}}
    assert server.status("DELETE", "/datastore/image?id=sent") == 200
    wait_for(server, "the end of the scan", lambda: client.info()["datastore"]["total"] == 5, 30)
    status, sentence = refusal(lambda: client.infer(NAME, "sent", {}))
    assert (status, "no scan 'sent'" in sentence) == (404, True)


def test_a_session_segments_a_scan_that_is_not_in_the_folder(
    client: MONAILabelClient, server: Server, folder: Path
) -> None:
    session = client.create_session(str(make_scan(folder / "d.nii.gz", seed=8)))["session_id"]
    file, facts = client.infer(NAME, "", {}, session_id=session)
    assert nibabel.load(file).shape == nibabel.load(folder / "d.nii.gz").shape
    assert facts["label_names"] == {"shell": 1, "core": 2}
    assert list((folder / "sessions" / session).glob("d*.nii.gz"))
    client.remove_session(session)
    status, sentence = refusal(lambda: client.infer(NAME, "", {}, session_id=session))
    assert (status, "no such session" in sentence) == (404, True), sentence
    assert client.info()["datastore"]["total"] == 5
