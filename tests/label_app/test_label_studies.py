"""The folder of scans and labels, without a server."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from tiny_bundle import make_scan

pytest.importorskip("monailabel", reason="MONAI Label has an environment of its own: make test-label-app")

from dinomed.errors import InputError
from dinomed.label_app.studies import Studies

TINY = SimpleNamespace(name="tiny", labels={"shell": 1, "core": 2})
OTHER = SimpleNamespace(name="other", labels={"liver": 7})


def open_studies(folder: Path, *models: Any, auto_reload: bool = False) -> Studies:
    return Studies(str(folder), {model.name: model for model in models or (TINY,)}, auto_reload)


def make_labels(scan: Path, path: Path, value: int = 1) -> str:
    image = nibabel.load(scan)
    labels = np.zeros(image.shape[:3], np.uint8)
    labels[5:9, 6:9, 4:7] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_scan(tmp_path / "scans" / "a.nii.gz")
    return tmp_path / "scans"


@pytest.fixture
def label(folder: Path, tmp_path: Path) -> str:
    return make_labels(folder / "a.nii.gz", tmp_path / "label.nii.gz")


def test_hidden_files_and_folders_are_no_scans_and_capital_endings_are(folder: Path) -> None:
    for name in (".hidden.nii.gz", "._a.nii.gz", "HEAD.NII.GZ"):
        shutil.copy(folder / "a.nii.gz", folder / name)
    (folder / "x.nii.gz").mkdir()
    studies = open_studies(folder)
    assert set(studies.list_images()) == {"a", "HEAD"}
    assert Path(studies.scan("HEAD")) == folder / "HEAD.NII.GZ"


def test_of_two_scans_of_one_name_the_second_is_left_out_with_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(folder / "a.nii.gz", folder / "a.mgz")
    with caplog.at_level(logging.WARNING, "dinomed"):
        studies = open_studies(folder)
        studies.refresh()
    assert Path(studies.scan("a")) == folder / "a.mgz"
    assert [record.getMessage() for record in caplog.records] == [
        "a.nii.gz is left out: a.mgz has the same name; give it another one"
    ]
    shutil.copy(folder / "a.nii.gz", folder / "b.nii.gz")
    studies.refresh()
    shutil.copy(folder / "a.nii.gz", folder / "b.mgz")
    studies.refresh()
    assert Path(studies.scan("b")) == folder / "b.nii.gz", "the known one stays"


def test_labels_do_not_pass_to_another_scan_of_the_same_name(folder: Path, label: str) -> None:
    studies = open_studies(folder)
    studies.save_label("a", label, "final", {})
    make_scan(folder / "other.nii", seed=1)
    (folder / "other.nii").rename(folder / "a.nii")
    (folder / "a.nii.gz").unlink()
    for opened in (studies, open_studies(folder)):
        opened.refresh()
        assert Path(opened.scan("a")) == folder / "a.nii"
        assert opened.get_labeled_images() == []
    assert (folder / "labels" / "final" / "a.nii.gz.nii.gz").is_file()


FACTS: list[tuple[Any, str]] = [
    ({"x": float("nan")}, "cannot be kept as JSON"),
    ({"x": [{"y": float("inf")}]}, "cannot be kept as JSON"),
    ({"x": "\ud800"}, "cannot be kept as JSON"),
    ([1], "must be an object"),
    ({"strategy": 3}, "must hold an object as 'strategy'"),
]


@pytest.mark.parametrize(("facts", "words"), [*FACTS, ({"id": "evil"}, "'id', which the server notes itself")])
def test_facts_of_a_scan_that_no_answer_could_hold_are_refused(folder: Path, facts: Any, words: str) -> None:
    studies = open_studies(folder)
    with pytest.raises(InputError, match=words):
        studies.update_image_info("a", facts)
    with pytest.raises(InputError, match=words):
        studies.add_image("new", str(folder / "a.nii.gz"), facts)
    assert set(studies.get_image_info("a")) == {"ts", "name", "path"}
    assert studies.list_images() == ["a"]


@pytest.mark.parametrize(("facts", "words"), FACTS)
def test_facts_of_a_label_that_no_answer_could_hold_are_refused(
    folder: Path, label: str, facts: Any, words: str
) -> None:
    studies = open_studies(folder)
    with pytest.raises(InputError, match=words):
        studies.save_label("a", label, "final", facts)
    assert studies.get_labeled_images() == []
    studies.save_label("a", label, "final", {"by": "me"})
    with pytest.raises(InputError, match=words):
        studies.update_label_info("a", "final", facts)
    assert studies.get_label_info("a", "final")["by"] == "me"


def test_a_table_that_holds_no_numbers_is_read_and_mended(folder: Path) -> None:
    studies = open_studies(folder)
    table = folder / "datastore_v2.json"
    table.write_text(table.read_text().replace('"name": "a.nii.gz"', '"name": "a.nii.gz", "x": NaN'))
    for opened in (studies, open_studies(folder)):
        opened.update_image_info("a", {"y": 1})
        facts = opened.get_image_info("a")
        assert (facts["x"], facts["y"]) == (None, 1)
        assert "NaN" not in table.read_text()
        json.dumps(opened.json(), allow_nan=False)


@pytest.mark.parametrize("ending", [".dcm", ".png", ".json", ""])
def test_uploads_with_another_ending_are_refused(folder: Path, tmp_path: Path, ending: str) -> None:
    sent = shutil.copy(folder / "a.nii.gz", tmp_path / f"sent{ending}")
    with pytest.raises(InputError, match=r"its name must end in \.nii\.gz, \.nii"):
        open_studies(folder).add_image("new", str(sent), {})
    assert not list(folder.glob("new*"))


@pytest.mark.parametrize("name", ["x" * 300, "n\0l", "..", ".hidden", "a/b", "ü" * 150])
def test_names_that_no_file_could_have_are_refused(folder: Path, label: str, name: str) -> None:
    studies = open_studies(folder)
    with pytest.raises(InputError, match="cannot be a scan's name"):
        studies.add_image(name, str(folder / "a.nii.gz"), {})
    with pytest.raises(InputError, match="cannot be a tag"):
        studies.save_label("a", label, name, {})
    studies.save_label("a", label, "original", {})


def test_a_label_of_one_of_several_bundles_must_say_which(folder: Path, label: str) -> None:
    studies = open_studies(folder, TINY, OTHER)
    for facts in ({}, {"model": "propagate"}):
        with pytest.raises(InputError, match="send one of tiny, other as 'model'"):
            studies.save_label("a", label, "final", facts)
    assert not list((folder / "labels" / "final").iterdir())
    studies.save_label("a", label, "mine", {})
    studies.save_label("a", label, "final", {"model": "tiny"})
    assert (studies.labelled_for(TINY), studies.labelled_for(OTHER)) == (["a"], [])


def test_labels_laid_there_by_hand_are_of_the_bundle_whose_numbers_they_hold(folder: Path) -> None:
    for name, value in (("b", 7), ("c", 140)):
        scan = make_scan(folder / f"{name}.nii.gz")
        make_labels(scan, folder / "labels" / "final" / f"{name}.nii.gz", value)
    scan = make_scan(folder / "d.nii.gz", shape=(20, 18, 12))
    make_labels(folder / "a.nii.gz", folder / "labels" / "final" / "d.nii.gz")
    studies = open_studies(folder, TINY, OTHER)
    assert studies.get_labeled_images()
    assert (studies.labelled_for(TINY), studies.labelled_for(OTHER)) == ([], ["b"])
    with pytest.raises(InputError, match="has no label 140"):
        studies.submitted("c", TINY)
    with pytest.raises(InputError, match="voxels and its scan"):
        studies.submitted("d", TINY)


@pytest.fixture
def watching(folder: Path) -> Iterator[Studies]:
    studies = open_studies(folder, auto_reload=True)
    yield studies
    studies._observer.stop()
    studies._observer.join(10)


def soon(condition: Callable[[], bool]) -> bool:
    ends = time.monotonic() + 20
    while not condition() and time.monotonic() < ends:
        time.sleep(0.05)
    return condition()


def test_scans_that_come_and_go_meanwhile_are_noticed(watching: Studies, folder: Path) -> None:
    shutil.copy(folder / "a.nii.gz", folder / "copied.nii.gz")
    assert soon(lambda: set(watching.list_images()) == {"a", "copied"})
    shutil.copy(folder / "a.nii.gz", folder / "half.tmp")
    (folder / "half.tmp").rename(folder / "MOVED.NII.GZ")
    assert soon(lambda: set(watching.list_images()) == {"a", "copied", "MOVED"})
    (folder / "a.nii.gz").unlink()
    assert soon(lambda: set(watching.list_images()) == {"copied", "MOVED"})
