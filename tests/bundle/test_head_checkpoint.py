"""The file of a head is used only where everything is as it was in its training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dinomed.bundle.checkpoint import load_network
from dinomed.bundle.head_checkpoint import (
    HeadAbout,
    head_shape,
    load_head,
    loaded,
    preprocessing_of,
    read_about,
    save_head,
)
from dinomed.data.features import HEAD_WINDOWS_HU, FeatureExtractor, FeatureSettings
from dinomed.errors import WeightsError
from dinomed.networks import create_backbone
from dinomed.networks.bags import BagHead

LABELS = ("any", "epidural")


def make_extractor(seed: int = 0, name: str = "dinov3_vit_tiny16", **settings: Any) -> FeatureExtractor:
    torch.manual_seed(seed)
    backbone = create_backbone(name, embed_dim=32, depth=1, num_heads=2)
    given = {"resize": 32, "windows_hu": HEAD_WINDOWS_HU, **settings}
    return FeatureExtractor(backbone, FeatureSettings(**given), precision="float32")


def make_head(**options: Any) -> BagHead:
    return BagHead(**{"in_features": 32, "num_classes": 2, "hidden_features": 8, "attention_features": 4, **options})


def about_of(head: BagHead, extractor: FeatureExtractor) -> HeadAbout:
    hidden, attention = head_shape(head)
    return HeadAbout(
        labels=LABELS,
        pooling=head.pooling,
        features=extractor.settings.pool,
        in_features=head.in_features,
        hidden_features=hidden,
        attention_features=attention,
        preprocessing=preprocessing_of(extractor),
        backbone=extractor.backbone.name,
        backbone_sha256=extractor.backbone_sha256,
        calibration={"any": (2.0, -0.5), "epidural": None},
        thresholds={"any": 0.4, "epidural": None},
        validation={"any": 0.9, "epidural": None, "macro": 0.9},
        seed=1,
        seen={"train": ["ab"], "validation": []},
    )


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return make_extractor()


@pytest.fixture
def file(tmp_path: Path, extractor: FeatureExtractor) -> Path:
    torch.manual_seed(5)
    head = make_head()
    save_head(tmp_path / "best.pt", head, about_of(head, extractor))
    return tmp_path / "best.pt"


def test_a_head_comes_back_as_it_was(file, extractor):
    torch.manual_seed(5)
    wanted, found = make_head(), make_head()
    about = load_head(found, file, "cpu", LABELS, extractor)
    assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in found.state_dict().items())
    assert not found.training
    assert loaded(found, about) is found
    assert about == about_of(wanted, extractor)
    assert read_about(file).calibration["any"] == (2.0, -0.5)


def test_the_file_holds_plain_values_that_other_programs_can_read(file):
    content = torch.load(file, weights_only=True)
    assert set(content) == {"network", "about"}
    assert json.loads(json.dumps(content["about"], allow_nan=False)) == content["about"]
    load_network(make_head(), file)  # as any other network of a bundle


def test_probabilities_are_calibrated_where_that_was_possible(file):
    logits = torch.tensor([[1.0, 1.0], [-3.0, 0.0]])
    found = read_about(file).probabilities(logits)
    wanted = torch.sigmoid(torch.stack([2.0 * logits[:, 0] - 0.5, logits[:, 1]], dim=1))
    torch.testing.assert_close(found, wanted)


CHANGES = [
    ({"resize": 48}, "its resize was 32 in training, and is 48 here; set resize to the former"),
    ({"stride": 2}, "its stride was 1 in training, and is 2 here"),
    ({"max_slices": 9}, "its max_slices was None in training, and is 9 here"),
    ({"windows_hu": ((0, 81), *HEAD_WINDOWS_HU[1:])}, "its windows_hu was [[0.0, 80.0],"),
    ({"windows_hu": None}, "its windows_hu was [[0.0, 80.0],"),
    ({"pool": "patch"}, "its features was cls in training, and is patch here; set features to the former"),
]


@pytest.mark.parametrize(("settings", "words"), CHANGES)
def test_another_preprocessing_is_refused(file, settings, words):
    with pytest.raises(WeightsError) as caught:
        load_head(make_head(), file, None, LABELS, make_extractor(**settings))
    assert words in str(caught.value)


def test_another_normalisation_is_refused(file, extractor, monkeypatch):
    described = {**extractor.describe(), "normalisation": [65.1, 178.0]}
    monkeypatch.setattr(extractor, "describe", lambda: described)
    with pytest.raises(
        WeightsError, match=r"its normalisation was \[\[0.485.* in training, and is \[65.1, 178.0\] here"
    ):
        load_head(make_head(), file, None, LABELS, extractor)


def test_another_precision_is_welcome(file, extractor):
    other = FeatureExtractor(extractor.backbone, extractor.settings, precision="bfloat16")
    load_head(make_head(), file, None, LABELS, other)


def test_another_backbone_or_other_weights_of_it_are_refused(file):
    with pytest.raises(WeightsError, match=r"checksum [0-9a-f]{12}, and those here have [0-9a-f]{12}"):
        load_head(make_head(), file, None, LABELS, make_extractor(seed=1))
    with pytest.raises(WeightsError, match=r"trained on the backbone dinov3_vit_tiny16, and .* has dinov3_vits16"):
        load_head(make_head(), file, None, LABELS, make_extractor(name="dinov3_vits16"))


@pytest.mark.parametrize("labels", [("epidural", "any"), ("any",), ("any", "subdural")])
def test_other_labels_or_another_order_are_refused(file, extractor, labels):
    with pytest.raises(WeightsError, match=r"trained for the labels any, epidural, and the configuration has "):
        load_head(make_head(num_classes=len(labels)), file, None, labels, extractor)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "mean"}, "its pooling is attention, and the configuration has mean; set pooling to the former"),
        ({"hidden_features": 0}, "its hidden_features is 8, and the configuration has 0"),
        ({"attention_features": 5}, "its attention_features is 4, and the configuration has 5"),
        ({"in_features": 64}, "its in_features is 32, and the configuration has 64"),
    ],
)
def test_another_form_of_head_is_refused_and_stays_as_it_was(file, extractor, options, words):
    head = make_head(**options)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    with pytest.raises(WeightsError, match=words):
        load_head(head, file, None, LABELS, extractor)
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


def test_files_that_are_no_finished_heads_are_refused(tmp_path, file, extractor):
    content = torch.load(file, weights_only=True)
    for name, broken, words in (
        ("bare", content["network"], "run its training to the end"),
        ("format", {**content, "about": {**content["about"], "format": 2}}, "is of format 2"),
        ("short", {**content, "about": {"format": 1, "labels": ["any"]}}, "is damaged"),
        ("weights", {**content, "network": {}}, "is empty"),
    ):
        torch.save(broken, tmp_path / f"{name}.pt")
        with pytest.raises(WeightsError, match=words):
            load_head(make_head(), tmp_path / f"{name}.pt", None, LABELS, extractor)
    (tmp_path / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        read_about(tmp_path / "pointer.pt")
    with pytest.raises(WeightsError, match="there is no such weights file; train the bundle"):
        read_about(tmp_path / "nowhere.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path, extractor):
    head = make_head()
    with torch.no_grad():
        head.classify[1].weight[0, 0] = float("nan")
    save_head(tmp_path / "best.pt", head, about_of(head, extractor))
    with pytest.raises(WeightsError, match="not finite"):
        load_head(make_head(), tmp_path / "best.pt", None, LABELS, extractor)


def test_a_head_of_one_linear_layer_and_without_attention(tmp_path, extractor):
    head = make_head(pooling="meanmax", hidden_features=0)
    assert head_shape(head) == (0, None)
    save_head(tmp_path / "best.pt", head, replace(about_of(head, extractor)))
    load_head(make_head(pooling="meanmax", hidden_features=0), tmp_path / "best.pt", None, LABELS, extractor)
