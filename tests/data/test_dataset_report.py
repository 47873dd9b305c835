"""The report as text, JSON and picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_sets import make_ade20k, make_masks, noise, save
from PIL import Image

from dinomed.data.dataset_checks import check_datasets
from dinomed.data.dataset_report import FILES, MOST_LINES, to_report, to_text, write_report
from dinomed.data.datasets import open_datasets
from dinomed.errors import OutputError


def report_on(path: Path, **options: Any) -> dict[str, Any]:
    return to_report(str(path), check_datasets(open_datasets(path, strict=False, **options), workers=1))


def test_json_holds_splits_balance_and_findings(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    (tmp_path / "annotations/training/b.png").unlink()
    report = json.loads(json.dumps(report_on(tmp_path), allow_nan=False))
    assert report["schema"] == "dinomed-data-1"
    assert report["clean"] is False
    training, validation = report["splits"]
    assert (training["split"], training["images"], training["readable"]) == ("training", 1, 1)
    assert training["smallest"] == {"width": 32, "height": 24}
    assert validation["split"] == "validation"
    assert len(training["classes"]) == 150
    present = [each for each in training["classes"] if each["images"]]
    assert [each["name"] for each in present] == ["wall", "building", "flag"]
    assert sum(each["share"] for each in present) == pytest.approx(1.0)
    assert sum(each["pixels"] for each in present) + training["ignored_pixels"] == 24 * 32
    (finding,) = report["findings"]
    assert finding["kind"] == "missing pair"
    assert finding["split"] == "training"
    assert finding["file"].endswith("b.jpg")


def test_text_names_balance_findings_and_their_number(tmp_path: Path) -> None:
    make_masks(tmp_path)
    (tmp_path / "masks" / "p0.png").unlink()
    text = to_text(report_on(tmp_path, num_classes=5))
    assert f"{tmp_path / 'images'}: image-mask, segmentation, 2 pictures" in text
    assert "from 32 x 24 to 32 x 24 pixels" in text
    assert "note: 2 classes do not occur: class 3, class 4" in text
    assert "missing pair: 1\n" in text
    assert "p0.jpg has no label map p0.*" in text
    assert text.endswith("1 finding")
    (tmp_path / "images" / "p0.jpg").unlink()
    assert to_text(report_on(tmp_path)).endswith("no findings")


def test_text_is_short_where_json_is_whole(tmp_path: Path) -> None:
    for index in range(MOST_LINES + 6):
        save(tmp_path / f"{index:02}.png", noise(0, 4, 4))
    report = report_on(tmp_path)
    assert len(report["findings"]) == MOST_LINES + 5
    assert to_text(report).count("same pixels") == MOST_LINES
    assert "and 5 more" in to_text(report)


def test_shares_of_classification_are_those_of_pictures(tmp_path: Path) -> None:
    for index in range(4):
        save(tmp_path / ("ant" if index else "bee") / f"{index}.png", noise(index))
    ants, bees = report_on(tmp_path)["splits"][0]["classes"]
    assert (ants["images"], ants["pixels"], ants["share"]) == (3, None, 0.75)
    assert (bees["name"], bees["share"]) == ("bee", 0.25)


def test_all_three_files_are_written_and_the_picture_shows_bars(tmp_path: Path) -> None:
    make_ade20k(tmp_path / "data $x$_y^")
    report = report_on(tmp_path / "data $x$_y^")
    written = write_report(report, tmp_path / "new" / "out")
    assert [path.name for path in written] == list(FILES)
    assert sorted(each.name for each in (tmp_path / "new" / "out").iterdir()) == sorted(FILES)
    assert json.loads(written[1].read_text(encoding="utf-8")) == report
    assert written[0].read_text(encoding="utf-8") == to_text(report) + "\n"
    pixels = np.asarray(Image.open(written[2]).convert("RGB")).astype(int)
    blue = (np.abs(pixels - (0x00, 0x72, 0xB2)) < 8).all(axis=-1)
    assert blue.sum() > 500
    assert (blue.any(axis=1)).sum() >= 3


def test_bars_are_as_long_as_the_shares_say(tmp_path: Path) -> None:
    shares = {"often": 0.9, "now and then": 0.099, "rarely": 0.001, "never": 0.0}
    classes = [
        {"label": label, "name": name, "images": int(share > 0), "pixels": 1, "share": share}
        for label, (name, share) in enumerate(shares.items())
    ]
    split = {"layout": "list", "split": "", "task": "segmentation", "images": 1, "classes": classes, "notes": []}
    report = {"splits": [split | {"source": "a", "smallest": None, "largest": None}], "findings": [], "clean": True}
    pixels = np.asarray(Image.open(write_report(report, tmp_path)[2]).convert("RGB")).astype(int)
    rows = (np.abs(pixels - (0x00, 0x72, 0xB2)) < 8).all(axis=-1).sum(axis=1)
    lengths = [int(length) for length in dict.fromkeys(rows.tolist()) if length > 10]
    assert len(lengths) == 3  # a class that never occurs has no bar
    assert lengths == sorted(lengths, reverse=True)  # the most frequent class comes first


def test_pictures_without_labels_have_a_report_too(tmp_path: Path) -> None:
    save(tmp_path / "in" / "images" / "a.png", noise(0))
    report = report_on(tmp_path / "in")
    assert report["splits"][0]["classes"] == []
    assert len(write_report(report, tmp_path / "out")) == 3


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    name = b"x\xff.png"
    source = save(tmp_path / "ok.png", noise(0))
    try:
        (tmp_path / name.decode("utf-8", "surrogateescape")).write_bytes(source.read_bytes())
    except OSError:
        pytest.skip("this file system takes only names that are text")
    report = report_on(tmp_path)
    assert len(report["findings"]) == 1
    json.dumps(report, ensure_ascii=False).encode("utf-8")
    write_report(report, tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    report = report_on(make_masks(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"data_check\.txt cannot be written .* check --output"):
        write_report(report, tmp_path / "file")
