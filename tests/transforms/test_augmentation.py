"""Augmentation presets: picture and labels stay together, the border is ignored, draws are repeatable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from torchvision.transforms import v2

from dinomed.errors import InputError
from dinomed.transforms.augmentation import IMAGENET_MEAN, RandTorchvisiond, load_preset, preset_names

PRESETS = ("industrial", "medical-conservative", "natural", "satellite")
LEVELS = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])


def blocks(height: int = 60, width: int = 80) -> dict[str, object]:
    """A picture whose red channel shows the label: five vertical bands, each of its own level."""
    labels = (torch.arange(width) * 5 // width).expand(1, height, width).contiguous().long()
    image = LEVELS[labels].expand(3, height, width).contiguous()
    meta = {"filename_or_obj": "a.png"}
    return {"image": MetaTensor(image, meta=meta), "label": MetaTensor(labels, meta=meta), "name": "a"}


def geometry_only(augmentation: RandTorchvisiond) -> RandTorchvisiond:
    """The same without what changes colours, so that a pixel still shows its label."""
    colours = (v2.ColorJitter, v2.RandomPhotometricDistort, v2.RandomApply)
    kept = [
        each
        for each in augmentation.transform.transforms
        if not isinstance(each, colours) or (isinstance(each, v2.RandomApply) and _moves(each))
    ]
    return RandTorchvisiond(kept)


def _moves(each: v2.RandomApply) -> bool:
    return isinstance(each.transforms[0], v2.RandomRotation)


def test_the_four_presets_come_with_the_package() -> None:
    assert tuple(preset_names()) == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_give_the_asked_size_and_only_labels_that_were_there(name: str) -> None:
    augment = load_preset(name, size=(48, 64))
    augment.set_random_state(0)
    for _ in range(8):
        data = augment(blocks())
        assert data["image"].shape == (3, 48, 64)
        assert data["label"].shape == (1, 48, 64)
        assert data["label"].dtype == torch.int64
        assert data["image"].dtype == torch.float32
        assert float(data["image"].min()) >= -1e-6
        assert float(data["image"].max()) <= 1.0 + 1e-6
        assert set(data["label"].unique().tolist()) <= {0, 1, 2, 3, 4, 255}
        assert data["name"] == "a"
        assert isinstance(data["image"], MetaTensor)
        assert data["image"].meta["filename_or_obj"] == "a.png"


@pytest.mark.parametrize("name", PRESETS)
def test_labels_follow_their_picture(name: str) -> None:
    augment = geometry_only(load_preset(name, size=(64, 64)))
    augment.set_random_state(1)
    agreement = []
    for _ in range(10):
        data = augment(blocks())
        inside = (data["label"] != 255)[0]
        shown = (data["image"][0][..., None] - LEVELS).abs().argmin(dim=-1)
        agreement.append(float((shown == data["label"][0])[inside].float().mean()))
    assert min(agreement) > 0.93  # all but the blurred seams of the bands


@pytest.mark.parametrize("name", PRESETS)
def test_presets_do_change_the_picture(name: str) -> None:
    augment = load_preset(name, size=(60, 80))
    augment.set_random_state(0)
    results = torch.stack([augment(blocks())["image"].as_tensor() for _ in range(4)])
    assert (results[1:] - results[:1]).abs().flatten(1).mean(dim=1).min() > 0.005


@pytest.mark.parametrize(("name", "ignored"), [(name, ignored) for name in PRESETS for ignored in (255, 99)])
def test_what_lies_beyond_the_edge_is_ignored_and_filled_with_the_mean(name: str, ignored: int) -> None:
    augment = geometry_only(load_preset(name, size=(96, 96), ignore_index=ignored))
    augment.set_random_state(2)
    data = blocks(20, 96)  # much too low for the crop, at any scale
    data["image"] = MetaTensor(torch.zeros(3, 20, 96))
    result = augment(data)
    border = result["label"][0] == ignored
    assert border.float().mean() > 0.3
    filled = result["image"].as_tensor()[:, border]
    mean = torch.tensor(IMAGENET_MEAN)[:, None]
    assert float(((filled - mean).abs() < 1e-3).all(dim=0).float().mean()) > 0.9  # all but interpolated seams
    assert not (result["image"].as_tensor()[:, ~border] - mean).abs().lt(1e-3).all(dim=0).any()


def test_medical_preset_mirrors_nothing() -> None:
    augment = load_preset("medical-conservative", size=(64, 64))
    augment.set_random_state(0)
    for _ in range(30):
        labels = augment(blocks())["label"][0]
        columns = torch.arange(64.0).expand(64, 64)
        assert columns[labels == 0].mean() < columns[labels == 2].mean() < columns[labels == 4].mean()


def test_satellite_preset_turns_and_natural_keeps_up_above() -> None:
    data = blocks()
    data["label"] = (torch.arange(64) * 5 // 64)[None, :, None].expand(1, 64, 64).contiguous()
    data["image"] = torch.zeros(3, 64, 64)
    rows = torch.arange(64.0)[:, None].expand(64, 64)
    spread = {}
    for name in ("natural", "satellite"):
        augment = load_preset(name, size=(64, 64))
        augment.set_random_state(0)
        labels = [augment(data)["label"][0] for _ in range(20)]
        pairs = [(found, *found[found != 255].unique()[[0, -1]]) for found in labels]
        spread[name] = [float(rows[f == high].mean() - rows[f == low].mean()) for f, low, high in pairs if low != high]
    assert min(spread["natural"]) > 0
    assert min(spread["satellite"]) < -5
    assert any(abs(each) < 3 for each in spread["satellite"])


def test_the_same_state_gives_the_same_draws_and_leaves_torch_alone() -> None:
    augment = Compose([load_preset("natural", size=(32, 32))])
    results = []
    for outer_seed in (0, 1):
        torch.manual_seed(outer_seed)
        before = torch.get_rng_state()
        augment.set_random_state(7)
        results.append(augment(blocks())["image"].as_tensor())
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)
    augment.set_random_state(8)
    assert not torch.equal(augment(blocks())["image"].as_tensor(), results[0])


def test_pictures_without_label_map_and_with_class_number_pass() -> None:
    augment = load_preset("industrial", size=(32, 32))
    assert augment({"image": torch.rand(3, 40, 40)})["image"].shape == (3, 32, 32)
    assert augment({"image": torch.rand(3, 40, 40), "label": 4})["label"] == 4


def test_label_map_of_another_size_is_refused() -> None:
    augment = load_preset("natural", size=(32, 32))
    with pytest.raises(InputError, match="is 40 x 20 pixels but its picture is 40 x 30"):
        augment({"image": torch.rand(3, 30, 40), "label": torch.zeros(1, 20, 40, dtype=torch.long)})


def test_preset_is_one_line_of_a_bundle() -> None:
    parser = ConfigParser(
        {"augment": {"_target_": "dinomed.transforms.augmentation.load_preset", "name": "satellite", "size": [16, 16]}}
    )
    assert parser.get_parsed_content("augment")(blocks())["image"].shape == (3, 16, 16)


def test_own_file_is_read_like_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "size: [8, 8]\naugmentation:\n  _target_: dinomed.transforms.augmentation.RandTorchvisiond\n"
        "  transforms:\n    - {_target_: torchvision.transforms.v2.RandomCrop, size: '@size'}\n"
    )
    assert load_preset(str(path), size=(4, 6))(blocks())["image"].shape == (3, 4, 6)
    (tmp_path / "empty.yaml").write_text("size: 3\n")
    with pytest.raises(InputError, match="has no id `augmentation`"):
        load_preset(str(tmp_path / "empty.yaml"))


def test_unknown_presets_files_and_settings_are_named() -> None:
    with pytest.raises(InputError, match="no augmentation preset 'neutral'; choose from industrial"):
        load_preset("neutral")
    with pytest.raises(InputError, match="there is no file"):
        load_preset("none.yaml")
    with pytest.raises(InputError, match="has no setting 'sise'; it has image_key"):
        load_preset("natural", sise=3)


@pytest.mark.parametrize("size", [[32], 32, [0, 32], [32, 32, 32], "abc", [32.5, 32], None])
def test_a_size_that_is_no_height_and_width_is_refused(size: object) -> None:
    with pytest.raises(InputError, match=r"natural cannot cut pictures to the size .* give height and width"):
        load_preset("natural", size=size)
