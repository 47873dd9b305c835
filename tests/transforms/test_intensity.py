"""Percentile normalisation, windows, gamma and scalar normalisation."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from dinomed.transforms.intensity import (
    FixedGammad,
    NormaliseIntensityd,
    NormalisePercentilesd,
    WindowHUd,
    fixed_gamma,
    foreground_percentiles,
    normalise_intensity,
    normalise_percentiles,
    window_hu,
)


def head(shape=(96, 100, 90), noise: float = 0.0) -> torch.Tensor:
    """A ball of tissues from 200 to 1000 in air that is empty or noisy."""
    generator = torch.Generator().manual_seed(0)
    grids = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    ball = sum(g**2 for g in grids) < 0.6
    tissue = 200 + 800 * torch.rand(shape, generator=generator)
    air = noise * torch.randn(2, *shape, generator=generator).norm(dim=0)
    return torch.where(ball, tissue, air)


def test_percentiles_of_the_foreground_equal_numpys() -> None:
    volume = head()
    foreground = volume[volume > 0.05 * 1000].numpy()
    np.testing.assert_allclose(foreground_percentiles(volume, 2, 95), np.percentile(foreground, [2, 95]), rtol=1e-5)


@pytest.mark.parametrize("noise", [5.0, 12.0])
def test_noise_in_the_air_changes_nothing_inside_the_head(noise: float) -> None:
    clean, noisy = normalise_percentiles(head()), normalise_percentiles(head(noise=noise))
    inside = head() > 0
    assert (clean - noisy)[inside].abs().max() < 0.01
    assert noisy[~inside].max() < 0.05


def test_lower_and_upper_percentile_become_zero_and_one() -> None:
    out = normalise_percentiles(head())
    assert out.min() == 0
    assert out.max() == 1
    inside = out[head() > 0]
    assert 0.003 < (inside == 0).float().mean() < 0.007
    assert 0.003 < (inside == 1).float().mean() < 0.007


@pytest.mark.parametrize(("factor", "shift"), [(0.001, 0.0), (37.0, -1000.0), (1.0, 5000.0)])
def test_rescaling_intensities_changes_nothing(factor: float, shift: float) -> None:
    volume = head(noise=5.0)
    rescaled = normalise_percentiles(volume * factor + shift)
    torch.testing.assert_close(rescaled, normalise_percentiles(volume), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(64, 70, 80), (256, 130, 70), (300, 300, 5)])
def test_voxel_order_changes_nothing(shape: tuple[int, int, int]) -> None:
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    reference = foreground_percentiles(volume)
    for axes, flips in product(permutations(range(3)), [(), (0,), (1,), (2,), (0, 1, 2)]):
        assert foreground_percentiles(volume.permute(axes).flip(flips)) == reference


def test_sampling_a_large_volume_stays_close_to_all_its_voxels() -> None:
    volume = head((180, 170, 160), noise=5.0)
    low, high = foreground_percentiles(volume)
    foreground = volume[volume > 0.05 * 1000].numpy()
    assert (low, high) == pytest.approx(tuple(np.percentile(foreground, [0.5, 99.5])), abs=5)


def test_a_thin_slab_is_normalised_like_its_volume() -> None:
    volume = head(noise=5.0)
    slab = normalise_percentiles(volume[:, :, 44:46])
    assert (slab - normalise_percentiles(volume)[:, :, 44:46]).abs().max() < 0.02


def test_one_hot_voxel_does_not_hide_the_head() -> None:
    volume = head()
    reference = normalise_percentiles(volume)
    volume[50, 50, 50] = 1e9
    inside = volume > 0
    inside[50, 50, 50] = False
    torch.testing.assert_close(normalise_percentiles(volume)[inside], reference[inside], atol=0.01, rtol=0)


def test_constant_empty_and_not_finite_volumes() -> None:
    assert torch.equal(normalise_percentiles(torch.full((4, 4, 4), 7.0)), torch.zeros(4, 4, 4))
    sparse = torch.zeros(40, 40, 40)
    sparse[3, 3, 3] = 5.0
    assert normalise_percentiles(sparse)[3, 3, 3] == 1
    broken = head()
    broken[:5] = float("nan")
    out = normalise_percentiles(broken)
    assert torch.isfinite(out).all()
    assert (out[:5] == 0).all()
    with pytest.raises(ValueError, match="finite"):
        normalise_percentiles(torch.full((3, 3, 3), float("nan")))
    with pytest.raises(ValueError, match="percentiles"):
        normalise_percentiles(sparse, 99, 1)


def test_two_valued_volume_keeps_its_two_values_apart() -> None:
    volume = torch.zeros(20, 20, 20)
    volume[5:15] = 3.0
    out = normalise_percentiles(volume)
    assert out[0, 0, 0] == 0
    assert out[7, 7, 7] == 1


def test_input_is_left_alone() -> None:
    volume = head()
    copy = volume.clone()
    normalise_percentiles(volume)
    fixed_gamma(volume)
    window_hu(volume, 0, 10)
    normalise_intensity(volume, 1, 2)
    assert torch.equal(volume, copy)


def test_window_maps_low_to_zero_and_high_to_one() -> None:
    out = window_hu(torch.tensor([-2000, -160, 40, 240, 3000], dtype=torch.int16), -160, 240)
    assert out.tolist() == [0, 0, 0.5, 1, 1]
    with pytest.raises(ValueError, match="low_hu < high_hu"):
        window_hu(out, 5, 5)


def test_gamma_is_a_power_of_clipped_intensities() -> None:
    out = fixed_gamma(torch.tensor([-1.0, 0.0, 0.0625, 1.0, 2.0]))
    torch.testing.assert_close(out, torch.tensor([0.0, 0.0, 0.125, 1.0, 1.0]))
    with pytest.raises(ValueError, match="positive"):
        fixed_gamma(out, 0)


def test_intensity_is_shifted_and_scaled() -> None:
    assert normalise_intensity(torch.tensor([1.0, 5.0]), 3, 2).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="positive"):
        normalise_intensity(torch.ones(1), 0, 0)


@pytest.mark.parametrize(
    ("transform", "function"),
    [
        (NormalisePercentilesd("image", 1, 99), lambda v: normalise_percentiles(v, 1, 99)),
        (WindowHUd("image", 100, 700), lambda v: window_hu(v, 100, 700)),
        (FixedGammad("image", 0.5), lambda v: fixed_gamma(v, 0.5)),
        (NormaliseIntensityd("image", 10, 4), lambda v: normalise_intensity(v, 10, 4)),
    ],
)
def test_dictionary_transforms_keep_meta_data_and_call_their_function(transform, function) -> None:
    volume = head((20, 20, 20))[None]
    image = MetaTensor(volume, affine=torch.eye(4) * 2, meta={"filename_or_obj": "a.nii"})
    out = transform({"image": image, "other": 1})
    assert torch.equal(out["image"].as_tensor(), function(volume))
    assert torch.equal(out["image"].affine, image.affine)
    assert out["image"].meta["filename_or_obj"] == "a.nii"
    assert out["other"] == 1
    assert torch.equal(transform({"image": volume})["image"], function(volume))
