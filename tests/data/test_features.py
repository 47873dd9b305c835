"""Embeddings: what decides them, their order, and their precision."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.data.features import (
    CT_HU,
    HEAD_WINDOWS_HU,
    FeatureExtractor,
    FeatureSettings,
    choose_slices,
    pool_slices,
    state_sha256,
    windows_for,
)
from dinomed.errors import InputError, VolumeError
from dinomed.networks import create_backbone
from dinomed.networks.backbones import ViTBackbone
from dinomed.networks.packed_vit import PackedViT, can_pack

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    made = create_backbone("dinov3_vits16", **SMALL)
    with torch.no_grad():
        for parameter in made.parameters():  # biases and layer scale that a random start leaves at 0 or 1e-5
            parameter += 0.1 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def ct():
    generator = np.random.default_rng(0)
    return (400 * generator.standard_normal((20, 24, 6))).astype(np.float32), np.diag([1.0, 1.5, 5.0, 1.0])


def extractor_of(backbone, pool="cls", resize=32, precision="float32", **rest):
    return FeatureExtractor(backbone, FeatureSettings(pool, resize, **rest), precision=precision, batch_size=4)


def test_slices_are_thinned_evenly_from_end_to_end():
    assert choose_slices(10) == list(range(10))
    assert choose_slices(10, stride=3) == [0, 3, 6, 9]
    assert choose_slices(100, max_slices=3) == [0, 50, 99]
    assert choose_slices(101, stride=2, max_slices=1) == [50]
    assert choose_slices(3, max_slices=9) == [0, 1, 2]


def test_an_embedding_is_the_class_token_of_the_windowed_upright_slice(backbone, ct):
    array, affine = ct
    found = extractor_of(backbone, resize=None).extract_volume(array, affine)
    upright = ((np.clip(array[:, :, 2], -1000, 1000) + 1000) / 2000).T[::-1]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = torch.tensor(((upright[None] - mean[:, None, None]) / std[:, None, None])[None], dtype=torch.float32)
    with torch.no_grad():
        wanted = backbone.forward_last(image).class_token[0].numpy()
    np.testing.assert_allclose(found.slices[2], wanted, rtol=1e-4, atol=1e-4)
    assert found.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.axis == 2


def test_three_windows_are_one_a_channel(backbone, ct):
    array, affine = ct
    windows = [[0, 80], [-20, 180], [-1000, 1000]]
    found = extractor_of(backbone, resize=None, windows_hu=windows).extract_volume(array, affine)
    upright = np.stack([((np.clip(array[:, :, 2], low, high) - low) / (high - low)).T[::-1] for low, high in windows])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = torch.tensor(((upright - mean[:, None, None]) / std[:, None, None])[None], dtype=torch.float32)
    with torch.no_grad():
        wanted = backbone.forward_last(image).class_token[0].numpy()
    np.testing.assert_allclose(found.slices[2], wanted, rtol=1e-4, atol=1e-4)


def test_square_slices_are_resized_and_nothing_else(backbone, ct):
    extractor = extractor_of(backbone)
    for array, affine in ((ct[0][:, :20], np.diag([0.49, 0.49, 5.0, 1.0])), (ct[0], np.diag([1.2, 1.0, 5.0, 1.0]))):
        wanted = extractor.embed(extractor.resized(extractor.slice_batch(array)))
        np.testing.assert_array_equal(extractor.extract_volume(array, affine).slices, wanted)


def test_slices_keep_their_proportions_in_mm_with_air_beside_them(backbone, ct):
    extractor = extractor_of(backbone)
    batch = extractor.slice_batch(ct[0])  # 24 rows of 1.5 mm, 20 columns of 1 mm
    narrow = torch.nn.functional.interpolate(batch, (32, 18), mode="bilinear", antialias=True)
    wanted = torch.full((6, 3, 32, 32), -1000.0)
    wanted = extractor.slice_batch(wanted[:, 0].permute(1, 2, 0).numpy())
    wanted[..., 7:25] = narrow
    seen = extractor.seen_slices(ct[0], (1.5, 1.0))
    torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(extractor.extract_volume(*ct).slices, extractor.embed(seen))
    assert extractor_of(backbone, resize=None).seen_slices(ct[0], (1.5, 1.0)).shape == (6, 3, 24, 20)


def test_the_proportions_are_part_of_what_is_said_of_the_embeddings(backbone):
    assert "in mm" in extractor_of(backbone).describe()["proportions"]
    assert extractor_of(backbone, resize=None).describe()["proportions"] == "as stored"


def test_the_windows_are_part_of_what_is_said_of_the_embeddings(backbone):
    plain = extractor_of(backbone).describe()
    assert plain["windows_hu"] == [[-1000.0, 1000.0]] * 3
    assert extractor_of(backbone, windows_hu=HEAD_WINDOWS_HU).describe()["windows_hu"][0] == [0.0, 80.0]
    assert json.loads(json.dumps(plain)) == plain  # as a checkpoint and a report keep it


@pytest.mark.parametrize(
    "windows",
    [
        [[0, 80]],
        [[0, 80], [80, 0], [0, 1]],
        [[0, 80], [1], [0, 1]],
        5,
        [[0, 80], [0, float("inf")], [0, 1]],
        [["a", "b"]] * 3,
    ],
)
def test_windows_that_are_none_are_refused(windows):
    with pytest.raises(InputError, match="windows_hu must be three windows"):
        FeatureSettings(windows_hu=windows)


@pytest.mark.parametrize("settings", [{"stride": 1.5}, {"resize": "big"}, {"max_slices": True}, {"stride": None}])
def test_settings_that_are_no_whole_numbers_are_refused(settings):
    with pytest.raises(InputError, match=r"must be"):
        FeatureSettings(**settings)


def test_a_scan_with_frames_is_to_be_converted_as_nobody_can_choose_one(backbone, tmp_path):
    frames = np.arange(960, dtype=np.int16).reshape(8, 10, 6, 2)
    nibabel.save(nibabel.Nifti1Image(frames, np.eye(4)), tmp_path / "frames.nii")
    with pytest.raises(VolumeError, match="four-dimensional: it holds 2 frames; convert it to a three-dim") as caught:
        extractor_of(backbone).extract(tmp_path / "frames.nii")
    assert "--frame" not in str(caught.value)


def test_every_pool_says_what_it_is(backbone, ct):
    pools = ("cls", "patch", "both", "all", "mean", "meanmax")
    cls, patch, both, every, mean, meanmax = (extractor_of(backbone, pool).extract_volume(*ct) for pool in pools)
    assert cls.slices.shape == patch.slices.shape == (6, 32)
    np.testing.assert_array_equal(both.slices, np.concatenate([cls.slices, patch.slices], axis=1))
    np.testing.assert_allclose(both.volume, both.slices.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(every.slices[:, :64], both.slices)
    assert every.slices.shape == (6, 96)
    assert (every.slices[:, 64:] >= patch.slices).all()  # the maximum of the patch tokens
    np.testing.assert_array_equal(mean.slices, cls.slices)
    np.testing.assert_array_equal(meanmax.volume[:32], mean.volume)
    np.testing.assert_array_equal(meanmax.volume[32:], cls.slices.max(0))
    assert np.abs(cls.slices - patch.slices).max() > 1e-3


def test_voxel_order_does_not_change_the_embeddings(backbone, ct):
    array, affine = ct
    straight = extractor_of(backbone).extract_volume(array, affine)
    # The same scan stored with its axes turned round and its slices first, top to bottom.
    turned = np.ascontiguousarray(array.transpose(2, 0, 1)[::-1, ::-1])
    columns = affine[:, [2, 0, 1, 3]]
    shift = np.eye(4)
    shift[:2, 3] = turned.shape[0] - 1, turned.shape[1] - 1
    flipped = columns @ shift @ np.diag([-1.0, -1.0, 1.0, 1.0])
    other = extractor_of(backbone).extract_volume(turned, flipped)
    np.testing.assert_array_equal(other.slices, straight.slices)
    assert other.axis == 0
    assert other.indices.tolist() == [5, 4, 3, 2, 1, 0]


def test_values_beyond_the_window_do_not_count(backbone, ct):
    array, affine = ct
    far = np.where(array > 900, 5000.0, array).astype(np.float32)
    near = np.where(array > 900, 1000.0, array).astype(np.float32)
    first, second = (extractor_of(backbone).extract_volume(values, affine) for values in (far, near))
    np.testing.assert_array_equal(first.slices, second.slices)


def test_a_backbone_that_was_trained_on_ct_gets_its_own_normalisation(ct):
    torch.manual_seed(0)
    made = create_backbone("meddinov3_vitb16", **SMALL)
    batch = extractor_of(made).slice_batch(ct[0][:, :, :1])
    mean, std = CT_HU["meddinov3_vitb16"]
    expected = (np.clip(ct[0][:, :, 0], -1000, 1000).T[::-1] - mean) / std
    assert batch.shape == (1, 3, 24, 20)
    for channel in batch[0]:
        np.testing.assert_allclose(channel.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert windows_for("meddinov3_vitb16") is None
    assert windows_for("dinov3_vits16") == HEAD_WINDOWS_HU
    with pytest.raises(InputError, match="takes no windows"):
        extractor_of(made, windows_hu=HEAD_WINDOWS_HU)


@pytest.mark.parametrize("name", ["dinov3_vits16", "meddinov3_vitb16"])
@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
def test_the_packed_transformer_agrees_with_float32(name, size):
    torch.manual_seed(0)
    made = create_backbone(name, embed_dim=64, depth=4, num_heads=2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    if not can_pack(made):
        pytest.skip("this PyTorch has no oneDNN products")
    image = torch.randn(3, 3, *size)
    assert isinstance(made, ViTBackbone)
    with torch.inference_mode():
        exact, packed = made.forward_last(image), PackedViT(made).forward_last(image)
    for ours, wanted in zip(packed, exact, strict=True):
        assert ours.shape == wanted.shape
        dim = 1 if wanted.ndim == 4 else -1
        assert torch.cosine_similarity(ours.float(), wanted, dim=dim).min() > 0.999


def test_gated_layers_are_not_packed():
    assert not can_pack(create_backbone("dinov3_vits16plus", **SMALL))
    assert not can_pack(create_backbone("dinov3_convnext_tiny", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)))


def test_bfloat16_embeddings_point_where_float32_ones_do(backbone, ct):
    exact = extractor_of(backbone).extract_volume(*ct).slices
    rounded = extractor_of(backbone, precision="bfloat16").extract_volume(*ct).slices
    cosines = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() > 0.999
    assert np.abs(exact - rounded).max() > 0


def test_pictures_are_embedded_too(backbone, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = extractor_of(backbone).extract(tmp_path / "a.png")
    assert found.slices.shape == (1, 32)
    assert found.axis == -1


def test_scans_are_read_from_files(backbone, ct, tmp_path):
    nibabel.save(nibabel.Nifti1Image(*ct), tmp_path / "ct.nii.gz")
    found = extractor_of(backbone, max_slices=2).extract(tmp_path / "ct.nii.gz")
    assert found.indices.tolist() == [0, 5]


def test_numbers_that_are_none_are_refused(backbone, ct):
    array = ct[0].copy()
    array[3, 3, 3] = np.nan
    with pytest.raises(VolumeError, match="no numbers"):
        extractor_of(backbone).extract_volume(array, ct[1])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [({"pool": "max"}, "pool 'max'"), ({"resize": 8}, "resize"), ({"stride": 0}, "stride"), ({"max_slices": 0}, "max")],
)
def test_settings_that_make_no_sense_are_refused(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        FeatureSettings(**wrong)


def test_the_mean_over_slices_is_a_plain_mean():
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(pool_slices(rows, "cls"), rows.mean(0), rtol=1e-6)


def test_the_checksum_of_weights_sees_every_change(backbone):
    before = state_sha256(backbone)
    assert state_sha256(backbone) == before
    parameter = next(backbone.parameters())
    with torch.no_grad():
        parameter.view(-1)[0] += 1e-3
        changed = state_sha256(backbone)
        parameter.view(-1)[0] -= 1e-3
    assert changed != before
