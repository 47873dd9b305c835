from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from head_maps import LABEL_SOURCES, head_numbers
from torch import Tensor

from dinomed.data.head_tissues import (
    EXTERNAL_CSF_CLASS,
    FIRST_OUTSIDE_CLASS,
    INTENSITY_GROUPS,
    NUM_CLASSES,
    class_targets,
    intensity_classes,
)
from dinomed.data.scan_parameters import ScanParameters, SynthesisSettings, draw_scan_parameters
from dinomed.data.synthesis import Box, synthesize_scans

BOX = Box((48, 48, 48))
STILL = SynthesisSettings(
    rotation_deg=0,
    scaling=0,
    shear=0,
    elastic_std_mm=0,
    bias_std=0,
    tissue_std=0,
    low_resolution_probability=0,
    thick_slice_probability=0,
    noise_std=0,
    gamma_std=0,
    brain_only_probability=0,
    crop_probability=0,
)


def draw(batch_size: int = 1, seed: int = 0, settings: SynthesisSettings | None = None) -> ScanParameters:
    return draw_scan_parameters(batch_size, torch.Generator().manual_seed(seed), settings)


def still(seed: int = 0, **changes: Tensor) -> ScanParameters:
    """Parameters of a scan that shows the label map as it is, apart from the changes."""
    return replace(draw(1, seed, STILL), affine=torch.eye(3)[None], **changes)


def only(parameters: ScanParameters, index: int) -> ScanParameters:
    return replace(parameters, **{f.name: getattr(parameters, f.name)[index : index + 1] for f in fields(parameters)})


@pytest.fixture(scope="module")
def head() -> Tensor:
    return intensity_classes(torch.from_numpy(head_numbers()))


def test_same_parameters_give_the_same_scan(head: Tensor) -> None:
    parameters = draw(seed=3)
    first, second = (synthesize_scans([head], parameters, BOX) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_synthesis_leaves_label_map_parameters_and_global_random_state_alone(head: Tensor) -> None:
    parameters = draw(seed=3)
    before = head.clone(), {f.name: getattr(parameters, f.name).clone() for f in fields(parameters)}
    state = torch.get_rng_state()
    synthesize_scans([head], replace(parameters, brain_only=torch.tensor([2])), BOX)
    assert torch.equal(head, before[0])
    assert all(torch.equal(getattr(parameters, name), value) for name, value in before[1].items())
    assert torch.equal(torch.get_rng_state(), state)


def test_same_seed_draws_the_same_parameters_and_another_seed_others() -> None:
    one, same, other = draw(2, 5), draw(2, 5), draw(2, 6)
    assert all(torch.equal(getattr(one, f.name), getattr(same, f.name)) for f in fields(one))
    assert not torch.equal(one.means, other.means)
    assert not torch.equal(one.affine, other.affine)


def test_every_parameter_has_the_batch_first_and_scans_differ_within_it() -> None:
    parameters = draw(4)
    assert all(getattr(parameters, f.name).shape[0] == 4 for f in fields(parameters))
    for name in ("affine", "elastic_mm", "log_bias", "means", "gamma", "noise_seed"):
        values = getattr(parameters, name)
        assert not torch.equal(values[0], values[1]), name


def test_batch_of_two_heads_equals_two_batches_of_one(head: Tensor) -> None:
    parameters = draw(2, 7)
    smaller = head[4:-4, 4:, :-4].contiguous()
    scans, classes = synthesize_scans([head, smaller], parameters, BOX)
    assert scans.shape == (2, 1, 48, 48, 48)
    assert scans.dtype == torch.float32
    assert classes.shape == (2, 48, 48, 48)
    assert classes.dtype == torch.uint8
    for index, label_map in enumerate((head, smaller)):
        alone = synthesize_scans([label_map], only(parameters, index), BOX)
        assert torch.equal(scans[index], alone[0][0])
        assert torch.equal(classes[index], alone[1][0])


@pytest.mark.parametrize("seed", range(4))
def test_box_shows_the_anatomy_of_the_whole(head: Tensor, seed: int) -> None:
    parameters = draw(seed=seed)
    _, whole = synthesize_scans([head], parameters, Box((61, 61, 61)))
    _, part = synthesize_scans([head], parameters, Box((31, 21, 7), (5.0, -3.0, 2.0)))
    assert torch.equal(part[0], whole[0, 20:51, 17:38, 29:36])
    assert part.any()


def test_box_shows_the_intensities_of_the_whole_where_nothing_is_drawn_voxel_by_voxel(head: Tensor) -> None:
    smooth = replace(STILL, bias_std=0.5, gamma_std=0.3, rotation_deg=10.0, elastic_std_mm=2.0)
    parameters = draw(1, 2, smooth)
    whole, _ = synthesize_scans([head], parameters, Box((61, 61, 61)))
    part, _ = synthesize_scans([head], parameters, Box((31, 31, 21), (5.0, -3.0, 2.0)))
    inner = (slice(3, -3),) * 3  # the blur of acquisition sees nothing beyond the box
    torch.testing.assert_close(part[0, 0][inner], whole[0, 0, 20:51, 12:43, 22:43][inner], rtol=1e-4, atol=1e-5)


def test_identity_shows_the_label_map_itself(head: Tensor) -> None:
    _, classes = synthesize_scans([head], still(), BOX)
    assert torch.equal(classes[0], head)


def test_negative_first_axis_mirrors_left_and_right(head: Tensor) -> None:
    lopsided = head.clone()
    lopsided[:10, 20:30, 20:30] = 5
    as_is = synthesize_scans([lopsided], still(), BOX)
    mirrored = synthesize_scans([lopsided], replace(still(), affine=torch.diag(torch.tensor([-1.0, 1, 1]))[None]), BOX)
    assert torch.equal(mirrored[1], as_is[1].flip(1))
    torch.testing.assert_close(mirrored[0], as_is[0].flip(2))
    assert not torch.equal(mirrored[1], as_is[1])


def test_about_half_of_the_scans_are_mirrored() -> None:
    mirrored = (torch.linalg.det(draw(200).affine) < 0).float().mean()
    assert 0.4 < mirrored < 0.6


def test_affine_leads_from_the_scan_to_the_label_map(head: Tensor) -> None:
    _, larger = synthesize_scans([head], replace(still(), affine=0.5 * torch.eye(3)[None]), Box((96, 96, 96)))
    assert torch.equal(larger[0, ::2, ::2, ::2], larger[0, 1::2, 1::2, 1::2])
    assert torch.equal(larger[0, ::2, ::2, ::2], head)


def test_elastic_displacement_is_in_millimetres_of_the_scan(head: Tensor) -> None:
    moved = torch.zeros_like(still().elastic_mm)
    moved[:, 1] = 5.0
    _, classes = synthesize_scans([head], replace(still(), elastic_mm=moved), BOX)
    assert torch.equal(classes[0, :, :-5], head[:, 5:])


def test_coarser_label_map_keeps_its_size_in_millimetres() -> None:
    coarse = intensity_classes(torch.from_numpy(head_numbers(24)))
    _, classes = synthesize_scans([coarse], still(), BOX, spacing_mm=(2.0, 2.0, 2.0))
    fine = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(classes[0], fine)


def test_brain_only_removes_all_other_tissue(head: Tensor) -> None:
    scans, classes = synthesize_scans([head], still(brain_only=torch.tensor([1])), BOX)
    assert bool((head >= FIRST_OUTSIDE_CLASS).any())
    assert int(classes.max()) < FIRST_OUTSIDE_CLASS
    assert bool((classes == EXTERNAL_CSF_CLASS).any())
    assert not scans[:, 0][classes == 0].any()
    assert bool(scans[:, 0][classes > 0].any())


def test_brain_without_fluid_removes_the_outer_fluid_too(head: Tensor) -> None:
    _, classes = synthesize_scans([head], still(brain_only=torch.tensor([2])), BOX)
    assert not bool((classes == EXTERNAL_CSF_CLASS).any())
    assert torch.equal(classes[0] > 0, (head > 0) & (head < FIRST_OUTSIDE_CLASS) & (head != EXTERNAL_CSF_CLASS))


def test_field_of_view_ends_at_its_limits(head: Tensor) -> None:
    limits = torch.tensor([[[-1e4, 1e4], [-8.0, 1e4], [-1e4, 1e4]]])
    _, classes = synthesize_scans([head], still(crop_mm=limits), BOX)
    positions = torch.arange(48) - 23.5
    assert not classes[0, :, positions < -8].any()
    assert torch.equal(classes[0, :, positions >= -8], head[:, positions >= -8])


def test_tissue_has_the_drawn_mean_and_deviation() -> None:
    block = torch.full((64, 64, 64), 3, dtype=torch.uint8)
    means, stds = torch.zeros(1, NUM_CLASSES), torch.zeros(1, NUM_CLASSES)
    means[0, 3], stds[0, 3], means[0, 4] = 0.6, 0.05, 1.25  # class 4 is not there, but it is the unit
    scans, _ = synthesize_scans([block], still(means=means, stds=stds), Box((64, 64, 64)))
    inner = scans[0, 0, 4:-4, 4:-4, 4:-4]
    kernel = torch.exp(-0.5 * (torch.arange(-4.0, 5.0) / 0.42) ** 2)
    left = float(((kernel / kernel.sum()) ** 2).sum().sqrt() ** 3)  # what the slice profile leaves of independent noise
    assert float(inner.mean()) == pytest.approx(0.6 / 1.25, rel=0.01)
    assert float(inner.std()) == pytest.approx(0.05 / 1.25 * left, rel=0.03)


def test_noise_has_the_drawn_deviation() -> None:
    block = torch.full((48, 48, 48), 3, dtype=torch.uint8)
    means = torch.full((1, NUM_CLASSES), 0.5)
    scans, _ = synthesize_scans([block], still(means=means, noise_std=torch.tensor([0.05])), BOX)
    assert float(scans[0, 0, 4:-4, 4:-4, 4:-4].std()) == pytest.approx(0.05 / 0.5, rel=0.03)


def test_gamma_and_bias_change_intensities_as_they_say() -> None:
    block = torch.full((48, 48, 48), 3, dtype=torch.uint8)
    means = torch.zeros(1, NUM_CLASSES)
    means[0, 3], means[0, 4] = 0.5, 1.0
    plain = still(means=means)
    middle = (0, 0, 24, 24, 24)
    assert float(synthesize_scans([block], plain, BOX)[0][middle]) == pytest.approx(0.5, rel=1e-4)
    curved = replace(plain, gamma=torch.tensor([2.0]))
    assert float(synthesize_scans([block], curved, BOX)[0][middle]) == pytest.approx(0.25, rel=1e-4)
    biased = replace(plain, log_bias=torch.full_like(plain.log_bias, 0.3))
    assert float(synthesize_scans([block], biased, BOX)[0][middle]) == pytest.approx(0.5 * 1.34986, rel=1e-4)


def test_thick_slices_are_interpolated_along_their_axis_only(head: Tensor) -> None:
    thick = still(spacing_mm=torch.tensor([[1.0, 1.0, 6.0]]))
    fine = synthesize_scans([head], still(), BOX)[0][0, 0]
    coarse = synthesize_scans([head], thick, BOX)[0][0, 0]
    bends = coarse.diff(n=2, dim=2).abs().amax(dim=(0, 1)) > 1e-4
    assert int(bends.sum()) <= 2 * 8  # linear between 8 slices: it bends at the slices alone
    bends = fine.diff(n=2, dim=2).abs().amax(dim=(0, 1)) > 1e-4
    assert int(bends.sum()) > 40
    assert float(coarse.diff(dim=2).abs().mean()) < 0.6 * float(fine.diff(dim=2).abs().mean())


def test_drawn_parameters_stay_within_the_settings() -> None:
    settings = SynthesisSettings()
    drawn = draw(300, 1, settings)
    assert float(drawn.spacing_mm.min()) == 1.0
    assert float(drawn.spacing_mm.max()) <= settings.thick_slice_max_mm
    assert float(drawn.means.min()) >= 0
    assert 0 <= float(drawn.stds.min()) <= float(drawn.stds.max()) <= settings.tissue_std
    assert 0 <= float(drawn.noise_std.min()) <= float(drawn.noise_std.max()) <= settings.noise_std
    assert set(drawn.brain_only.tolist()) == {0, 1, 2}
    thick = (drawn.spacing_mm.amax(1) > settings.low_resolution_max_mm).float().mean()
    assert abs(float(thick) - settings.thick_slice_probability) < 0.12
    cropped = (drawn.crop_mm.abs().amin(dim=(1, 2)) < 1e4).float().mean()
    assert abs(float(cropped) - settings.crop_probability) < 0.08


def test_settings_of_zero_draw_the_plain_head() -> None:
    drawn = draw(20, 0, STILL)
    torch.testing.assert_close(drawn.affine.abs(), torch.eye(3).expand(20, 3, 3))
    assert not drawn.elastic_mm.any()
    assert not drawn.log_bias.any()
    assert not drawn.stds.any()
    assert torch.equal(drawn.spacing_mm, torch.ones(20, 3))
    assert torch.equal(drawn.gamma, torch.ones(20))
    assert not drawn.brain_only.any()


def test_coupled_contrasts_come_in_the_orders_of_t1_t2_and_flair() -> None:
    drawn = draw(200, 0, replace(STILL, coupled_probability=1.0))
    fluid, grey, white = (drawn.means[:, 1 + INTENSITY_GROUPS.index(group)] for group in ((4, 43), (3, 42), (2, 41)))
    orders = {tuple(row.argsort().tolist()) for row in torch.stack((fluid, grey, white), 1)}
    assert {(0, 1, 2), (2, 1, 0), (0, 2, 1)} <= orders
    t1 = (fluid < grey) & (grey < white)
    assert 0.3 < float(t1.float().mean()) < 0.6


def test_number_of_label_maps_must_be_that_of_the_parameters(head: Tensor) -> None:
    with pytest.raises(ValueError, match="1 label maps do not go with the parameters of 2 scans"):
        synthesize_scans([head], draw(2), BOX)


def test_left_and_right_share_a_class_and_background_is_none() -> None:
    assert intensity_classes(torch.tensor([2, 0, 17])).tolist() == intensity_classes(torch.tensor([41, 0, 53])).tolist()
    assert int(intensity_classes(torch.tensor([0]))) == 0


@pytest.mark.parametrize("number", [1, 77, 503, 531, 2035, -1])
def test_unknown_numbers_are_named(number: int) -> None:
    with pytest.raises(ValueError, match=rf"labels {number} are no FreeSurfer"):
        intensity_classes(torch.tensor([[2, number]]))


def test_targets_follow_the_sources() -> None:
    table = class_targets(LABEL_SOURCES)
    numbers = torch.tensor([0, 4, 43, 3, 41, 53, 47, 16, 530])
    assert table[intensity_classes(numbers).int()].tolist() == [0, 1, 1, 2, 3, 4, 5, 6, 7]
    assert class_targets({1: [16]}).sum() == 1


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({1: [2], 2: [41]}, "share their intensities"),
        ({1: [2]}, "share their intensities"),
        ({1: [77]}, "takes number 77"),
        ({1: [16], 2: [16]}, "both take number 16"),
    ],
)
def test_contradicting_sources_are_refused(sources: dict[int, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_targets(sources)


@pytest.mark.gpu
def test_scans_are_drawn_on_the_device_of_the_label_map(head: Tensor) -> None:
    parameters = draw(2, 3)
    scans, classes = synthesize_scans([head.cuda(), head.cuda()], parameters.to("cuda"), BOX)
    assert scans.device.type == classes.device.type == "cuda"
    _, expected = synthesize_scans([head, head], parameters, BOX)
    assert float((classes.cpu() == expected).float().mean()) > 0.9999
    assert torch.equal(
        intensity_classes(torch.tensor([2, 16], device="cuda")).cpu(), intensity_classes(torch.tensor([2, 16]))
    )
