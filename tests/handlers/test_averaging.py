from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import nn

from dinomed.handlers.averaging import WeightAverage


def train(network: nn.Module, average: WeightAverage, seen: list[dict[str, torch.Tensor]], **options: Any) -> Engine:
    """Two epochs of five batches; `seen` gets the weights after each batch."""
    items = [{"image": torch.full((2,), float(k)), "label": torch.ones(1)} for k in range(5)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=torch.utils.data.DataLoader(items),
        network=network,
        optimizer=torch.optim.SGD((p for p in network.parameters() if p.requires_grad), 0.01),
        loss_function=nn.MSELoss(),
        train_handlers=[average],
        decollate=False,
        **options,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: seen.append({k: v.clone() for k, v in network.state_dict().items()})
    )
    trainer.run()
    return trainer


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.norm = nn.BatchNorm1d(2, eps=1.0)
        self.head = nn.Linear(2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.norm(torch.cat([self.frozen(image), image + 1]))[:1]
        return self.head(features)


@pytest.mark.parametrize(("accumulation_steps", "ends"), [(1, range(10)), (2, (1, 3, 4, 6, 8, 9))])
def test_average_follows_each_optimiser_step(accumulation_steps: int, ends: Any) -> None:
    network = Network()
    average, seen = WeightAverage(network, 0.4), []
    expected = {key: value.clone().double() for key, value in network.state_dict().items()}
    train(network, average, seen, accumulation_steps=accumulation_steps)
    for count, end in enumerate(ends, 1):
        decay = min(0.4, (1 + count) / (10 + count))
        for key in ("head.weight", "head.bias", "norm.weight"):
            expected[key] = decay * expected[key] + (1 - decay) * seen[end][key].double()
    assert average.updates == len(list(ends))
    for key in ("head.weight", "head.bias", "norm.weight"):
        torch.testing.assert_close(average.network.state_dict()[key].double(), expected[key], rtol=1e-6, atol=1e-7)
        assert not torch.equal(average.network.state_dict()[key], network.state_dict()[key])
    for key in ("norm.running_mean", "norm.num_batches_tracked"):
        assert torch.equal(average.network.state_dict()[key], network.state_dict()[key])


def test_averaged_network_is_for_evaluation_only_and_shares_what_is_frozen() -> None:
    network = Network().train()
    average = WeightAverage(network, 0.9)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert average.network.frozen.weight is network.frozen.weight
    assert average.network.head.weight is not network.head.weight
    assert network.head.weight.requires_grad


def test_without_a_decay_the_trained_network_is_the_one() -> None:
    network = Network()
    wrapper = nn.Module()
    wrapper.module = network
    average = WeightAverage(wrapper, None)
    assert average.network is network
    train(network, average, [])
    assert average.state_dict() == {}
    average.load_state_dict({})


def test_state_brings_the_average_back() -> None:
    network = Network()
    average = WeightAverage(network, 0.5)
    train(network, average, [])
    other = WeightAverage(Network(), 0.5)
    other.load_state_dict(average.state_dict())
    assert other.updates == average.updates
    pairs = zip(other.network.state_dict().values(), average.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("decay", [1.0, -0.1, "0.9", True])
def test_decay_outside_its_range_is_refused(decay: Any) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        WeightAverage(Network(), decay)
