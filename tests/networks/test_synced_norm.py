"""Batch norm over two processes against batch norm of the whole batch in one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from two_processes import run_together

from dinomed.networks.blocks import ConvNormAct
from dinomed.networks.folding import norm_affine
from dinomed.networks.synced_norm import SyncedBatchNorm2d, synchronise_batch_norms

STEPS = 4


class OwnBatchNorm2d(nn.BatchNorm2d):
    """Stands for one that does more."""


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6, eps=1e-3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.Conv2d(4, 2, 1),
        nn.BatchNorm2d(2, momentum=0.7),
    )


def train(share: slice) -> dict[str, Any]:
    """Take a few steps with a share of eight images, the gradients summed over the processes.

    In float64, where only rounding far below the tolerance depends on the order of sums.
    """
    network = small_network().double()
    together = distributed.is_initialized()
    if together:
        synchronise_batch_norms(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Any] = {"loss": [], "image": [], "weight": []}
    for _ in range(STEPS):
        images = torch.randn(8, 3, 9, 8, generator=generator, dtype=torch.float64) + 2
        factors = torch.randn(8, 2, 5, 4, generator=generator, dtype=torch.float64)
        image = images[share].requires_grad_()
        # A loss of each value by itself, so that shares of any size add up to the whole.
        loss = (network(image) * factors[share]).sin().sum()
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        loss = loss.detach()
        if together:
            for value in (loss, *gradients):
                distributed.all_reduce(value)
        optimizer.step()
        found["loss"].append(float(loss))
        found["image"].append(image.grad)
        found["weight"].append([gradient.clone() for gradient in gradients])
    found["state"] = copy.deepcopy(network).state_dict()
    network.eval()
    found["eval"] = network(torch.ones(1, 3, 9, 8, dtype=torch.float64)).detach()
    return found


def far_batch() -> Tensor:
    """A channel far from zero, whose mean of squares less squared mean would be noise in float32."""
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(2)) * 0.1 + 1000


def single_value() -> str:
    try:
        SyncedBatchNorm2d(2)(torch.zeros(1 - distributed.get_rank(), 2, 1, 1))
    except ValueError as error:
        return str(error)
    return ""


def work() -> dict[str, Any]:
    """Everything that the tests look at, since starting processes takes long."""
    rank = distributed.get_rank()
    found: dict[str, Any] = {}
    for name, cut in (("even", 4), ("uneven", 3), ("empty", 0)):
        found[name] = train(slice(cut) if rank == 0 else slice(cut, None))
    half = slice(4 * rank, 4 * rank + 4)
    found["far"] = SyncedBatchNorm2d(2)(far_batch()[half]).detach()
    with torch.autocast("cpu", torch.bfloat16):
        norm = SyncedBatchNorm2d(2)
        found["bfloat16"] = norm(far_batch()[half].bfloat16()).detach()
    found["bfloat16 mean"] = norm.running_mean
    found["float64"] = SyncedBatchNorm2d(2).double()(far_batch()[half].double()).detach()
    if rank == 0:  # the other one would wait for ever if eval mode took two
        found["alone"] = SyncedBatchNorm2d(2, track_running_stats=False).eval()(far_batch()).detach()
    found["message"] = single_value()
    one_each = torch.tensor([1.0, -1.0])[rank].expand(1, 2, 1, 1)
    found["one each"] = SyncedBatchNorm2d(2, eps=0)(one_each).detach()
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_together(work, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return train(slice(None))


@pytest.mark.parametrize("kind", ["even", "uneven", "empty"])
def test_two_processes_train_as_one_with_the_whole_batch(together: Any, whole: Any, kind: str) -> None:
    for result in together:
        for key in ("loss", "weight", "state", "eval"):
            torch.testing.assert_close(result[kind][key], whole[key], rtol=1e-9, atol=1e-9)
    for step in range(STEPS):
        image = torch.cat([result[kind]["image"][step] for result in together])
        torch.testing.assert_close(image, whole["image"][step], rtol=1e-9, atol=1e-9)
    moved = whole["state"]["0.weight"] - small_network().state_dict()["0.weight"]
    assert float(moved.abs().max()) > 0.05


@pytest.mark.parametrize(("kind", "tolerance"), [("far", 2e-3), ("float64", 1e-10)])
def test_values_far_from_zero_are_normalised(together: Any, kind: str, tolerance: float) -> None:
    expected = nn.BatchNorm2d(2).double()(far_batch().double()).detach()
    found = torch.cat([result[kind] for result in together])
    assert found.dtype == (torch.float64 if kind == "float64" else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_bfloat16_is_normalised_with_float32_statistics(together: Any) -> None:
    found = torch.cat([result["bfloat16"] for result in together])
    norm = nn.BatchNorm2d(2)
    expected = norm(far_batch().bfloat16().float()).detach()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
    assert together[0]["bfloat16 mean"].dtype == torch.float32
    torch.testing.assert_close(together[0]["bfloat16 mean"], norm.running_mean, rtol=1e-6, atol=0)


def test_eval_mode_asks_no_other_process(together: Any) -> None:
    expected = nn.BatchNorm2d(2, track_running_stats=False).eval()(far_batch())
    assert torch.equal(together[0]["alone"], expected)


def test_one_value_in_all_processes_is_refused_and_one_in_each_is_not(together: Any) -> None:
    for result, sign in zip(together, (1, -1), strict=True):
        assert result["message"].startswith("batch norm needs more than one value per channel in training, not 1 ")
        assert result["one each"].flatten().tolist() == [sign, sign]


def test_layers_keep_parameters_buffers_and_mode() -> None:
    network = nn.Sequential(small_network(), OwnBatchNorm2d(2), nn.BatchNorm1d(2))
    network[0][1].eval()
    before = {key: value.data_ptr() for key, value in network.state_dict().items()}
    parameters = [id(parameter) for parameter in network.parameters()]
    assert synchronise_batch_norms(network) is network
    assert {key: value.data_ptr() for key, value in network.state_dict().items()} == before
    assert [id(parameter) for parameter in network.parameters()] == parameters
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(SyncedBatchNorm2d) == 4
    assert nn.BatchNorm2d not in kinds
    assert type(network[1]) is OwnBatchNorm2d
    assert [network[0][1].training, network[0][4].training] == [False, True]
    copy.deepcopy(small_network()).load_state_dict(copy.deepcopy(network[0]).state_dict())


def test_one_process_has_plain_batch_norm() -> None:
    plain, synced = small_network(), synchronise_batch_norms(small_network())
    image = torch.randn(4, 3, 9, 8, generator=torch.Generator().manual_seed(3))
    for training in (True, False):
        assert torch.equal(plain.train(training)(image), synced.train(training)(image))
    expected = plain.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in synced.state_dict().items())


def test_convolutions_before_it_give_the_same_in_eval_mode() -> None:
    block = ConvNormAct(3, 4)
    block(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4)))
    image = torch.ones(1, 3, 8, 8)
    expected = block.eval()(image)
    synchronise_batch_norms(block)
    torch.testing.assert_close(block(image), expected, rtol=1e-5, atol=1e-6)
    norm = next(module for module in block.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm_affine(norm.train()) is None
