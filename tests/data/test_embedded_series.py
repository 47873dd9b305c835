"""Series embedded once: bags, what stands beside them, what breaks, and how bags of different lengths are joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from series_tables import write_ct

from dinomed.data.embedded_series import EmbeddedSeries, EmbedSeriesd, collate_bags
from dinomed.data.features import FeatureExtractor, FeatureSettings, windows_for
from dinomed.errors import InputError, OutputError
from dinomed.networks import create_backbone
from dinomed.networks.bags import BagHead


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    torch.manual_seed(0)
    backbone = create_backbone("dinov3_vit_tiny16", embed_dim=32, depth=1, num_heads=2)
    settings = FeatureSettings("patch", 32, windows_hu=windows_for(backbone.name))
    return FeatureExtractor(backbone, settings, precision="float32")


class Counting:
    """An extractor that counts."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.inner, self.calls = extractor, 0

    def describe(self):
        return self.inner.describe()

    def extract(self, path):
        self.calls += 1
        return self.inner.extract(path)


def items_of(folder: Path, slices: tuple[int, ...] = (3, 5, 4)) -> list[dict]:
    return [
        {
            "image": str(write_ct(folder / f"{k}.nii", k, 40.0 * k, shape=(16, 20, count))),
            "label": [float(k), 0.0],
            "case": f"series {k}",
            "study": f"study {k}",
        }
        for k, count in enumerate(slices)
    ]


def test_a_series_becomes_a_bag_with_the_places_of_its_slices(extractor, tmp_path):
    (item,) = items_of(tmp_path, (5,))
    found = EmbedSeriesd("image", extractor)(item)
    wanted = extractor.extract(item["image"])
    np.testing.assert_array_equal(found["image"].numpy(), wanted.slices)
    assert found["image"].shape == (5, 32)
    assert found["slice_indices"].tolist() == [0, 1, 2, 3, 4]
    assert found["slice_axis"] == 2
    assert found["image_path"] == item["image"]
    assert item["image"].endswith("0.nii")  # what was given stays as it was


def test_series_are_embedded_once_and_found_in_the_cache_by_the_next_run(extractor, tmp_path):
    items, counting = items_of(tmp_path), Counting(extractor)
    first = EmbeddedSeries(items, EmbedSeriesd("image", counting, tmp_path / "cache"))
    _ = [first[k] for _ in range(3) for k in range(3)]
    assert counting.calls == 3
    second = EmbeddedSeries(items, EmbedSeriesd("image", counting, tmp_path / "cache"))
    assert counting.calls == 3
    for one, other in zip(first.items, second.items, strict=True):
        assert torch.equal(one["image"], other["image"])
    assert first.labels().tolist() == [[0, 0], [1, 0], [2, 0]]
    assert first[1]["case"] == "series 1"


def test_every_series_that_breaks_is_named(extractor, tmp_path):
    items = items_of(tmp_path)
    Path(items[0]["image"]).write_bytes(b"no scan")
    Path(items[2]["image"]).unlink()
    with pytest.raises(InputError) as caught:
        EmbeddedSeries(items, EmbedSeriesd("image", extractor, tmp_path / "cache"))
    words = str(caught.value)
    assert words.startswith("2 of 3 series cannot be embedded: series 0 (")
    assert "series 2 (" in words
    assert "series 1" not in words


def test_many_broken_series_are_counted(extractor, tmp_path):
    items = [{"image": str(tmp_path / f"{k}.nii"), "case": f"s{k}"} for k in range(25)]
    with pytest.raises(InputError, match=r"25 of 25 series .*; and 5 more; repair"):
        EmbeddedSeries(items, EmbedSeriesd("image", extractor))


def test_no_series_at_all_are_refused(extractor):
    with pytest.raises(InputError, match="no series to embed"):
        EmbeddedSeries([], EmbedSeriesd("image", extractor))


def test_a_cache_that_cannot_be_written_to_is_refused_at_once(extractor, tmp_path):
    (tmp_path / "file").write_text("in the folder's place")
    with pytest.raises(OutputError, match=r"cache folder .*file cannot be written to"):
        EmbedSeriesd("image", extractor, tmp_path / "file")


def test_a_cache_that_becomes_unwritable_stops_the_run_and_is_no_fault_of_a_series(extractor, tmp_path, monkeypatch):
    embed = EmbedSeriesd("image", extractor, tmp_path / "cache")

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    items = items_of(tmp_path, (3,))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
        EmbeddedSeries(items, embed)


def test_bags_of_different_lengths_are_joined_so_that_only_their_own_slices_count(extractor, tmp_path):
    series = EmbeddedSeries(items_of(tmp_path), EmbedSeriesd("image", extractor))
    batch = collate_bags(series.items)
    assert batch["image"].shape == (3, 5, 32)
    assert batch["valid"].sum(1).tolist() == [3, 5, 4]
    assert batch["slice_indices"][0].tolist() == [0, 1, 2, -1, -1]
    assert batch["label"].dtype == torch.float32
    assert batch["case"] == ["series 0", "series 1", "series 2"]
    assert batch["study"] == ["study 0", "study 1", "study 2"]
    assert "patient" not in batch
    head = BagHead(32, 2).eval()
    together = head(batch["image"], batch["valid"])
    for row, item in enumerate(series.items):
        alone = collate_bags([item])
        torch.testing.assert_close(head(alone["image"], alone["valid"])[0], together[row], rtol=1e-5, atol=1e-6)


def test_items_without_labels_are_joined_too(extractor, tmp_path):
    embed = EmbedSeriesd("image", extractor)
    batch = collate_bags([embed({"image": item["image"]}) for item in items_of(tmp_path)])
    assert "label" not in batch
    assert batch["image_path"][2].endswith("2.nii")
    assert batch["slice_axis"].tolist() == [2, 2, 2]
