"""The report, the picture and how they are written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image

from dinomed.errors import OutputError
from dinomed.transforms import prediction as prediction_module
from dinomed.transforms.intensity import FixedGammad, NormalisePercentilesd
from dinomed.transforms.planes import central_planes, centre_of_labels, cut_plane, sample_labels
from dinomed.transforms.prediction import Prediction, ResultPaths, read_report, write_results
from dinomed.transforms.provenance import describe_transforms, scan_sha256, to_json
from dinomed.transforms.report import RunInfo, label_table, name_labels, voxel_volume_mm3, warnings_of
from dinomed.transforms.results import SaveSegmentationd
from dinomed.transforms.volumes import read_grid

NAMES = {0: "background", 1: "ventricle", 2: "cortex", 3: "tumour"}
SHAPE = (12, 10, 8)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 1.5, -6], [0, 3.0, 0.4, -9], [0, 0, 0, 1]])
RUN = RunInfo("tiny", "0.1.0", None, "model.pt", "ab" * 32, "cpu", "float32", ("axial",), ())


def labelled() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:5, 3:6, 2:4] = 1
    labels[6:9, 3:6, 2:7] = 2
    return labels


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan 1.nii.gz"
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)
    return path


def make_prediction(scan: Path, labels: np.ndarray | None = None) -> Prediction:
    return Prediction(
        path=scan,
        labels=labelled() if labels is None else labels,
        grid=read_grid(scan),
        label_names=NAMES,
        mean_confidence={0: 0.99, 1: 0.8, 2: 0.4, 3: None},
        image=np.random.default_rng(1).random((24, 12, 30)).astype(np.float32),
        image_affine=np.array([[1.0, 0, 0, -12], [0, 1.0, 0, -7], [0, 0, 1.0, -9], [0, 0, 0, 1]]),
        run=RUN,
        timings_s={"load": 0.1, "preprocess": 0.2, "infer": 0.3, "labels": 0.4},
    )


def strict(path: Path) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_all_three_results_are_written_and_nothing_else(scan: Path, tmp_path: Path) -> None:
    paths = make_prediction(scan).save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "scan 1_seg.json",
        "scan 1_seg.nii.gz",
        "scan 1_seg.png",
    ]
    image = nibabel.load(paths.labels)
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(image.dataobj), labelled())
    np.testing.assert_allclose(image.affine, nibabel.load(scan).affine)


def test_millilitres_follow_the_determinant_of_a_sheared_grid(scan: Path, tmp_path: Path) -> None:
    report = strict(make_prediction(scan).save(tmp_path).report)
    voxel_mm3 = 2.0 * 1.5 * 3.0
    rows = {row["name"]: row for row in report["labels"]}
    assert rows["ventricle"]["voxels"] == 18
    assert rows["ventricle"]["volume_ml"] == pytest.approx(18 * voxel_mm3 / 1000)
    assert rows["cortex"]["volume_ml"] == pytest.approx(45 * voxel_mm3 / 1000)
    assert rows["ventricle"]["mean_confidence"] == pytest.approx(0.8)
    assert [row["value"] for row in report["labels"]] == [0, 1, 2, 3]
    assert sum(row["voxels"] for row in report["labels"]) == np.prod(SHAPE)


def test_report_holds_what_the_documentation_promises(scan: Path, tmp_path: Path, repository: Path) -> None:
    report = strict(make_prediction(scan).save(tmp_path).report)
    documented = (repository / "docs" / "results.md").read_text()
    for key in report:
        assert f"`{key}`" in documented
    assert report["input"] == {"name": scan.name, "format": "nifti", "frame": None, "sha256": scan_sha256(scan)}
    assert report["model"]["bundle"] == "tiny"
    assert report["model"]["weights_sha256"] == "ab" * 32
    assert report["run"] == {"device": "cpu", "precision": "float32", "planes": ["axial"], "class_groups": None}
    assert report["grid"]["shape"] == list(SHAPE)
    assert report["grid"]["affine"] == pytest.approx(AFFINE)
    assert report["network_grid"]["spacing_mm"] == pytest.approx([1.0, 1.0, 1.0])
    assert set(report["timings_s"]) == {"load", "preprocess", "infer", "labels", "write"}
    assert report["timings_s"]["write"] > 0
    assert str(scan.parent) not in json.dumps(report)


def test_absent_and_doubtful_structures_are_warned_of(scan: Path, tmp_path: Path) -> None:
    report = strict(make_prediction(scan).save(tmp_path).report)
    assert report["warnings"] == [
        "not found: tumour",
        "mean confidence below 0.5, check by eye: cortex (0.40)",
    ]
    assert report["labels"][3]["mean_confidence"] is None


def test_an_empty_label_map_is_one_warning_and_still_a_picture(scan: Path, tmp_path: Path) -> None:
    paths = make_prediction(scan, np.zeros(SHAPE, np.uint8)).save(tmp_path)
    assert strict(paths.report)["warnings"][0].startswith("no structure was found")
    assert paths.picture.stat().st_size > 5000


def test_a_value_without_a_name_is_reported_all_the_same() -> None:
    counts = np.zeros(256, dtype=np.int64)
    counts[[0, 9]] = 5, 7
    table = label_table({0: "background"}, counts, {0: 1.0}, np.eye(4))
    assert table[1] == {"value": 9, "name": "label 9", "volume_ml": 0.007, "voxels": 7, "mean_confidence": None}


def test_existing_results_are_kept_unless_told_otherwise(scan: Path, tmp_path: Path) -> None:
    prediction = make_prediction(scan)
    paths = prediction.save(tmp_path)
    before = paths.labels.read_bytes()
    prediction.labels[:] = 3
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        prediction.save(tmp_path)
    assert paths.labels.read_bytes() == before
    prediction.save(tmp_path, overwrite=True)
    assert paths.labels.read_bytes() != before


def test_a_failure_half_way_leaves_no_file(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction_module, "draw_picture", fail)
    with pytest.raises(KeyboardInterrupt):
        make_prediction(scan).save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_sentence_and_no_file(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prediction_module, "draw_picture", fail)
    with pytest.raises(OutputError, match=r"scan 1 cannot be written .*No space left.*; check") as caught:
        make_prediction(scan).save(tmp_path / "out")
    assert "partial" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_in_place_of_the_folder_is_one_sentence(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        make_prediction(scan).save(scan)


def test_a_damaged_report_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "x_seg.json"
    assert read_report(path) is None
    path.write_text('{"case": ')
    assert read_report(path) is None


def test_names_that_are_no_unicode_are_written(tmp_path: Path, scan: Path) -> None:
    odd = tmp_path / "caf\udce9.nii.gz"
    odd.write_bytes(scan.read_bytes())
    paths = write_results(make_prediction(odd), tmp_path)
    assert strict(paths.report)["input"]["name"] == "caf\ufffd.nii.gz"
    assert paths.labels.is_file()


def test_save_transform_writes_what_the_prediction_writes(scan: Path, tmp_path: Path) -> None:
    expected = make_prediction(scan)
    image = MetaTensor(torch.from_numpy(expected.image)[None], affine=torch.eye(4, dtype=torch.float64))
    image.meta["filename_or_obj"] = str(scan)
    labels = MetaTensor(torch.from_numpy(expected.labels)[None], affine=torch.from_numpy(AFFINE))
    labels.meta["mean_confidence"] = torch.tensor([0.99, 0.8, 0.4, float("nan")])
    chain = Compose([NormalisePercentilesd("image", lower=1.0), FixedGammad("image", gamma=0.75)])
    save = SaveSegmentationd(
        "pred", "image", tmp_path / "b", list(NAMES.values()), "tiny", "0.1.0", chain, device="cpu"
    )
    out = save({"image": image, "pred": labels})
    assert out["pred"] is labels
    ours, theirs = ResultPaths.of(tmp_path / "b", "scan 1"), expected.save(tmp_path / "a")
    assert ours.labels.read_bytes() == theirs.labels.read_bytes()
    report, other = strict(ours.report), strict(theirs.report)
    assert [row["voxels"] for row in report["labels"]] == [row["voxels"] for row in other["labels"]]
    assert report["labels"][3]["mean_confidence"] is None
    assert report["preprocessing"] == [
        {"name": "NormalisePercentilesd", "parameters": {"lower": 1.0, "upper": 99.5}},
        {"name": "FixedGammad", "parameters": {"gamma": 0.75}},
    ]


def test_transforms_are_described_from_a_mapping_too() -> None:
    assert describe_transforms({"window": {"low_hu": -1000}}) == [{"name": "window", "parameters": {"low_hu": -1000}}]
    assert describe_transforms({}) == []


def test_json_values_are_strict() -> None:
    values = {
        "a": float("nan"),
        2: np.float32("inf"),
        "t": torch.tensor([1.0, float("nan")]),
        "p": Path("x"),
        "o": object(),
    }
    assert to_json(values) == {"a": None, "2": None, "t": [1.0, None], "p": "x", "o": "object"}


def test_label_names_come_as_list_or_mapping() -> None:
    assert name_labels(["background", "brain"]) == name_labels({"1": "brain", "0": "background"})


def test_voxel_volume_is_never_negative() -> None:
    assert voxel_volume_mm3(AFFINE) == pytest.approx(9.0)


def test_no_foreground_labels_give_no_warning() -> None:
    assert warnings_of([{"value": 0, "name": "background", "voxels": 5, "mean_confidence": 1.0}]) == []


def test_checksum_tells_headers_with_separate_voxels_apart(tmp_path: Path) -> None:
    for name, voxels in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t1.mhd").write_text("ElementDataFile = t1.raw")
        (tmp_path / name / "t1.raw").write_bytes(voxels)
    assert scan_sha256(tmp_path / "a" / "t1.mhd") != scan_sha256(tmp_path / "b" / "t1.mhd")
    (tmp_path / "a" / "t1.raw").unlink()
    assert scan_sha256(tmp_path / "a" / "t1.mhd") is None
    (tmp_path / "a" / "t1.txt").write_text("a note, no voxels")
    assert scan_sha256(tmp_path / "a" / "t1.mhd") is None


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("ct.mhd", b"NDims = 3\nElementDataFile = voxels.bin\n"),
        ("ct.nhdr", b"NRRD0004\ntype: short\ndata file: voxels.bin\n"),
        ("voxels.hdr", b"\x5c\x01\0\0"),
    ],
)
def test_checksum_follows_the_voxels_that_a_header_stands_for_and_nothing_else(
    tmp_path: Path, name: str, header: bytes
) -> None:
    voxels = tmp_path / ("voxels.img" if name.endswith(".hdr") else "voxels.bin")
    (tmp_path / name).write_bytes(header)
    assert scan_sha256(tmp_path / name) is None
    voxels.write_bytes(b"1")
    first = scan_sha256(tmp_path / name)
    (tmp_path / f"{Path(name).stem}.txt").write_text("a note, no voxels")
    assert scan_sha256(tmp_path / name) == first is not None
    voxels.write_bytes(b"2")
    assert scan_sha256(tmp_path / name) not in (None, first)


def test_checksum_of_voxels_within_their_file_is_that_of_the_file(tmp_path: Path) -> None:
    for name, content in (
        ("ct.mha", b"NDims = 3\nElementDataFile = LOCAL\n12"),
        ("ct.nrrd", b"NRRD0004\ntype: short\n\ndata file: no field but voxels\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert scan_sha256(tmp_path / name) == hashlib.sha256(content).hexdigest()


def test_planes_stand_upright_in_radiological_view() -> None:
    image = np.zeros((5, 6, 7), np.float32)
    image[4, 5, 6] = 1.0  # most right, most anterior, most superior
    axial, _ = cut_plane(image, 2, (1, -1), (0, -1), 6)
    coronal, _ = cut_plane(image, 1, (2, -1), (0, -1), 5)
    sagittal, _ = cut_plane(image, 0, (2, -1), (1, -1), 4)
    for plane in (axial, coronal, sagittal):
        assert plane[0, 0] == 1.0


def test_marks_name_the_sides() -> None:
    planes = central_planes(np.ones((4, 5, 6), np.float32), np.eye(4), np.zeros((4, 5, 6), np.uint8), np.eye(4))
    assert [plane.marks for plane in planes] == ["RLAP", "RLSI", "APSI"]


def test_planes_pass_through_the_labels_on_another_grid() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[15, 4, 10] = 1
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = 19.0  # label voxel 15 lies at x = 4 mm
    image = np.zeros((10, 10, 10), np.float32)
    planes = central_planes(image, np.diag([2.0, 2.0, 2.0, 1.0]), labels, flipped)
    assert [plane.heading.split(", ")[1] for plane in planes] == ["slice 6 of 10", "slice 3 of 10", "slice 3 of 10"]
    assert all(plane.found.sum() == 1 for plane in planes)
    assert planes[0].found[9 - 2, 9 - 2] == 1


def test_labels_outside_their_grid_are_background() -> None:
    labels = np.ones((2, 2, 2), np.uint8)
    points = np.array([[[0.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [1.4, 1.4, 1.4], [1.6, 0.0, 0.0]]])
    assert sample_labels(labels, np.eye(4), points).tolist() == [[1, 0, 1, 0]]


def test_every_label_counts_the_same_in_the_centre() -> None:
    labels = np.zeros((40, 10, 10), np.uint8)
    labels[:20] = 1
    labels[39] = 2
    centre = centre_of_labels(labels)
    assert centre is not None
    assert centre[0] == pytest.approx((9.5 + 39) / 2)
    assert centre_of_labels(np.zeros((3, 3, 3), np.uint8)) is None


def test_picture_shows_labels_only_in_the_lower_row(scan: Path, tmp_path: Path) -> None:
    with Image.open(make_prediction(scan).save(tmp_path).picture) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    panels = pixels[:, : int(0.74 * pixels.shape[1])]
    colour = panels.max(axis=2) - panels.min(axis=2)
    middle = pixels.shape[0] // 2
    assert (colour[: middle - 10] > 40).sum() == 0
    assert (colour[middle + 10 :] > 40).sum() > 500


def test_picture_keeps_millimetres_square(scan: Path, tmp_path: Path) -> None:
    """A cube of 20 mm is drawn as a square, however thick the slices."""
    prediction = make_prediction(scan)
    image = np.zeros((60, 60, 20), np.float32)
    image[20:40, 20:40, 7:13] = 1.0
    prediction.image = image
    prediction.image_affine = np.diag([1.0, 1.0, 3.3, 1.0])
    prediction.labels[:] = 0
    with Image.open(prediction.save(tmp_path).picture) as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    height, width = pixels.shape
    panel = pixels[int(0.09 * height) : int(0.48 * height), int(0.29 * width) : int(0.47 * width)] > 127  # coronal
    rows, columns = np.flatnonzero(panel.sum(axis=1) > 40), np.flatnonzero(panel.sum(axis=0) > 40)
    assert (rows[-1] - rows[0]) / (columns[-1] - columns[0]) == pytest.approx(6 * 3.3 / 20, abs=0.06)
