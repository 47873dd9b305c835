from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dinomed.errors import InputError
from dinomed.label_app.submissions import EmptyLabelsError, named, numbers_by_name, read_labels, to_model_labels
from dinomed.transforms.volumes import read_grid, read_volume

VALUES = {"shell": 1, "core": 2}
AFFINE = np.array([[0.0, -2, 0, 3], [1.5, 0, 0, 4], [0, 0.1, 3, -8], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def drawn() -> np.ndarray:
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1:4, 2:5, 2] = 1
    labels[2, 3, 2:5] = 2
    return labels


def test_labels_on_the_scans_grid_are_read_as_they_are(tmp_path: Path, drawn: np.ndarray) -> None:
    scan = read_grid(save(tmp_path / "scan.nii.gz", np.random.default_rng(0).random(drawn.shape)))
    np.testing.assert_array_equal(read_labels(save(tmp_path / "label.nii.gz", drawn), scan), drawn)


def test_an_affine_in_single_precision_is_the_same_grid(tmp_path: Path, drawn: np.ndarray) -> None:
    scan = read_grid(save(tmp_path / "scan.nii.gz", drawn))
    nearly = AFFINE + 1e-4 * np.array([[1, 1, 1, 1]] * 3 + [[0, 0, 0, 0]])
    np.testing.assert_array_equal(read_labels(save(tmp_path / "label.nii.gz", drawn, nearly), scan), drawn)


@pytest.mark.parametrize("change", ["shape", "moved", "stretched", "mirrored"])
def test_labels_on_another_grid_are_refused(tmp_path: Path, drawn: np.ndarray, change: str) -> None:
    scan = read_grid(save(tmp_path / "scan.nii.gz", drawn))
    moved = AFFINE.copy()
    if change == "moved":
        moved[0, 3] += 0.5
    elif change == "stretched":
        moved[:3, 1] *= 1.1
    elif change == "mirrored":
        moved[:3, 0] *= -1
    labels = drawn[:-1] if change == "shape" else drawn
    with pytest.raises(InputError, match="reference volume"):
        read_labels(save(tmp_path / "label.nii.gz", labels, moved), scan)


@pytest.mark.parametrize(("value", "words"), [(0.5, "from 0 to 2"), (-1, "from -1 to 2"), (256, "from 0 to 256")])
def test_numbers_that_are_no_labels_are_refused(tmp_path: Path, drawn: np.ndarray, value: float, words: str) -> None:
    scan = read_grid(save(tmp_path / "scan.nii.gz", drawn))
    label = drawn.astype(np.float32)
    label[0, 0, 0] = value
    with pytest.raises(InputError, match=f"whole numbers from 0 to 255, not values {words}"):
        read_labels(save(tmp_path / "label.nii.gz", label), scan)


def test_an_empty_label_map_is_refused(tmp_path: Path, drawn: np.ndarray) -> None:
    scan = read_grid(save(tmp_path / "scan.nii.gz", drawn))
    with pytest.raises(EmptyLabelsError, match=r"^the label map is empty; draw or keep at least one label$"):
        read_labels(save(tmp_path / "label.nii.gz", np.zeros_like(drawn)), scan)


def test_a_file_is_called_by_what_it_is_wherever_its_path_stands(tmp_path: Path, drawn: np.ndarray) -> None:
    scan = save(tmp_path / "nan.nii.gz", drawn * np.float32(np.nan))
    with pytest.raises(InputError) as said, named(scan, "the scan"):
        read_volume(scan)
    assert str(said.value).startswith("the scan holds ")
    assert "numpy.nan_to_num" in str(said.value)
    strange = save(tmp_path / "new\nline.nii.gz", drawn * 0)
    with pytest.raises(InputError, match=r"^the scan is constant"), named(strange, "the scan"):
        read_volume(strange)


def test_a_scan_of_several_frames_gets_advice_that_helps_in_the_viewer(tmp_path: Path, drawn: np.ndarray) -> None:
    scan = save(tmp_path / "four.nii.gz", np.stack([drawn, drawn], -1))
    words = r"^the scan is four-dimensional: it holds 2 frames; convert it to a three-dimensional volume first$"
    with pytest.raises(InputError, match=words), named(scan, "the scan"):
        read_volume(scan)


def test_names_win_over_numbers(drawn: np.ndarray) -> None:
    names = numbers_by_name([{"name": "core", "idx": 1}, {"name": "shell", "id": 2}])
    swapped = to_model_labels(drawn, names, VALUES, "tiny")
    np.testing.assert_array_equal(swapped, np.array([0, 2, 1], np.uint8)[drawn])


def test_names_that_do_not_occur_need_not_be_known(drawn: np.ndarray) -> None:
    names = {1: "shell", 2: "core", 3: "scribbles"}
    np.testing.assert_array_equal(to_model_labels(drawn, names, VALUES, "tiny"), drawn)


@pytest.mark.parametrize(
    ("names", "words"),
    [({1: "shell"}, "which label_info does not name"), ({1: "shell", 2: "tumour"}, "'tumour' is none of the labels")],
)
def test_unknown_segments_are_refused(drawn: np.ndarray, names: dict[int, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        to_model_labels(drawn, names, VALUES, "tiny")


def test_numbers_without_names_must_be_the_bundles(drawn: np.ndarray) -> None:
    np.testing.assert_array_equal(to_model_labels(drawn, {}, VALUES, "tiny"), drawn)
    with pytest.raises(InputError, match="has no label 3"):
        to_model_labels(drawn + (drawn == 2), {}, VALUES, "tiny")


@pytest.mark.parametrize("label_info", ["shell", [{"name": "shell"}], [{"name": 3, "idx": 1}], [7]])
def test_label_info_of_another_build_is_refused(label_info: object) -> None:
    with pytest.raises(InputError, match="label_info must be a list"):
        numbers_by_name(label_info)
