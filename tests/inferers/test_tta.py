"""Test-time augmentation against averages written out by hand, and its geometry at odd sizes."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn import functional

from dinomed.errors import DinomedError
from dinomed.inferers.tta import TTAInferer


def lopsided_network(classes: int = 3) -> nn.Module:
    """A network that knows left from right and near from far, of any size."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, classes, 3, padding=1)).eval()


def picture(height: int = 53, width: int = 71, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_one_view_is_the_softmax_of_the_network() -> None:
    network, image = lopsided_network(), picture()
    probs = TTAInferer(precision="float32")(image, network)
    torch.testing.assert_close(probs, network(image).softmax(1).detach(), rtol=0, atol=0)


def test_average_is_that_of_views_written_out_by_hand() -> None:
    network, image = lopsided_network(), picture(53, 71)
    views = []
    # 53 x 71 at 0.75 is 39.75 x 53.25, at 1.25 66.25 x 88.75; the nearest multiples of 16 follow.
    for size in ((32, 48), (53, 71), (64, 96)):
        shrinks = size == (32, 48)
        scaled = image
        if size != (53, 71):
            scaled = functional.interpolate(image, size, mode="bilinear", align_corners=False, antialias=shrinks)
        for mirrored in (False, True):
            seen = torch.flip(scaled, [3]) if mirrored else scaled
            probs = torch.softmax(network(seen), 1)
            probs = torch.flip(probs, [3]) if mirrored else probs
            views.append(functional.interpolate(probs, (53, 71), mode="bilinear", align_corners=False))
    wanted = torch.stack(views).mean(0).detach()
    inferer = TTAInferer(scales=[0.75, 1, 1.25], flip=True, precision="float32")
    assert inferer.view_sizes(53, 71) == [(32, 48), (53, 71), (64, 96)]
    torch.testing.assert_close(inferer(image, network), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(53, 71), (1, 1), (7, 200), (64, 64)])
@pytest.mark.parametrize("window", [None, (24, 40)])
def test_mirrored_picture_gives_the_mirrored_answer(size: tuple[int, int], window: tuple[int, int] | None) -> None:
    network, image = lopsided_network(), picture(*size)
    inferer = TTAInferer(scales=[0.5, 1, 1.5], flip=True, window=window, precision="float32")
    straight, mirrored = inferer(image, network), inferer(image.flip(-1), network)
    torch.testing.assert_close(mirrored.flip(-1), straight, rtol=0, atol=2e-6)
    if size[1] > 1 and window is None:  # without mirroring the network is not indifferent
        plain = TTAInferer(precision="float32")
        assert not torch.allclose(plain(image.flip(-1), network).flip(-1), plain(image, network), atol=1e-3)


class Ramp(nn.Module):
    """Says for each pixel, as a probability, what its first channel holds."""

    def forward(self, image: Tensor) -> Tensor:
        share = image[:, :1].clamp(1e-6, 1 - 1e-6)
        return torch.cat([share.log(), (1 - share).log()], dim=1)


@pytest.mark.parametrize("size", [(101, 67), (97, 130)])
def test_nothing_shifts_at_odd_sizes(size: tuple[int, int]) -> None:
    # A ramp survives resizing there and back, but for the outermost pixels, if and only if both cover the same area.
    rows = torch.linspace(0.2, 0.8, size[0])[:, None] + torch.linspace(-0.1, 0.1, size[1])[None]
    image = rows.expand(1, 3, *size)
    probs = TTAInferer(scales=[0.75, 1.3, 2.1], flip=True, precision="float32")(image, Ramp())
    inner = (slice(None), 0, slice(6, -6), slice(6, -6))  # a shift by half a pixel would make 0.003
    torch.testing.assert_close(probs[inner], image[:, 0][:, 6:-6, 6:-6], rtol=0, atol=3e-4)


def test_windows_agree_with_the_whole_where_the_network_sees_pixels_alone() -> None:
    image = picture(61, 90)
    whole = TTAInferer(precision="float32")(image, Ramp())
    windows = TTAInferer(window=32, overlap=0.25, precision="float32")(image, Ramp())
    torch.testing.assert_close(windows, whole, rtol=0, atol=1e-5)


def test_windows_bound_what_the_network_sees() -> None:
    seen = []

    def network(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape[-2:]))
        return image[:, :2]

    TTAInferer(window=(32, 48), batch_size=2)(picture(20, 100), network)
    assert set(seen) == {(20, 48)}


def test_one_logit_is_class_1_against_class_0() -> None:
    network, image = lopsided_network(1), picture()
    probs = TTAInferer(precision="float32")(image, network)
    assert probs.shape[1] == 2
    torch.testing.assert_close(probs[:, 1], network(image).sigmoid()[:, 0].detach(), rtol=0, atol=1e-6)


def test_probabilities_are_ordinary_float32_tensors_and_keep_meta_data() -> None:
    image = MetaTensor(picture(), meta={"filename_or_obj": "a.jpg"})
    probs = TTAInferer(scales=[1, 1.5], precision="bfloat16")(image, lopsided_network())
    assert isinstance(probs, MetaTensor)
    assert probs.meta["filename_or_obj"] == "a.jpg"
    assert probs.dtype is torch.float32
    assert not probs.is_inference()
    torch.testing.assert_close(probs.sum(1).as_tensor(), torch.ones(1, 53, 71), rtol=0, atol=1e-5)


def test_progress_counts_views() -> None:
    told: list[tuple[int, int]] = []
    inferer = TTAInferer(scales=[1, 2], flip=True, progress=lambda done, total: told.append((done, total)))
    inferer(picture(8, 8), lopsided_network())
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_output_that_is_no_number_is_refused() -> None:
    with pytest.raises(DinomedError, match="not finite"):
        TTAInferer()(picture(), lambda image: image * float("nan"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scales": []}, "scales must be"),
        ({"scales": [0.0]}, "scales must be"),
        ({"scales": ["1"]}, "scales must be"),
        ({"window": (3, 4, 5)}, "window"),
        ({"window": 0}, "window"),
        ({"overlap": 1.0}, "overlap"),
        ({"precision": "half"}, "precision 'half' is unknown"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TTAInferer(**arguments)


@pytest.mark.parametrize("inputs", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_inputs_that_are_no_normalised_pictures_are_refused(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match="load and normalise pictures first"):
        TTAInferer()(inputs, lopsided_network())


def test_network_that_changes_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must map"):
        TTAInferer()(picture(), lambda image: image[..., ::2])
