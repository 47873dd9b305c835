"""The check that an exported file computes what the network computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dinomed.errors import DinomedError
from dinomed.export.parity import check_parity, make_image

SHAPES = [(1, 3, 8, 8), (2, 3, 6, 10)]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, kernel_size=1)


def test_equal_programs_have_no_error(network: nn.Module) -> None:
    parity = check_parity(network, lambda image: [network(image).detach()], SHAPES, "copy")
    assert (parity.max_abs_error, parity.max_relative_error, parity.label_agreement) == (0.0, 0.0, 1.0)
    assert parity.image_shapes == tuple(SHAPES)


def test_the_error_is_relative_to_the_largest_number(network: nn.Module) -> None:
    def run(image: Tensor) -> list[Tensor]:
        output = network(image).detach()
        output[0, 0, 0, 0] += 1e-6
        return [output]

    parity = check_parity(network, run, SHAPES[:1], "other")
    largest = network(make_image(SHAPES[0], 0)).abs().max().item()
    assert parity.max_relative_error == pytest.approx(1e-6 / largest, rel=0.2)


@pytest.mark.parametrize("error", [1e-3, float("nan"), float("inf")])
def test_a_difference_beyond_the_tolerance_is_refused(network: nn.Module, error: float) -> None:
    def run(image: Tensor) -> list[Tensor]:
        output = network(image).detach()
        output[-1, 0, 0, 0] += error * output.abs().max()
        return [output]

    with pytest.raises(DinomedError, match=r"^file\.onnx differs from the network"):
        check_parity(network, run, SHAPES, "file.onnx")


def test_flipped_labels_are_refused_though_the_numbers_are_close() -> None:
    network = nn.Conv2d(3, 2, kernel_size=1)
    nn.init.constant_(network.weight, 1.0)
    nn.init.constant_(network.bias, 0.0)

    def run(image: Tensor) -> list[Tensor]:
        output = network(image).detach()
        output[:, 1] += 1e-6
        return [output]

    with pytest.raises(DinomedError, match=r"agrees on 0\.00% of the labels"):
        check_parity(network, run, SHAPES, "file.onnx")


def test_outputs_of_another_shape_are_refused(network: nn.Module) -> None:
    with pytest.raises(DinomedError, match="shapes"):
        check_parity(network, lambda image: [network(image)[..., 1:]], SHAPES, "file.onnx")


def test_backbones_give_maps_and_no_labels() -> None:
    class Maps(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [image, image[..., ::2]]

    parity = check_parity(Maps(), lambda image: [image, image[..., ::2]], SHAPES, "copy")
    assert parity.label_agreement is None
