"""`Predictor.propagate` and `dinomed propagate` with the shipped backbone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from tiny_bundle import make_bundle

from dinomed import Predictor
from dinomed.cli.main import main
from dinomed.errors import InputError, VolumeError
from dinomed.predictor.propagation import not_carried

AFFINE = np.array([[1.5, 0.1, 0, -30], [-0.1, 1.5, 0, -40], [0, 0, 3.0, -20], [0, 0, 0, 1]])


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    nibabel.save(image, path)
    return path


@pytest.fixture(scope="module")
def predictor(repository: Path) -> Predictor:
    return Predictor.from_bundle(repository / "bundles" / "mri_head_segmentation", device="cpu")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """A scan with two ellipsoids, the label of each on one or two slices, and the truth."""
    folder = tmp_path_factory.mktemp("case")
    x, y, z = np.meshgrid(*(np.arange(n) for n in (40, 44, 20)), indexing="ij")
    truth = np.zeros(x.shape, np.uint8)
    truth[((x - 13) / 7) ** 2 + ((y - 22) / 9) ** 2 + ((z - 10) / 7) ** 2 < 1] = 1
    truth[((x - 29) / 6) ** 2 + ((y - 22) / 10) ** 2 + ((z - 9) / 6) ** 2 < 1] = 5
    noise = np.random.default_rng(0).normal(0, 5, truth.shape)
    scan = (60.0 + 80 * (truth == 1) + 40 * (truth == 5) + noise).astype(np.float32)
    drawn = np.zeros_like(truth)
    drawn[..., 10] = truth[..., 10]
    drawn[..., 6] = np.where(truth[..., 6] == 5, 5, 0)
    return write(folder / "scan.nii.gz", scan), write(folder / "drawn.nii.gz", drawn), truth


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_labels_are_carried_on_the_scans_own_grid(
    predictor: Predictor, case: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    scan, drawn, truth = case
    prediction = predictor.propagate(scan, drawn)
    given = np.asarray(nibabel.load(drawn).dataobj)
    assert (prediction.labels[given > 0] == given[given > 0]).all()
    assert dice(prediction.labels == 1, truth == 1) > 0.85
    assert dice(prediction.labels == 5, truth == 5) > 0.85
    paths = prediction.save(tmp_path)
    written = nibabel.load(paths.labels)
    np.testing.assert_array_equal(written.affine, nibabel.load(scan).affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), prediction.labels)
    report = json.loads(paths.report.read_text())
    (how,) = report["inference"]
    assert how["slice_axis"] == 2
    assert how["slice_confidence"]["5"]["10"] == how["slice_confidence"]["5"]["6"] == 1.0
    assert 0.5 < how["slice_confidence"]["5"]["8"] <= 1.0
    assert report["run"]["planes"] == ["axial"]


@pytest.mark.parametrize("codes", ["LPS", "ASL", "IRP"])
def test_every_voxel_order_gets_the_same_labels(
    predictor: Predictor, case: tuple[Path, Path, np.ndarray], tmp_path: Path, codes: str
) -> None:
    scan, drawn, _ = case
    turn = ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes))
    turned = []
    for path in (scan, drawn):
        image = nibabel.load(path).as_reoriented(turn)
        turned.append(write(tmp_path / path.name, np.asarray(image.dataobj), image.affine))
    found = predictor.propagate(*turned)
    (how,) = found.run.inference
    marked = np.asarray(nibabel.load(turned[1]).dataobj) == 5
    slices = np.flatnonzero(marked.any(axis=tuple({0, 1, 2} - {how["slice_axis"]})))
    assert sorted(int(n) for n, share in how["slice_confidence"]["5"].items() if share == 1.0) == slices.tolist()
    image = nibabel.Nifti1Image(found.labels, nibabel.load(turned[0]).affine)
    back = image.as_reoriented(ornt_transform(io_orientation(image.affine), io_orientation(AFFINE)))
    np.testing.assert_array_equal(np.asarray(back.dataobj), predictor.propagate(scan, drawn).labels)


def test_the_plane_that_is_asked_for_is_taken(predictor: Predictor, case: tuple[Path, Path, np.ndarray]) -> None:
    found = predictor.propagate(case[0], case[1], plane="coronal")
    assert found.run.planes == ("coronal",)
    assert found.run.inference[0]["slice_axis"] == 1


def test_frames_do_not_share_their_features(
    predictor: Predictor, case: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    scan, drawn, _ = case
    first = np.asarray(nibabel.load(scan).dataobj)
    other = first[:, ::-1].copy()
    both = write(tmp_path / "both.nii.gz", np.stack([first, other], axis=-1))
    alone = write(tmp_path / "other.nii.gz", other)
    for frame, single in ((0, scan), (1, alone)):
        found = predictor.propagate(both, drawn, frame=frame).labels
        np.testing.assert_array_equal(found, predictor.propagate(single, drawn).labels)


def test_features_are_computed_once_for_a_scan(
    predictor: Predictor, case: tuple[Path, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, drawn, _ = case
    first = predictor.propagate(scan, drawn)
    assert predictor._propagation is not None
    monkeypatch.setattr(
        type(predictor._propagation.backbone), "forward_last", lambda *_: pytest.fail("the backbone ran again")
    )
    np.testing.assert_array_equal(predictor.propagate(scan, drawn).labels, first.labels)


def test_memory_that_runs_out_while_labels_are_carried_is_the_users_to_solve(
    case: tuple[Path, Path, np.ndarray], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise MemoryError

    predictor = Predictor.from_bundle(repository / "bundles" / "mri_head_segmentation", device="cpu")
    monkeypatch.setattr("dinomed.predictor.propagation.propagate", run_out)
    with pytest.raises(InputError, match=r"scan\.nii\.gz: the memory of the cpu does not suffice"):
        predictor.propagate(case[0], case[1])


def test_drawn_labels_that_do_not_fit_are_refused(
    predictor: Predictor, case: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    scan, drawn, _ = case
    array = np.asarray(nibabel.load(drawn).dataobj)
    moved = AFFINE.copy()
    moved[0, 3] += 4
    wrong = {
        "voxels and the scan": write(tmp_path / "small.nii.gz", array[:-1]),
        "lies elsewhere": write(tmp_path / "moved.nii.gz", array, moved),
        "every voxel is 0": write(tmp_path / "empty.nii.gz", np.zeros_like(array)),
        "whole numbers": write(tmp_path / "half.nii.gz", array.astype(np.float32) / 2),
    }
    for words, path in wrong.items():
        with pytest.raises(VolumeError, match=words):
            predictor.propagate(scan, path)
    with pytest.raises(InputError, match="plane 'oblique' is unknown"):
        predictor.propagate(scan, drawn, plane="oblique")


def test_labels_that_are_not_carried_anywhere_are_named(
    predictor: Predictor, case: tuple[Path, Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.asarray(nibabel.load(case[0]).dataobj).copy()
    array[36, 40] = 250.0  # a bright line through all slices: one pixel of it is carried, one of bare noise is not
    drawn = np.zeros(array.shape, np.uint8)
    drawn[36, 40, 10], drawn[3, 3, 10], drawn[3, 3, 12] = 7, 8, 9
    scan, labels = write(tmp_path / "lines.nii.gz", array), write(tmp_path / "pixels.nii.gz", drawn)
    found = predictor.propagate(scan, labels)
    slices = {value: np.flatnonzero((found.labels == value).any((0, 1))).tolist() for value in (7, 8, 9)}
    assert len(slices[7]) >= 3
    assert (slices[8], slices[9]) == ([10], [12])
    sentence = "not carried beyond the slices they are drawn on, draw them on more: label 8, label 9"
    assert found.warnings == [sentence]
    called = predictor.propagate(scan, labels, label_names={9: "left nerve"})
    assert called.warnings == [sentence.replace("label 9", "left nerve")]
    assert [row["name"] for row in called.table] == ["background", "label 7", "label 8", "left nerve"]
    command = ["propagate", str(scan), "--labels", str(labels), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    assert sentence in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "lines_seg.json").read_text())["warnings"] == [sentence]


def test_a_label_without_room_to_be_carried_is_not_named() -> None:
    drawn = np.zeros((5, 4, 4), np.uint8)
    drawn[1, 1, 1] = drawn[2, 1, 1] = 1
    drawn[0, 2, 2] = drawn[3, 2, 2] = 2
    assert not_carried(drawn, drawn, 0, beyond=True) == [1, 2]
    assert not_carried(drawn, drawn, 0, beyond=False) == [2]
    assert not_carried(drawn[1:3], drawn[1:3], 0, beyond=True) == []
    filled = drawn.copy()
    filled[1, 3, 3] = 2
    assert not_carried(drawn, filled, 0, beyond=False) == []


def test_the_summary_of_a_run_names_the_plane_that_labels_were_carried_along(
    case: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    scan, drawn, _ = case
    command = ["propagate", str(scan), "--output", str(tmp_path), "--device", "cpu", "--plane", "coronal"]
    assert main([*command, "--labels", str(drawn)]) == 0
    summary, report = (json.loads((tmp_path / name).read_text()) for name in ("summary.json", "scan_seg.json"))
    assert summary["run"] == report["run"]
    assert summary["run"]["planes"] == ["coronal"]
    assert main([*command, "--labels", str(scan), "--overwrite"]) == 2
    assert json.loads((tmp_path / "summary.json").read_text())["run"]["planes"] == []


def test_a_network_without_a_transformer_cannot_carry_labels(
    case: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot carry labels"):
        Predictor.from_bundle(make_bundle(tmp_path)).propagate(case[0], case[1])


def test_the_command_writes_what_the_predictor_gives(
    predictor: Predictor,
    case: tuple[Path, Path, np.ndarray],
    tmp_path: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan, drawn, _ = case
    command = ["propagate", str(scan), "--bundle", str(repository / "bundles" / "mri_head_segmentation")]
    out = tmp_path / "out"
    assert main([*command, "--labels", str(drawn), "--output", str(out), "--device", "cpu"]) == 0
    found = np.asarray(nibabel.load(out / "scan_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(found, predictor.propagate(scan, drawn).labels)
    assert {"scan_seg.json", "scan_seg.png", "summary.json"} <= {path.name for path in out.iterdir()}
    assert "label 5" in json.loads((out / "summary.json").read_text())["cases"][0]["volumes_ml"]
    again = [*command, "--labels", str(drawn), "--output", str(out)]
    assert main(again) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--labels", str(tmp_path / "none.nii.gz"), "--output", str(out)]) == 2
    assert "there is no such file" in capsys.readouterr().err
    both = [*command, "--labels", str(out / "scan_seg.nii.gz"), "--output", str(out), "--overwrite"]
    assert main(both) == 2
    assert "would replace" in capsys.readouterr().err
