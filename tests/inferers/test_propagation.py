"""Labels carried from a few slices through a volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from dinomed.inferers.appearance import LIMIT, RIDGE, Appearance, _average
from dinomed.inferers.propagation import PropagationInferer, _leave_out_islands, drawn_axis, propagate
from dinomed.inferers.shapes import signed_distance_mm
from dinomed.inferers.slice_tokens import SliceTokens
from dinomed.inferers.voting import VoteWeights, vote, window_offsets
from dinomed.networks.backbones import LayerTokens

ISOTROPIC = (1.0, 1.0, 1.0)


def dice(one: Tensor, other: Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def grid(shape: tuple[int, int, int]) -> list[Tensor]:
    return list(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))


def noisy(mask: Tensor, contrast: float = 1.0, seed: int = 0) -> Tensor:
    return contrast * mask.float() + 0.1 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def leaning() -> tuple[Tensor, Tensor]:
    """A tube that leans: volume and truth (40, 40, 24)."""
    x, y, z = grid((40, 40, 24))
    mask = (x - 10 - 0.8 * z) ** 2 + (y - 20) ** 2 < 49
    return noisy(mask), mask


def only(mask: Tensor, slices: list[int], value: int = 1) -> Tensor:
    drawn = torch.zeros(mask.shape, dtype=torch.uint8)
    drawn[..., slices] = mask[..., slices].to(torch.uint8) * value
    return drawn


def test_a_leaning_tube_is_followed_from_one_slice(leaning: tuple[Tensor, Tensor]) -> None:
    volume, mask = leaning
    found = propagate(volume, only(mask, [12]), ISOTROPIC).labels > 0
    copied = mask[..., 12:13].expand_as(mask)
    near = slice(6, 19)
    assert dice(found[..., near], mask[..., near]) > 0.93
    assert dice(found, mask) > 0.8 > dice(copied, mask)


def test_drawn_slices_stay_as_they_were_drawn(leaning: tuple[Tensor, Tensor]) -> None:
    volume, mask = leaning
    drawn = only(mask, [4, 18], 7)
    drawn[30:34, 2:9, 18] = 7  # whatever a person draws
    carried = propagate(volume, drawn, ISOTROPIC)
    assert torch.equal(carried.labels[..., [4, 18]], drawn[..., [4, 18]])
    assert set(carried.labels.unique().tolist()) == {0, 7}
    assert bool((carried.certainty[drawn > 0] == 255).all())


def test_a_label_does_not_run_past_the_end_of_its_organ() -> None:
    x, y, z = grid((40, 40, 60))
    ball = (x - 20) ** 2 + (y - 20) ** 2 + (z - 30) ** 2 < 100
    found = propagate(noisy(ball), only(ball, [30]), ISOTROPIC).labels > 0
    assert dice(found, ball) > 0.9
    assert not found[..., :17].any()
    assert not found[..., 44:].any()


def test_a_label_ends_by_itself_where_nothing_shows_its_end() -> None:
    x, y, _ = grid((40, 40, 120))
    tube = (x - 20) ** 2 + (y - 20) ** 2 < 25
    alike = 0.1 * torch.randn(tube.shape, generator=torch.Generator().manual_seed(0))
    reached = (propagate(alike, only(tube, [60]), ISOTROPIC).labels > 0).any(0).any(0)
    assert 3 < int(reached.sum()) < 60


def test_between_two_slices_the_outlines_shape_helps_where_intensities_say_nothing() -> None:
    x, y, z = grid((48, 48, 21))
    cone = (x - 24) ** 2 + (y - 24) ** 2 < (6 + 0.4 * z) ** 2
    alike = 0.1 * torch.randn(cone.shape, generator=torch.Generator().manual_seed(1))
    found = propagate(alike, only(cone, [0, 20]), ISOTROPIC).labels > 0
    assert dice(found[..., 10], cone[..., 10]) > 0.93


def test_confidence_is_the_agreement_of_both_directions(leaning: tuple[Tensor, Tensor]) -> None:
    volume, mask = leaning
    steady = propagate(volume, only(mask, [6, 18]), ISOTROPIC).slice_confidence[1]
    assert steady[6] == steady[18] == 1.0
    assert min(steady[index] for index in range(7, 18)) > 0.85
    elsewhere = only(mask, [6])
    elsewhere[30:38, 2:10, 18] = 1  # not where the tube is
    broken = propagate(volume, elsewhere, ISOTROPIC).slice_confidence[1]
    assert broken[12] < 0.5


def test_labels_that_touch_are_carried_together() -> None:
    x, y, _ = grid((40, 40, 16))
    left, right = ((x < 20) & (x > 8) & (abs(y - 20) < 8), (x >= 20) & (x < 32) & (abs(y - 20) < 8))
    volume = noisy(left) + noisy(right, 2.0, seed=1)
    drawn = only(left, [8], 3) + only(right, [8], 200)
    carried = propagate(volume, drawn, ISOTROPIC)
    near = slice(5, 12)
    assert dice((carried.labels == 3)[..., near], left[..., near]) > 0.95
    assert dice((carried.labels == 200)[..., near], right[..., near]) > 0.95
    assert set(carried.slice_confidence) == {3, 200}


def test_labels_may_be_drawn_on_different_slices(leaning: tuple[Tensor, Tensor]) -> None:
    volume, mask = leaning
    other = mask.flip(0)
    drawn = only(mask, [8], 1)
    drawn[..., 16] = torch.where(other[..., 16], 2, drawn[..., 16])
    both = propagate(volume + volume.flip(0), drawn, ISOTROPIC).labels
    assert torch.equal(both[..., 16] == 2, other[..., 16])
    assert (both[..., 10] == 1).sum() > 50
    assert (both[..., 18] == 2).sum() > 50


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_gives_the_same(leaning: tuple[Tensor, Tensor], axis: int) -> None:
    volume, mask = leaning
    drawn = only(mask, [12])
    order = {0: (2, 0, 1), 1: (0, 2, 1), 2: (0, 1, 2)}[axis]
    found = propagate(volume.permute(order), drawn.permute(order), ISOTROPIC)
    assert found.axis == axis
    back = tuple(order.index(each) for each in range(3))
    assert torch.equal(found.labels.permute(back), propagate(volume, drawn, ISOTROPIC).labels)


def test_fine_pixels_are_carried_coarsely_and_given_back_finely() -> None:
    x, y, z = grid((101, 90, 8))
    mask = (x - 50) ** 2 + (y - 45) ** 2 < 400 - 10 * (z - 4) ** 2
    found = propagate(noisy(mask), only(mask, [4]), (0.4, 0.4, 2.0)).labels > 0
    assert dice(found[..., 2:7], mask[..., 2:7]) > 0.93
    for line, middle in ((x, 50), (y, 45)):
        assert abs(float(line[..., 6][found[..., 6]].mean()) - middle) < 0.4


def test_the_axis_is_that_with_the_fewest_drawn_slices() -> None:
    drawn = torch.zeros(8, 9, 10)
    drawn[2:5, 3, 1:7] = 1
    assert drawn_axis(drawn, ISOTROPIC) == 1
    point = torch.zeros(8, 9, 10)
    point[4, 4, 4] = 1
    assert drawn_axis(point, ISOTROPIC) == 2
    assert drawn_axis(point, (5.0, 1.0, 1.0)) == 0


def test_the_axis_of_a_thin_vessel_is_that_with_gaps() -> None:
    drawn = torch.zeros(20, 20, 60, dtype=torch.uint8)
    drawn[8:11, 9:12, ::12] = 1  # on five slices, three pixels wide
    assert drawn_axis(drawn, ISOTROPIC) == 2
    every = torch.zeros(30, 30, 60, dtype=torch.uint8)
    every[3:12, 3:12] = 1  # on all slices
    every[15:28, 15:28, 20] = 2
    assert drawn_axis(every, ISOTROPIC) == 2


def test_fine_pixels_of_drawn_slices_stay_as_they_were_drawn() -> None:
    x, y, _ = grid((90, 90, 5))
    disc = ((x - 45) ** 2 + (y - 45) ** 2 < 900) & ~((x > 40) & (x < 43))  # with a slit of two pixels
    carried = propagate(noisy(disc), only(disc, [0, 4]), (0.3, 0.3, 2.0))
    assert torch.equal(carried.labels[..., [0, 4]] > 0, disc[..., [0, 4]])


def test_a_line_thinner_than_a_working_pixel_is_carried() -> None:
    line = torch.zeros(60, 60, 7, dtype=torch.bool)
    line[10:50, 30] = True
    found = propagate(noisy(line, 10.0), only(line, [3]), (0.4, 0.4, 1.0)).labels > 0
    assert all(int(found[..., index].sum()) >= 30 for index in (2, 3, 4))


def test_nothing_lies_beyond_the_drawn_slices_where_that_is_asked_for(leaning: tuple[Tensor, Tensor]) -> None:
    volume, mask = leaning
    between = propagate(volume, only(mask, [6, 18]), ISOTROPIC, beyond=False)
    reached = torch.nonzero((between.labels > 0).any(0).any(0)).flatten().tolist()
    assert reached == list(range(6, 19))
    assert list(between.slice_confidence[1]) == reached


def test_a_label_ends_where_the_next_slice_is_like_nothing_around_it() -> None:
    x, y, z = grid((60, 60, 30))
    block = (x - 30) ** 2 + (y - 30) ** 2 < 225
    block &= (z > 9) & (z < 20)  # flat ends, wider than the window
    found = propagate(noisy(block), only(block, [14]), ISOTROPIC).labels > 0
    assert int(found[..., :9].sum()) + int(found[..., 21:].sum()) < 0.02 * int(block.sum())


def test_slices_that_differ_by_much_more_than_the_noise_do_not_end_a_label() -> None:
    x, y, z = grid((60, 60, 24))
    block = ((x - 30) ** 2 + (y - 30) ** 2 < 225) & (z > 3) & (z < 20)
    brightness = torch.where(torch.arange(24) % 2 > 0, 100.0, 118.0)  # the noise is 1
    generator = torch.Generator().manual_seed(0)
    volume = brightness * block + torch.randn(block.shape, generator=generator)
    found = propagate(volume, only(block, [11]), ISOTROPIC).labels > 0
    assert dice(found, block) > 0.9


def test_what_lies_elsewhere_does_not_make_a_label_run_past_its_end() -> None:
    x, y, z = grid((60, 60, 40))
    disc = ((x - 30) ** 2 + (y - 30) ** 2 < 225) & (z > 13) & (z < 26)
    bone = (y > 4) & (y < 12)
    volume = disc.float() + 4.0 * bone + 0.05 * torch.randn(disc.shape, generator=torch.Generator().manual_seed(0))
    found = propagate(volume, only(disc, [20]), ISOTROPIC).labels > 0
    assert int((found & ~disc).sum()) < 0.01 * int(disc.sum())


def test_what_both_directions_and_outlines_agree_on_stays_between_drawn_slices() -> None:
    x, y, z = grid((30, 30, 12))
    box = (x > 10) & (x < 19) & (y > 10) & (y < 19)
    found = propagate(noisy(box), only(box, [2, 9]), ISOTROPIC).labels > 0
    assert torch.equal(found[..., 2:10], box[..., 2:10])
    x, y, z = grid((40, 40, 32))
    tube = (x - 20) ** 2 + (y - 20) ** 2 < 64
    found = propagate(noisy(tube) + 0.05 * z, only(tube, [0, 31]), ISOTROPIC).labels > 0  # ever brighter
    assert dice(found, tube) > 0.995


def test_the_weight_of_unlike_is_used_as_given_without_a_part_of_the_contrast() -> None:
    x, y, _ = grid((40, 40, 9))
    tube = (x - 20) ** 2 + (y - 20) ** 2 < 64

    def voxels(part: float) -> int:
        weights = VoteWeights(unlike=0.0, unlike_contrast=part)
        return int((propagate(noisy(tube), only(tube, [4]), ISOTROPIC, weights=weights).labels > 0).sum())

    assert voxels(0.0) < 0.9 * voxels(0.3)


def test_what_does_not_hang_together_with_a_drawn_slice_is_left_out() -> None:
    labels = torch.zeros(12, 12, 9, dtype=torch.uint8)
    labels[2:5, 2:5, 1:6] = 3
    labels[5, 5, 6] = 3  # over a corner
    labels[8:11, 8:11, 2:5] = 3  # an island
    labels[8:11, 2:5, 3] = 4
    labels[2:5, 8, 7] = 4  # another label's
    given = torch.zeros(labels.shape, dtype=torch.bool)
    given[..., 3] = (labels[..., 3] > 0) & (torch.arange(12)[None] < 6)
    wanted = labels.clone()
    wanted[8:11, 8:11, 2:5] = 0
    wanted[2:5, 8, 7] = 0
    _leave_out_islands(labels, given)
    assert torch.equal(labels, wanted)


def test_an_island_that_looks_like_the_label_is_left_out() -> None:
    x, y, z = grid((60, 40, 31))
    tube = (x - 15) ** 2 + (y - 20) ** 2 < 36
    twin = ((x - 27) ** 2 + (y - 20) ** 2 < 25) & (z > 18)
    carried = propagate(noisy(tube | twin), only(tube, [0, 15, 30]), ISOTROPIC)
    _, count = ndimage.label(carried.labels.numpy() > 0, structure=np.ones((3, 3, 3)))
    assert count == 1
    assert dice(carried.labels > 0, tube) > 0.95


def test_a_label_at_the_border_is_not_worn_away() -> None:
    half = torch.zeros(40, 40, 9, dtype=torch.bool)
    half[:20] = True
    found = propagate(noisy(half), only(half, [4]), ISOTROPIC).labels > 0
    assert all(bool(found[:15, :, index].all()) for index in (2, 3, 5, 6))


def test_wrong_input_is_refused_with_what_is_needed() -> None:
    with pytest.raises(ValueError, match="no label is drawn"):
        propagate(torch.zeros(4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.uint8), ISOTROPIC)
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) and the drawn labels \(4, 4, 5\)"):
        propagate(torch.zeros(4, 4, 4), torch.ones(4, 4, 5, dtype=torch.uint8), ISOTROPIC)
    for value in (300.0, 1.5, -1.0):
        with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
            propagate(torch.zeros(4, 4, 4), torch.full((4, 4, 4), value), ISOTROPIC)


def test_the_vote_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    share, here, there = (torch.rand(9, 8, generator=generator) for _ in range(3))
    ours, theirs = (nn.functional.normalize(torch.randn(5, 9, 8, generator=generator), dim=0) for _ in range(2))
    weights = VoteWeights(feature=0.2, intensity=0.3, place_mm=2.0, unlike=-3.0)
    found = vote(share, (here, there), (ours, theirs), (1.0, 1.5), 3.0, weights)
    offsets = window_offsets(3.0, (1.0, 1.5))
    assert (0, 0) in offsets
    a, b = 4, 5
    scores, votes = [], []
    for i, j in offsets:
        place = min(max(a + i, 0), 8), min(max(b + j, 0), 7)
        squares = []
        for u in (-1, 0, 1):
            for v in (-1, 0, 1):
                row, column = (min(max(c + d, 0), n) for c, d, n in ((a + u, i, 8), (b + v, j, 7)))
                squares.append(float(here[a + u, b + v] - there[row, column]) ** 2)
        alike = float(ours[:, a, b] @ theirs[(slice(None), *place)])
        far = (1.0 * i) ** 2 + (1.5 * j) ** 2
        scores.append((alike - 1) / 0.2 - np.mean(squares) / 0.3**2 - far / (2 * 2.0**2))
        votes.append(float(share[place]))
    weight = np.exp(scores) / (np.exp(scores).sum() + np.exp(weights.unlike))
    assert float(found[a, b]) == pytest.approx(float(weight @ votes), abs=1e-5)


def test_the_window_has_its_size_in_millimetres() -> None:
    assert max(i for i, _ in window_offsets(6.0, (1.0, 2.0))) == 6
    assert max(j for _, j in window_offsets(6.0, (1.0, 2.0))) == 3
    assert len(window_offsets(6.0, (0.5, 0.5))) == 81
    assert window_offsets(1.0, (5.0, 5.0)) == [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def test_signed_distances_are_those_to_the_edge_in_millimetres() -> None:
    mask = torch.zeros(12, 12)
    mask[3:9, 3:9] = 1
    distance = signed_distance_mm(mask, (2.0, 2.0))
    assert float(distance[5, 3]) == 1.0
    assert float(distance[5, 2]) == -1.0
    assert float(distance[5, 5]) == 5.0
    edge = torch.zeros(6, 6)
    edge[:3] = 1
    assert signed_distance_mm(edge, (1.0, 1.0))[0].tolist() == [2.5] * 6  # the picture's border is no edge
    assert bool((signed_distance_mm(torch.ones(5, 5), (1.0, 1.0)) == 5).all())
    assert bool(torch.isinf(signed_distance_mm(torch.zeros(3, 3), (1.0, 1.0))).all())


def test_the_appearance_tells_a_label_from_its_surroundings_and_never_more_than_its_limit() -> None:
    x, y, _ = grid((60, 60, 1))
    disc = ((x - 30) ** 2 + (y - 30) ** 2 < 100)[..., 0]
    one, other = noisy(disc), noisy(disc, seed=1)
    found = Appearance(lambda _: (one, None), {0: disc}, (1.0, 1.0)).log_odds((other, None))
    right = (found > 0) == disc
    assert float(right.float().mean()) > 0.95
    assert float(found.abs().max()) <= LIMIT
    alike = Appearance(lambda _: (one, None), {0: disc}, (1.0, 1.0)).log_odds(
        (noisy(torch.zeros(60, 60), seed=2), None)
    )
    assert float(alike.mean()) < -1  # nothing there looks like the label


def test_the_appearance_is_the_minimum_of_its_loss() -> None:
    generator = torch.Generator().manual_seed(5)
    picture = torch.randn(20, 20, generator=generator)
    mask = picture + torch.randn(20, 20, generator=generator) > 0.5
    look = Appearance(lambda _: (picture, None), {0: mask}, (1.0, 1.0))
    means = torch.stack([_average(picture, side).flatten() for side in (3, 7)])
    inputs, label = look._inputs(means, None), mask.flatten()
    assert look._weights is not None

    def loss(weights: Tensor) -> Tensor:
        terms = nn.functional.softplus(torch.where(label, -1.0, 1.0) * (inputs @ weights))
        return (terms[label].mean() + terms[~label].mean()) / 2 + RIDGE / 2 * (weights[:-1] ** 2).sum()

    weights = look._weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(weights), weights)
    assert float(slope.abs().max()) < 1e-4


def test_the_appearance_says_nothing_where_there_is_nothing_to_tell_apart() -> None:
    full = torch.ones(9, 9, dtype=torch.bool)
    picture = torch.rand(9, 9, generator=torch.Generator().manual_seed(0))
    assert not Appearance(lambda _: (picture, None), {0: full}, (1.0, 1.0)).log_odds((picture, None)).any()


def test_how_a_label_looks_counts_where_carrying_and_shape_say_too_little() -> None:
    x, y, z = grid((50, 50, 21))
    bulge = (x - 25) ** 2 + (y - 25) ** 2 < (5 + 5 * torch.sin(z / 20 * torch.pi)) ** 2
    found = propagate(noisy(bulge, 0.3), only(bulge, [0, 20]), ISOTROPIC).labels > 0
    assert dice(found, bulge) > 0.65  # 0.50 without the appearance
    x, y, _ = grid((50, 50, 60))
    tube = (x - 25) ** 2 + (y - 25) ** 2 < 36
    found = propagate(noisy(tube, 0.3), only(tube, [30]), ISOTROPIC).labels > 0
    assert dice(found, tube) > 0.45  # 0.34 without


class Averages(nn.Module):
    """Stands for a backbone: a patch's token tells its mean intensity; counts the slices that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward_last(self, image: Tensor) -> LayerTokens:
        self.seen += len(image)
        means = nn.functional.avg_pool2d(image[:, 1:2], 16) * self.scale
        tokens = torch.cat([means, 1 - means, 0.1 * means**2], dim=1)
        return LayerTokens(tokens, tokens.mean((2, 3)), tokens.new_zeros(len(image), 0, 3))


def test_tokens_are_found_where_their_patch_lies() -> None:
    volume = torch.zeros(64, 48, 10)
    volume[48:, :12, 5] = 1.0  # far along x, near along y
    tokens = SliceTokens(volume, 2, ISOTROPIC, Averages().eval(), "float32")
    found = tokens.at(5, torch.tensor([8.0, 56.0]), torch.tensor([4.0, 40.0]))
    bright = found[:, 1, 0]
    others = [found[:, 0, 0], found[:, 0, 1], found[:, 1, 1]]
    assert all(float(bright @ other) < 0.5 for other in others)
    assert all(float(others[0] @ other) > 0.99 for other in others)


def test_tokens_of_slices_of_any_size_lie_where_their_patch_lies() -> None:
    class Padding(Averages):
        def forward_last(self, image: Tensor) -> LayerTokens:
            down, right = (-size % 16 for size in image.shape[-2:])
            return super().forward_last(nn.functional.pad(image, (0, right, 0, down)))

    for width in (96, 105, 113):
        volume = torch.zeros(width, 40, 9)
        volume[width - 25 : width - 16] = 1.0
        tokens = SliceTokens(volume, 2, ISOTROPIC, Padding().eval(), "float32")
        along = torch.arange(float(width))
        found = tokens.at(4, along, torch.tensor([20.0]))[:, :, 0]
        bright = tokens.at(4, torch.tensor([width - 21.0]), torch.tensor([20.0]))[:, 0, 0]
        alike = (found * bright[:, None]).sum(0) > 0.9
        assert abs(float(along[alike].mean()) - (width - 21)) < 2.5, width


def test_every_slice_goes_through_the_backbone_once_whatever_is_asked_first() -> None:
    volume = torch.rand(32, 32, 12, generator=torch.Generator().manual_seed(0))
    place = torch.arange(32.0)
    one, other = Averages().eval(), Averages().eval()
    tokens = SliceTokens(volume, 2, ISOTROPIC, one, "float32")
    first = [tokens.at(index, place, place) for index in range(12)]
    seen = one.seen
    again = [tokens.at(index, place, place) for index in range(12)]
    assert one.seen == seen <= 12 + 8
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    late = SliceTokens(volume, 2, ISOTROPIC, other, "float32")
    assert torch.equal(late.at(11, place, place), first[11])


def test_features_tell_apart_what_intensities_cannot(leaning: tuple[Tensor, Tensor]) -> None:
    _, mask = leaning
    alike = 0.1 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))

    class Known:
        def at(self, index: int, columns: Tensor, rows: Tensor) -> Tensor:
            inside = mask[..., index][columns.long().clamp(0, 39)][:, rows.long().clamp(0, 39)].float()
            return torch.stack([inside, 1 - inside])

    drawn = only(mask, [6, 18])
    without = propagate(alike, drawn, ISOTROPIC).labels > 0
    with_features = propagate(alike, drawn, ISOTROPIC, tokens=Known()).labels > 0  # type: ignore[arg-type]
    near = slice(7, 18)
    assert dice(with_features[..., near], mask[..., near]) > 0.95 > dice(without[..., near], mask[..., near])


def test_the_inferer_gives_what_the_function_gives(leaning: tuple[Tensor, Tensor]) -> None:
    volume, mask = leaning
    drawn, backbone = only(mask, [12]), Averages().eval()
    calls: list[tuple[int, int]] = []
    inferer = PropagationInferer("float32", progress=lambda done, total: calls.append((done, total)))
    found = inferer(volume[None, None], backbone, drawn=drawn[None, None], spacing_mm=ISOTROPIC)
    tokens = SliceTokens(volume, 2, ISOTROPIC, backbone, "float32")
    assert torch.equal(found.labels, propagate(volume, drawn, ISOTROPIC, tokens=tokens).labels)
    assert calls == [(1, 1)]
