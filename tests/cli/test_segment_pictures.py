"""`dinomed segment` on pictures, with a small network of random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_bundles import BUNDLES
from picture_sets import noise, save
from PIL import Image
from tiny_bundle import make_bundle, make_scan

from dinomed.cli.main import main
from dinomed.errors import InputError, WeightsError
from dinomed.predictor import Predictor

Segment = Callable[..., int]

TINY = """
network_def: {_target_: torch.nn.Conv2d, in_channels: 3, out_channels: 3, kernel_size: 3, padding: 1}
label_names: [wall, sky, tree]
num_classes: 3
shorter_side: 16
precision: float32
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    torch.save(torch.nn.Conv2d(3, 3, 3, padding=1).state_dict(), path)
    return path


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def segment(tmp_path: Path, weights: Path, overlay: Path) -> Segment:
    def run(*inputs: Path | str, output: str = "out", extra: tuple[str, ...] = (), bundle: str = "ade20k") -> int:
        command = ["segment", *map(str, inputs), "--bundle", str(BUNDLES / f"{bundle}_segmentation")]
        command += ["--weights", str(weights), "--overlay", str(overlay), "--output", str(tmp_path / output)]
        return main([*command, "--device", "cpu", *extra])

    return run


def of_case(name: str) -> list[str]:
    return [f"{name}_seg{ending}" for ending in (".json", ".png", "_overlay.png", "_side_by_side.png")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_one_photograph(segment: Segment, tmp_path: Path) -> None:
    photo = save(tmp_path / "photo.jpg", noise(0, 33, 47))
    assert segment(photo) == 0
    assert names(tmp_path / "out") == sorted([*of_case("photo"), "summary.json"])
    assert Image.open(tmp_path / "out" / "photo_seg.png").size == (47, 33)
    assert sorted(summary(tmp_path / "out")["cases"][0]["outputs"]) == of_case("photo")


def test_a_folder_of_any_depth_and_names_that_collide(segment: Segment, tmp_path: Path) -> None:
    for seed, name in enumerate(("a.jpg", "x/a.png", "x/y/b.webp", "._a.jpg", "notes.txt")):
        path = tmp_path / "in" / name
        if name.endswith("txt"):
            path.write_text("no picture")
        else:
            save(path, noise(seed))
    assert segment(tmp_path / "in") == 0
    cases = {case["case"] for case in summary(tmp_path / "out")["cases"]}
    assert cases == {"in_a", "x_a", "b"}


def test_results_in_the_folder_of_the_pictures_are_no_pictures(segment: Segment, tmp_path: Path) -> None:
    save(tmp_path / "out" / "a.png", noise(0))
    assert segment(tmp_path / "out") == 0
    assert segment(tmp_path / "out") == 0
    told = summary(tmp_path / "out")
    assert (told["done"], told["skipped"]) == (0, 1)


def test_other_weights_scales_or_pictures_are_not_taken_for_the_same(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save(tmp_path / "a.png", noise(0))
    assert segment(photo) == 0
    assert segment(photo, extra=("--tta",)) == 2
    assert "is not known to come from the same inference; pass --overwrite" in capsys.readouterr().err
    save(photo, noise(1))
    assert segment(photo) == 2
    assert "is not known to come from this scan" in capsys.readouterr().err
    assert segment(photo, extra=("--overwrite",)) == 0


def test_run_that_was_stopped_between_two_files_is_completed(segment: Segment, tmp_path: Path) -> None:
    photo = save(tmp_path / "a.png", noise(0))
    assert segment(photo) == 0
    before = (tmp_path / "out" / "a_seg.png").read_bytes()
    (tmp_path / "out" / "a_seg.json").unlink()
    (tmp_path / "out" / "a_seg_overlay.png").unlink()
    assert segment(photo) == 0
    assert summary(tmp_path / "out")["done"] == 1
    assert (tmp_path / "out" / "a_seg.png").read_bytes() == before


def test_pictures_that_somebody_else_made_are_not_replaced(segment: Segment, tmp_path: Path) -> None:
    photo = save(tmp_path / "a.png", noise(0))
    save(tmp_path / "out" / "a_seg.png", noise(1))
    assert segment(photo) == 2


def test_picture_that_would_be_replaced_by_a_result_stops_the_run(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "out" / "a.png", noise(0))
    save(tmp_path / "out" / "a_seg.png", noise(1))
    assert segment(tmp_path / "out") == 2
    assert "is a picture of this run and the result of another" in capsys.readouterr().err


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_label_map_stands_as_the_picture_is_seen(segment: Segment, tmp_path: Path, orientation: int) -> None:
    # The stored pixels are turned so that, as a viewer shows them, both pictures are the same.
    pixels = noise(0, 20, 32)
    save(tmp_path / "plain.png", pixels)
    turns = {3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "turned.png", np.ascontiguousarray(np.rot90(pixels, turns)), exif=exif)
    assert segment(tmp_path / "plain.png", tmp_path / "turned.png") == 0
    plain, turned = (np.asarray(Image.open(tmp_path / "out" / f"{name}_seg.png")) for name in ("plain", "turned"))
    assert plain.shape == (20, 32)
    assert len(np.unique(plain)) > 1
    np.testing.assert_array_equal(turned, plain)
    report = json.loads((tmp_path / "out" / "turned_seg.json").read_text())
    assert report["input"]["exif_orientation"] == orientation


def test_unreadable_pictures_do_not_stop_the_others(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = save(tmp_path / "in" / "good.png", noise(0, 200, 200))
    (tmp_path / "in" / "cut.png").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "text.jpg").write_text("this is no picture")
    assert segment(tmp_path / "in") == 2
    told = summary(tmp_path / "out")
    assert (told["done"], told["failed"]) == (1, 3)
    messages = " ".join(case["message"] for case in told["cases"])
    assert "is empty; get the file again" in messages
    assert messages.count("cannot be read as a picture") == 2
    assert "internal error" not in capsys.readouterr().err


def test_scan_and_picture_in_the_wrong_bundle_are_named(
    segment: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, photo = make_scan(tmp_path / "t1.nii.gz"), save(tmp_path / "photo.jpg", noise(0))
    assert segment(scan) == 2
    assert "t1.nii.gz is a scan, and this bundle reads pictures" in capsys.readouterr().err
    tiny = make_bundle(tmp_path / "bundles")
    assert main(["segment", str(photo), "--bundle", str(tiny), "--output", str(tmp_path / "out")]) == 2
    assert "photo.jpg is a picture, and this bundle reads scans" in capsys.readouterr().err
    with pytest.raises(InputError, match="is a picture, and the bundle tiny_segmentation reads scans"):
        Predictor.from_bundle(tiny, device="cpu").segment(photo)
    assert segment(scan, photo) == 2
    assert (tmp_path / "out" / "photo_seg.png").exists(), "the picture beside the scan is done"


def test_predictor_refuses_a_scan_in_a_bundle_for_pictures(tmp_path: Path, weights: Path, overlay: Path) -> None:
    predictor = Predictor.from_bundle(BUNDLES / "coco_segmentation", device="cpu", weights=weights, overlay=overlay)
    assert predictor.takes_pictures
    with pytest.raises(InputError, match="is a scan, and this bundle reads pictures"):
        predictor.segment(make_scan(tmp_path / "t1.nii.gz"))
    with pytest.raises(InputError, match="have no frames"):
        predictor.segment(save(tmp_path / "a.png", noise(0)), frame=1)


def test_missing_weights_say_what_to_pass(tmp_path: Path, overlay: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = save(tmp_path / "a.png", noise(0))
    command = ["segment", str(photo), "--bundle", str(BUNDLES / "ade20k_segmentation"), "--output", str(tmp_path / "o")]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the bundle ade20k_segmentation comes without weights" in line
    assert "--weights" in line
    with pytest.raises(WeightsError, match=r"nowhere\.pt: there is no such weights file"):
        Predictor.from_bundle(BUNDLES / "ade20k_segmentation", device="cpu", weights=tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--planes", "axial"), "has no planes; it is for flat pictures; leave --planes out"),
        (("--frame", "1"), "have no frames"),
    ],
)
def test_arguments_for_scans_are_refused(
    segment: Segment, tmp_path: Path, extra: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(save(tmp_path / "a.png", noise(0)), extra=extra) == 2
    assert words in capsys.readouterr().err


def test_augmentation_is_refused_where_a_bundle_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, scan = make_bundle(tmp_path / "bundles"), make_scan(tmp_path / "t1.nii.gz")
    assert main(["segment", str(scan), "--bundle", str(tiny), "--output", str(tmp_path / "out"), "--tta"]) == 2
    assert "has no test-time augmentation; leave --tta out" in capsys.readouterr().err


def test_augmentation_averages_scales_and_the_mirrored_picture(segment: Segment, tmp_path: Path) -> None:
    photo = save(tmp_path / "a.png", noise(0, 32, 48))
    assert segment(photo, extra=("--tta",)) == 0
    report = json.loads((tmp_path / "out" / "a_seg.json").read_text())
    assert report["inference"][0]["parameters"]["scales"] == [0.75, 1.0, 1.25]
    assert report["inference"][0]["parameters"]["flip"] is True


def test_results_lie_in_a_folder_of_their_own_where_none_is_named(
    tmp_path: Path, weights: Path, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "work" / "photo.jpg", noise(0))
    monkeypatch.chdir(tmp_path / "work")
    command = ["segment", "photo.jpg", "--bundle", str(BUNDLES / "ade20k_segmentation"), "--weights", str(weights)]
    assert main([*command, "--overlay", str(overlay)]) == 0
    assert names(tmp_path / "work" / "segmentation") == sorted([*of_case("photo"), "summary.json"])


def test_bundle_whose_metadata_do_not_say_rgb_is_taken_for_one_of_scans(
    tmp_path: Path, weights: Path, overlay: Path
) -> None:
    root = tmp_path / "ade20k_segmentation"
    shutil.copytree(BUNDLES / "ade20k_segmentation", root)
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    metadata["data_type"] = "nifti"
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    photo = save(tmp_path / "a.png", noise(0))
    command = ["segment", str(photo), "--bundle", str(root), "--weights", str(weights), "--overlay", str(overlay)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
