"""The haemorrhage bundle's answers: three ways in, one answer; maps that follow the scan; bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from hemorrhage_bundle import ROOT, TINY, run, write_backbone
from series_tables import LABELS, write_ct

from dinomed import Predictor
from dinomed.bundle.head_checkpoint import HeadAbout, preprocessing_of, read_about, save_head
from dinomed.bundle.scan_classifier import contradictions
from dinomed.cli.classify import _sentence
from dinomed.cli.main import main
from dinomed.data.familiarity import measure_familiarity
from dinomed.data.features import HEAD_WINDOWS_HU, FeatureExtractor, FeatureSettings
from dinomed.errors import BundleError, InputError, WeightsError
from dinomed.networks import create_backbone
from dinomed.networks.bags import BagHead
from dinomed.transforms.heat_maps import pixel_mm
from dinomed.transforms.slice_boxes import SliceBox

SHAPE = (40, 48, 7)


def make_bundle(folder: Path, pooling: str = "smoothmax") -> Path:
    """The bundle with a tiny backbone and a random head that fits it."""
    root = folder / "ct_hemorrhage_classification"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("models", "runs"))
    backbone_file = root / "models" / "backbone.pt"
    backbone_file.parent.mkdir()
    write_backbone(backbone_file)
    config = yaml.safe_load((root / "configs" / "inference.yaml").read_text())
    plain = {key: value for key, value in TINY.items() if "#" not in key and key != "device"}
    config |= {**plain, "features": "both", "pooling": pooling, "resize": 64}
    config["backbone"] |= {"embed_dim": 32, "depth": 1, "num_heads": 2}
    (root / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    backbone = create_backbone("dinov3_vit_tiny16", weights=str(backbone_file), embed_dim=32, depth=1, num_heads=2)
    settings = FeatureSettings("both", 64, windows_hu=HEAD_WINDOWS_HU)
    extractor = FeatureExtractor(backbone, settings, precision="float32")
    torch.manual_seed(3)
    head = BagHead(64, len(LABELS), pooling, 16, attention_features=8)
    about = HeadAbout(
        labels=LABELS,
        pooling=pooling,
        features="both",
        in_features=64,
        hidden_features=16,
        attention_features=8 if pooling == "attention" else None,
        preprocessing=preprocessing_of(extractor),
        backbone="dinov3_vit_tiny16",
        backbone_sha256=extractor.backbone_sha256,
        calibration={**dict.fromkeys(LABELS, (2.0, -0.5)), "epidural": None},
        thresholds={**dict.fromkeys(LABELS, 0.4), "subdural": None},
        validation={**dict.fromkeys(LABELS, 0.8), "macro": 0.8},
        seed=0,
    )
    save_head(root / "models" / "model.pt", head, about)
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.from_bundle(bundle, device="cpu")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ct(tmp_path_factory.mktemp("scan") / "ct.nii.gz", 1, 40.0, SHAPE)


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_predictor_the_command_and_monai_give_the_same_answer(bundle: Path, scan: Path, tmp_path: Path) -> None:
    ways = {name: tmp_path / name for name in ("predictor", "command", "bundle")}
    Predictor.from_bundle(bundle, device="cpu").classify(scan, maps=["gradient"]).save(ways["predictor"])
    arguments = ["--bundle", str(bundle), "--output", str(ways["command"]), "--device", "cpu", "--maps", "gradient"]
    assert main(["classify", str(scan), *arguments]) == 0
    given = {"input": str(scan), "output_dir": str(ways["bundle"]), "device": "cpu", "maps": ["gradient"]}
    run(["inference"], "inferring", root=bundle, **given)
    summaries = [summary_of(way / "ct") for way in ways.values()]
    for key in ("probabilities", "calibrated_probabilities", "predicted", "threshold", "top_slices", "input", "model"):
        assert summaries[0][key] == summaries[1][key] == summaries[2][key], key
    names = ("slice_probs.npy", "slice_indices.npy", "slice_embeddings.npy", "volume_embedding.npy")
    for name in (*names, "heat_gradient_any.npy"):
        arrays = [np.load(way / "ct" / name) for way in ways.values()]
        assert arrays[0].size
        assert np.array_equal(arrays[0], arrays[1])
        assert np.array_equal(arrays[0], arrays[2]), name


def test_the_answer_is_the_heads_own(predictor: Predictor, bundle: Path, scan: Path) -> None:
    answer = predictor.classify(scan)
    head: Any = predictor.network
    bag = torch.from_numpy(answer.slice_embeddings)[None]
    with torch.no_grad():
        logits, slices = head(bag)[0], head.instance_logits(bag)[0]
    np.testing.assert_allclose(answer.probabilities, logits.sigmoid().numpy(), rtol=1e-6)
    np.testing.assert_allclose(answer.slice_probs, slices.sigmoid().numpy(), rtol=1e-6)
    calibrated = (2.0 * logits - 0.5).sigmoid()
    assert answer.calibrated[0] == pytest.approx(float(calibrated[0]), rel=1e-5)
    assert answer.calibrated[1] is None  # no calibration could be fitted
    assert answer.predicted[5] is None  # no threshold could be chosen
    assert answer.predicted[0] == (float(calibrated[0]) >= 0.4)
    assert any("no threshold" in warning for warning in answer.warnings)
    assert "smooth maximum" in answer.slice_note


def test_a_scan_unlike_all_known_ones_gets_a_warning_and_a_known_one_gets_none(tmp_path: Path, scan: Path) -> None:
    root = make_bundle(tmp_path)
    predictor = Predictor.from_bundle(root, device="cpu")
    like = [write_ct(tmp_path / f"{seed}.nii.gz", seed, 10.0 * seed, SHAPE) for seed in range(4)]
    bags = [predictor.classify(path).slice_embeddings for path in like]
    about = replace(read_about(root / "models" / "model.pt"), familiarity=measure_familiarity(bags))
    save_head(root / "models" / "model.pt", predictor.network, about)
    predictor = Predictor.from_bundle(root, device="cpu")
    for path in like:
        assert not any("unlike" in warning for warning in predictor.classify(path).warnings)
    image = nibabel.load(scan)
    slab = np.random.default_rng(0).normal(800, 300, SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(slab, image.affine), tmp_path / "slab.nii.gz")
    assert any("unlike every scan" in warning for warning in predictor.classify(tmp_path / "slab.nii.gz").warnings)


def test_a_head_from_before_proportions_were_kept_is_used_with_a_warning_where_it_matters(
    tmp_path: Path, scan: Path
) -> None:
    root = make_bundle(tmp_path)
    about = read_about(root / "models" / "model.pt")
    older = {key: value for key, value in about.preprocessing.items() if key != "proportions"}
    head = Predictor.from_bundle(root, device="cpu").network
    save_head(root / "models" / "model.pt", head, replace(about, preprocessing=older))
    predictor = Predictor.from_bundle(root, device="cpu")
    square = write_ct(tmp_path / "square.nii.gz", 1, 40.0, (40, 40, 7))
    said = [any("not square" in warning for warning in predictor.classify(path).warnings) for path in (scan, square)]
    assert said == [True, False]


def test_a_reference_beside_the_slice_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    narrow = write_ct(tmp_path / "narrow.nii.gz", 1, 40.0, (20, 80, 7))
    with pytest.raises(InputError, match=r"1,0 lies beside the slice.* col in 1\.\.2"):
        predictor.classify(narrow, reference="1,0")
    answer = predictor.classify(narrow, reference="1,1", maps=["occlusion"])
    answer.save(tmp_path / "out")
    summary = summary_of(tmp_path / "out" / "narrow")
    box = {"top": 0, "left": 24, "height": 64, "width": 16}
    for entry in (summary["similarity"], summary["heat_maps"][0]):
        assert entry["slice_box_px"] == box
        assert entry["image_px"] == [64, 64]
    assert summary["heat_maps"][0]["cell_mm"] == pytest.approx([80.0, 80.0])


def test_a_scan_whose_values_are_no_hounsfield_units_gets_a_warning(
    predictor: Predictor, scan: Path, tmp_path: Path
) -> None:
    image = nibabel.load(scan)
    grey = np.clip((np.asarray(image.dataobj) + 40) * 2, 0, 255).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(grey, image.affine), tmp_path / "grey.nii.gz")
    predictor.classify(tmp_path / "grey.nii.gz").save(tmp_path)
    told = summary_of(tmp_path / "grey")["warnings"][0]
    assert told.startswith("its values are hardly Hounsfield units: they run from 0 to ")
    assert ", as grey values of a picture do; rescale them" in told
    assert not any("Hounsfield" in warning for warning in predictor.classify(scan).warnings)


def test_the_terminal_says_what_was_decided_and_where_nothing_was(predictor: Predictor, scan: Path) -> None:
    answer = predictor.classify(scan)
    assert _sentence(replace(answer, thresholds=(1.0,) * 6)).startswith("nothing reaches its threshold (any ")
    assert _sentence(replace(answer, thresholds=(None,) * 6)).startswith("nothing is decided without thresholds (any ")
    low = _sentence(replace(answer, thresholds=(0.0, *[None] * 5)))
    assert low == f"any {answer.calibrated[0]:.2f}"


def test_a_pooled_head_says_that_its_slices_are_only_ranked(scan: Path, tmp_path: Path) -> None:
    answer = Predictor.from_bundle(make_bundle(tmp_path, "mean"), device="cpu").classify(scan)
    assert "no probability of bleeding in a slice" in answer.slice_note


def reoriented(scan: Path, path: Path, codes: str) -> Path:
    image = nibabel.load(scan)
    start = nibabel.orientations.io_orientation(image.affine)
    turn = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(codes))
    nibabel.save(image.as_reoriented(turn), path)
    return path


@pytest.mark.parametrize("codes", ["LPS", "PIR", "ASL", "SRA", "IAL"])
def test_answers_and_maps_follow_a_scan_that_is_stored_in_another_order(
    predictor: Predictor, scan: Path, tmp_path: Path, codes: str
) -> None:
    request = {"maps": ["rollout", "gradient", "occlusion"], "map_slices": 2, "reference": "1,2"}
    first = predictor.classify(scan, **request)
    other = predictor.classify(reoriented(scan, tmp_path / "turned.nii.gz", codes), **request)
    np.testing.assert_array_equal(first.probabilities, other.probabilities)
    np.testing.assert_array_equal(first.slice_probs, other.slice_probs)
    first.save(tmp_path / "first")
    other.save(tmp_path / "other")
    for name in ("heat_rollout", "heat_gradient_any", "heat_occlusion_any"):
        one = nibabel.load(tmp_path / "first" / "ct" / f"{name}.nii.gz")
        two = nibabel.load(tmp_path / "other" / "turned" / f"{name}.nii.gz")
        assert nibabel.aff2axcodes(two.affine) == tuple(codes)
        back = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt(codes), nibabel.orientations.io_orientation(one.affine)
        )
        returned = two.as_reoriented(back)
        assert np.abs(one.get_fdata()).max() > 0
        np.testing.assert_array_equal(one.get_fdata(), returned.get_fdata())
        np.testing.assert_allclose(one.affine, returned.affine, atol=1e-4)
    assert first.similarity is not None
    assert other.similarity is not None
    np.testing.assert_array_equal(first.similarity.values, other.similarity.values)


def test_occlusion_is_the_fall_of_the_slices_own_logit(predictor: Predictor, scan: Path) -> None:
    answer = predictor.classify(scan, maps=["occlusion"], map_slices=1, map_label="subdural")
    heat = answer.maps[0]
    top = answer.top_slices_of("subdural")[0]
    assert heat.slice_indices.tolist() == [top.index]
    extractor: Any = predictor._work.classifier.extractor  # type: ignore[union-attr]
    head: Any = predictor.network
    values = np.asarray(nibabel.load(scan).get_fdata(), np.float32)[:, :, [top.index]]
    image = extractor.seen_slices(values, pixel_mm(answer.grid))
    assert heat.place == SliceBox(0, 5, 64, 53)  # 40 columns for 48 rows
    hidden = image.clone()
    hidden[:, :, 8:40, 24:56] = extractor.slice_batch(np.full((1, 1, 1), -1000, np.float32))
    logits = [
        float(head.instance_logits(torch.from_numpy(extractor.embed(each))[:, None])[0, 0, 5])
        for each in (image, hidden)
    ]
    assert heat.values[0, 1, 2] == pytest.approx(logits[0] - logits[1], abs=1e-5)


def test_answers_that_contradict_each_other_are_warned_of(predictor: Predictor, scan: Path) -> None:
    answer = predictor.classify(scan)

    def with_thresholds(*values: float) -> tuple[str, ...]:
        return contradictions(replace(answer, thresholds=values))

    assert with_thresholds(1.0, 0.0, 1.0, 1.0, 1.0, 1.0) == (
        "contradictory: epidural reaches its threshold and any does not; look at the slices",
    )
    assert with_thresholds(0.0, 0.0, 1.0, 1.0, 1.0, 1.0) == ()
    assert with_thresholds(1.0, 1.0, 1.0, 1.0, 1.0, 1.0) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"thresholds": {**dict.fromkeys(LABELS, 0.4), "any": float("nan")}},
        {"thresholds": {**dict.fromkeys(LABELS, 0.4), "any": "0.5"}},
        {"thresholds": {}},
        {"calibration": {}},
        {"calibration": {**dict.fromkeys(LABELS), "any": (float("nan"), 0.0)}},
        {"preprocessing": None},
    ],
)
def test_a_file_with_numbers_that_are_none_is_refused(bundle: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    content = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({**content, "about": {**content["about"], **change}}, tmp_path / "head.pt")
    with pytest.raises(WeightsError, match="is damaged"):
        read_about(tmp_path / "head.pt")


def test_a_wrong_request_is_refused_before_a_scan_is_read(predictor: Predictor, tmp_path: Path) -> None:
    absent = tmp_path / "absent.nii.gz"
    for request, words in (
        ({"maps": ["lime"]}, "no 'lime' maps; choose from rollout"),
        ({"map_label": "fracture"}, "no label 'fracture'; choose from any"),
        ({"map_slices": 0}, "map_slices must be a whole number from 1 on"),
        ({"reference": "9,9"}, "9,9"),
    ):
        with pytest.raises(InputError, match=words):
            predictor.classify(absent, **request)


def test_a_bundle_that_classifies_does_not_segment(predictor: Predictor, scan: Path) -> None:
    with pytest.raises(InputError, match="classifies; use `classify`"):
        predictor.segment(scan)


def test_the_command_goes_on_after_a_bad_case_and_skips_what_is_done(
    bundle: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(scan, folder / "good.nii.gz")
    whole = scan.read_bytes()
    (folder / "torn.nii.gz").write_bytes(whole[: len(whole) // 2])
    arguments = ["classify", str(folder), "--bundle", str(bundle), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "good" in printed.out
    assert "torn" in printed.err
    assert "Traceback" not in printed.err
    summary = summary_of(tmp_path / "out" / "good")
    assert set(summary["probabilities"]) == set(LABELS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good", "summary.json"]
    assert main([*arguments[:1], str(folder / "good.nii.gz"), *arguments[2:]]) == 0
    assert "1 skipped" in capsys.readouterr().out
    more = [*arguments[:1], str(folder / "good.nii.gz"), *arguments[2:], "--maps", "rollout", "--reference", "1,1"]
    assert main(more) == 2
    assert "pass overwrite (--overwrite)" in capsys.readouterr().err
    assert main([*more, "--overwrite"]) == 0
    assert main(more) == 0
    assert "1 skipped" in capsys.readouterr().out
    assert main([*more[:-1], "2,1"]) == 2  # another reference is another answer


def test_a_head_of_another_backbone_and_missing_weights_are_refused(scan: Path, tmp_path: Path) -> None:
    root = make_bundle(tmp_path)
    write_backbone(root / "models" / "backbone.pt", seed=9)
    with pytest.raises(WeightsError, match="its backbone had weights with the checksum"):
        Predictor.from_bundle(root, device="cpu")
    (root / "models" / "model.pt").unlink()
    with pytest.raises(WeightsError, match="no such weights file"):
        Predictor.from_bundle(root, device="cpu")


def test_a_setting_that_changes_the_embeddings_is_refused(bundle: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "other.yaml"
    overlay.write_text("resize: 32\n")
    with pytest.raises(WeightsError, match="its resize was 64 in training, and is 32 here"):
        Predictor.from_bundle(bundle, device="cpu", overlay=overlay)
    overlay.write_text("resise: 32\n")
    with pytest.raises((BundleError, InputError), match="resise"):
        Predictor.from_bundle(bundle, device="cpu", overlay=overlay)


def test_a_picture_is_no_ct(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    arguments = ["classify", str(tmp_path / "photo.png"), "--bundle", str(bundle), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "is a picture" in capsys.readouterr().err
