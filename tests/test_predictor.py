"""The predictor: what it gives, and what it does not put up with."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from tiny_bundle import make_bundle, make_scan, make_state

from dinomed import Predictor
from dinomed.errors import BundleError, InputError, OutputError, VolumeError, WeightsError
from dinomed.predictor import choose_device, choose_planes
from dinomed.predictor.loading import explaining


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bundle(tmp_path)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return make_scan(tmp_path / "t1.nii.gz")


def test_labels_lie_on_the_scans_own_grid(root: Path, scan: Path, tmp_path: Path) -> None:
    prediction = Predictor.from_bundle(root).segment(scan)
    source = nibabel.load(scan)
    assert prediction.labels.shape == source.shape
    assert prediction.labels.dtype == np.uint8
    paths = prediction.save(tmp_path / "out")
    written = nibabel.load(paths.labels)
    np.testing.assert_array_equal(np.asarray(written.dataobj), prediction.labels)
    for field in ("sform_code", "qform_code", "xyzt_units", "srow_x", "srow_y", "srow_z", "quatern_b", "pixdim"):
        np.testing.assert_array_equal(written.header[field], source.header[field])


def test_prediction_says_how_much_and_how_sure(root: Path, scan: Path) -> None:
    prediction = Predictor.from_bundle(root).segment(str(scan))
    voxel_ml = abs(np.linalg.det(nibabel.load(scan).affine[:3, :3])) / 1000
    for value, name in ((1, "shell"), (2, "core")):
        assert prediction.volumes_ml[name] == pytest.approx((prediction.labels == value).sum() * voxel_ml)
        assert 1 / 3 < prediction.confidence[name] <= 1
    assert prediction.label_names == {0: "background", 1: "shell", 2: "core"}
    assert set(prediction.timings_s) == {"load", "preprocess", "infer", "labels"}
    assert all(seconds >= 0 for seconds in prediction.timings_s.values())


def test_one_predictor_gives_the_same_labels_again(root: Path, scan: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_bundle(root)
    first = predictor.segment(scan).labels
    predictor.segment(make_scan(tmp_path / "other.nii.gz", seed=9, shape=(17, 21, 15)))
    np.testing.assert_array_equal(predictor.segment(scan).labels, first)


def test_report_describes_the_run(root: Path, scan: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_bundle(root, device="cpu", precision="bfloat16", planes="axial,coronal", overlay="brain")
    report = json.loads(predictor.segment(scan).save(tmp_path / "out").report.read_text())
    settings = {"precision": "bfloat16", "planes": ["axial", "coronal"], "class_groups": [[0], [1, 2]]}
    assert report["run"] == {"device": "cpu", **settings}
    assert report["model"]["overlay"] == "brain"
    assert report["model"]["version"] == "0.2.0"
    assert len(report["model"]["weights_sha256"]) == 64
    assert [step["name"] for step in report["preprocessing"]] == [
        "LoadVolumed",
        "ToNetworkGridd",
        "NormalisePercentilesd",
        "FixedGammad",
    ]
    assert report["preprocessing"][1]["parameters"] == {"spacing_mm": 2.0}
    assert [row["name"] for row in report["labels"]] == ["background", "all"]


def test_planes_change_what_the_network_sees(root: Path, scan: Path) -> None:
    axial = Predictor.from_bundle(root, planes=["axial"]).segment(scan).labels
    assert not np.array_equal(axial, Predictor.from_bundle(root, planes="sagittal").segment(scan).labels)


def test_an_overlay_may_be_a_file_of_the_user(root: Path, scan: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("label_names: [nothing, rind, seed]\n")
    assert Predictor.from_bundle(root, overlay=own).label_names[2] == "seed"


def test_other_weights_may_be_named(root: Path, scan: Path, tmp_path: Path) -> None:
    torch.save(make_state(seed=4), tmp_path / "other.pt")
    other = Predictor.from_bundle(root, weights=tmp_path / "other.pt")
    assert other.run.weights_file == "other.pt"
    assert not np.array_equal(other.segment(scan).labels, Predictor.from_bundle(root).segment(scan).labels)


def test_missing_weights_are_never_random_ones(root: Path) -> None:
    (root / "models" / "model.pt").unlink()
    with pytest.raises(WeightsError, match=r"models/model\.pt: there is no such weights file"):
        Predictor.from_bundle(root)


def test_weights_of_another_network_are_refused(root: Path) -> None:
    torch.save({**make_state(), "extra": torch.ones(1)}, root / "models" / "model.pt")
    with pytest.raises(WeightsError, match=r"does not fit .*1 unexpected \(extra\)"):
        Predictor.from_bundle(root)


@pytest.mark.parametrize("gone", ["inferer", "decide", "label_names", "network_def", "preprocessing", "ckpt_path"])
def test_a_bundle_that_lacks_a_part_is_named(gone: str, root: Path) -> None:
    path = root / "configs" / "inference.yaml"
    path.write_text(path.read_text().replace(f"\n{gone}:", "\nrenamed:").replace(f"'@{gone}'", "'@renamed'"))
    with pytest.raises(BundleError, match=f"lacks '{gone}'"):
        Predictor.from_bundle(root)


def test_a_bad_scan_is_one_sentence_and_the_predictor_goes_on(root: Path, scan: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_bundle(root)
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(scan.read_bytes()[:300])
    with pytest.raises(VolumeError, match=r"bad\.nii\.gz"):
        predictor.segment(bad)
    with pytest.raises(VolumeError, match="does not exist"):
        predictor.segment(tmp_path / "absent.nii.gz")
    assert predictor.segment(scan).labels.any()


def test_frames_are_chosen_per_scan(root: Path, tmp_path: Path, scan: Path) -> None:
    four = make_scan(tmp_path / "four.nii.gz", shape=(20, 18, 14, 2))
    predictor = Predictor.from_bundle(root)
    with pytest.raises(VolumeError, match="frame"):
        predictor.segment(four)
    first, second = predictor.segment(four, frame=0).labels, predictor.segment(four, frame=1).labels
    assert first.shape == (20, 18, 14)
    assert not np.array_equal(first, second)
    assert predictor.segment(scan).labels.any()
    values = nibabel.load(four)
    nibabel.save(nibabel.Nifti1Image(values.dataobj[..., 1], values.affine), tmp_path / "one.nii.gz")
    np.testing.assert_array_equal(predictor.segment(tmp_path / "one.nii.gz").labels, second)


def test_memory_that_runs_out_is_the_users_to_solve(root: Path, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.from_bundle(root)

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")

    monkeypatch.setattr(predictor.network, "forward", run_out)
    with pytest.raises(InputError, match=r"t1\.nii\.gz: the memory of the cpu does not suffice.*--batch-size"):
        predictor.segment(scan)


def test_what_monai_wrapped_is_raised_by_itself_and_the_rest_as_it_is() -> None:
    own, unknown = VolumeError("t1.nii.gz is empty"), RuntimeError("no kernel image")
    with pytest.raises(VolumeError) as caught, explaining("t1.nii.gz", torch.device("cpu")):
        raise RuntimeError("applying transform") from own
    assert caught.value is own
    with pytest.raises(RuntimeError) as other, explaining("t1.nii.gz", torch.device("cpu")):
        raise unknown
    assert other.value is unknown


def test_progress_is_told_in_slices(root: Path, scan: Path) -> None:
    told: list[tuple[int, int]] = []
    Predictor.from_bundle(root).segment(scan, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 10
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_saving_twice_needs_permission(root: Path, scan: Path, tmp_path: Path) -> None:
    prediction = Predictor.from_bundle(root).segment(scan)
    prediction.save(tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        prediction.save(tmp_path / "out")
    prediction.save(tmp_path / "out", overwrite=True)


def test_devices_and_planes_are_checked() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    assert choose_planes(" axial , coronal") == ("axial", "coronal")
    for wrong in ("gpu", "cpu:1", "cuda:x", "mps", ""):
        with pytest.raises(InputError, match="is unknown"):
            choose_device(wrong)
    for wrong in ("", "axial,", [], "transverse"):
        with pytest.raises(InputError, match="is unknown"):
            choose_planes(wrong)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(root: Path, scan: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    on_gpu = Predictor.from_bundle(root, device="cuda", precision="float32").segment(scan)
    on_cpu = Predictor.from_bundle(root, device="cpu", precision="float32").segment(scan)
    assert on_gpu.run.device == "cuda"
    assert (on_gpu.labels == on_cpu.labels).mean() > 0.999


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; a config sets ids"),
        ("[1, 2]", "holds a list; a config sets ids"),
        ("a: b: c", "cannot be parsed"),
        (
            "batchsize: 3",
            "sets 'batchsize', which no config of tiny_segmentation has or refers to; did you mean batch_",
        ),
        ("class_groups: 5", "class_groups must be null or a list of lists of outputs"),
        ("class_groups: [[0], [1, 2]]", "has 3 label_names for 2 class_groups"),
        ("label_names: {a: b}", "label_names must be a list of names, or names by label value"),
        ("precision: half", "precision 'half' of tiny_segmentation is unknown; choose from auto, float32, bfloat16"),
        ("planes: 3", "planes of tiny_segmentation must be a list of"),
        ("planes: [[axial]]", "planes of tiny_segmentation must be a list of"),
        ("planes: [axial, axial]", "planes of tiny_segmentation must be a list of"),
        ("frame: 0.5", "frame of tiny_segmentation must be null or a number from 0 on, not 0.5"),
        ("spacing_mm: -1", "spacing_mm must be positive"),
        ("decide: null", "decide of the bundle tiny_segmentation must be of the kind Transform, not NoneType"),
        ("inferer: 5", "inferer of the bundle tiny_segmentation must be of the kind Inferer, not int"),
        ("preprocessing: []", "preprocessing of the bundle tiny_segmentation must be a Compose of the loading"),
        ("preprocessing#transforms#3#gamma: x", "'preprocessing' of the bundle tiny_segmentation cannot be built"),
    ],
)
def test_a_wrong_overlay_is_one_sentence_before_any_scan_is_read(
    root: Path, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BundleError) as caught:
        Predictor.from_bundle(root, overlay=tmp_path / "mine.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_overlay_may_add_what_it_refers_to_itself(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("coarse_mm: 3.0\nspacing_mm: '@coarse_mm'\n")
    run = Predictor.from_bundle(root, overlay=tmp_path / "mine.yaml").run
    assert run.preprocessing[1]["parameters"] == {"spacing_mm": 3.0}


@pytest.mark.parametrize(
    "text",
    [
        "my_planes: [axial]\nplanes: '%my_planes'",
        "my_size: 2\nbatch_size: '@#my_size'",
        "label_names: $('nothing', 'rind', 'seed')",
        "decide: {_target_: Compose, transforms: [{_target_: dinomed.transforms.labels.LabelsToNativeGridd}]}",
    ],
)
def test_valid_overlays_are_taken(root: Path, tmp_path: Path, text: str) -> None:
    (root / "configs" / "datalist.json").write_text("[1, 2]")
    (tmp_path / "mine.yaml").write_text(text)
    Predictor.from_bundle(root, overlay=tmp_path / "mine.yaml")
