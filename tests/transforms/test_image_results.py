"""What a segmented picture leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_sets import noise, save
from PIL import Image

from dinomed.errors import OutputError
from dinomed.transforms import image_prediction
from dinomed.transforms.image_picture import draw_overlay, draw_side_by_side, validation_picture
from dinomed.transforms.image_prediction import ImagePrediction, is_own_png, picture_name, write_label_png
from dinomed.transforms.natural_images import read_label_map
from dinomed.transforms.palette import voc_colours
from dinomed.transforms.report import RunInfo

RUN = RunInfo(bundle="tiny", version="1", weights_file="a.pt", weights_sha256="0" * 64, device="cpu")


def label_map(height: int = 30, width: int = 40) -> np.ndarray:
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[5:20, 10:30] = 2
    return labels


def prediction(folder: Path, labels: np.ndarray | None = None, **settings: Any) -> ImagePrediction:
    labels = label_map() if labels is None else labels
    path = save(folder / "in" / "a.b.jpg", noise(0, *labels.shape))
    values: dict[str, Any] = {
        "path": path,
        "labels": labels,
        "label_names": {0: "wall", 1: "sky", 2: "tree"},
        "mean_confidence": {0: 0.9, 1: None, 2: 0.4},
        "network_size": (16, 21),
        "run": RUN,
        "timings_s": {"load": 0.1},
    }
    return ImagePrediction(**{**values, **settings})


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_four_results_carry_the_pictures_name(tmp_path: Path) -> None:
    paths = prediction(tmp_path).save(tmp_path / "out")
    names = ["a.b_seg.json", "a.b_seg.png", "a.b_seg_overlay.png", "a.b_seg_side_by_side.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert paths.labels.name == "a.b_seg.png"


@pytest.mark.parametrize(
    ("name", "wanted"), [("a.JPG", "a"), ("x/a.b.tiff", "a.b"), (".jpg", ".jpg"), ("a", "a"), ("ä $.webp", "ä $")]
)
def test_results_are_named_after_the_file(name: str, wanted: str) -> None:
    assert picture_name(name) == wanted


def test_label_map_has_one_channel_and_vocs_palette(tmp_path: Path) -> None:
    paths = prediction(tmp_path).save(tmp_path)
    with Image.open(paths.labels) as image:
        assert image.mode == "P"
        assert image.size == (40, 30)
        np.testing.assert_array_equal(np.asarray(image), label_map())
        np.testing.assert_array_equal(np.array(image.getpalette()).reshape(-1, 3), voc_colours())
    np.testing.assert_array_equal(read_label_map(paths.labels), label_map())


def test_many_classes_make_a_label_map_of_16_bits(tmp_path: Path) -> None:
    labels = label_map().astype(np.int32) * 200
    write_label_png(labels, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode.startswith("I")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), labels)
    names = dict(enumerate(map(str, range(401))))
    paths = prediction(tmp_path, labels, label_names=names, mean_confidence={}).save(tmp_path / "out")
    np.testing.assert_array_equal(read_label_map(paths.labels), labels)


def test_report_counts_pixels_and_never_holds_nan(tmp_path: Path) -> None:
    result = prediction(tmp_path, mean_confidence={0: 0.9, 1: float("nan"), 2: 0.4})
    report = strict(result.save(tmp_path).report)
    assert report["size"] == {"height": 30, "width": 40}
    rows = {row["name"]: row for row in report["labels"]}
    assert rows["tree"]["pixels"] == 300
    assert rows["tree"]["share"] == pytest.approx(0.25)
    assert rows["sky"]["mean_confidence"] is None
    assert report["input"]["name"] == "a.b.jpg"
    assert report["input"]["exif_orientation"] == 1
    assert "tree (0.40)" in report["warnings"][0]
    assert report["timings_s"]["write"] > 0
    assert list(result.shares) == ["wall", "tree"]


def test_label_without_a_name_is_reported(tmp_path: Path) -> None:
    rows = prediction(tmp_path, label_names={0: "wall"}).table
    assert rows[-1] == {"value": 2, "name": "label 2", "pixels": 300, "share": 0.25, "mean_confidence": 0.4}


def test_existing_results_are_not_replaced_unasked(tmp_path: Path) -> None:
    result = prediction(tmp_path)
    result.save(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        result.save(tmp_path)
    result.save(tmp_path, overwrite=True)


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_prediction, "draw_side_by_side", fail)
    with pytest.raises(OutputError, match="No space left"):
        prediction(tmp_path).save(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_report_is_never_beside_another_runs_label_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = prediction(tmp_path)
    paths = result.save(tmp_path / "out")
    replace, moved = image_prediction.os.replace, []

    def stop(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(image_prediction.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out", overwrite=True)
    assert not paths.report.exists()
    assert is_own_png(paths.labels)


def test_strangers_pngs_are_told_apart(tmp_path: Path) -> None:
    assert not is_own_png(save(tmp_path / "a.png", noise(0)))
    assert not is_own_png(tmp_path / "absent.png")


def test_overlay_paints_classes_and_leaves_the_background_alone() -> None:
    pixels = np.full((30, 40, 3), 200, dtype=np.uint8)
    painted = np.asarray(draw_overlay(pixels, label_map(), background_label=0))
    assert (painted[25, 5] == 200).all()
    assert painted[10, 20, 1] > painted[10, 20, 0], "class 2 is green"
    plain = np.asarray(draw_overlay(pixels, label_map()))
    assert (plain[25, 5] < 200).all(), "class 0 is black"
    assert (plain[19, 15] == 255).all(), "a line between two classes"


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 2), (1000, 3000)])
def test_pictures_of_any_shape_can_be_drawn(size: tuple[int, int]) -> None:
    labels = np.zeros(size, dtype=np.int32)
    labels[-1, -1] = 299
    rows = [
        {"value": value, "name": name, "pixels": int((labels == value).sum()), "share": float((labels == value).mean())}
        for value, name in ((0, "wall"), (299, "a very long name of a class that cannot fit into its column $x$"))
    ]
    sheet = draw_side_by_side(noise(0, *size), labels, rows)
    overlay = draw_overlay(noise(0, *size), labels)
    assert max(overlay.size) <= 1600
    assert sheet.width >= 2 * overlay.width


def test_validation_picture_has_three_parts_of_one_size() -> None:
    import torch

    item = {
        "image": torch.randn(3, 20, 24),
        "label": torch.full((1, 41, 50), 255),
        "pred": torch.zeros(1, 41, 50, dtype=torch.uint8),
    }
    shown = validation_picture(item)
    assert tuple(shown.shape) == (3, 20, 72)
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    np.testing.assert_allclose(shown[:, 0, 30].numpy(), voc_colours()[255] / 255, atol=1e-6)
