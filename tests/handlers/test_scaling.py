from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from dinomed.handlers.optimisation import ClipGradients
from dinomed.handlers.scaling import LossScaling
from dinomed.inferers.precision import AutocastInferer


def train(precision: str, scaling: LossScaling, steps: int = 3, factor: float = 1.0) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    items = [{"image": torch.randn(4), "label": torch.zeros(1)} for _ in range(steps)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=torch.utils.data.DataLoader(items),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=lambda pred, label: factor * nn.functional.mse_loss(pred, label),
        inferer=AutocastInferer(precision),
        train_handlers=[scaling, ClipGradients(network, 1.0)],
        decollate=False,
    )
    trainer.run()
    return network, trainer


def test_float16_trains_with_a_scaled_loss_as_float32_does() -> None:
    half, trainer = train("float16", LossScaling("float16", "cpu"), factor=0.1)
    assert trainer.scaler.is_enabled()
    assert trainer.scaler.get_scale() == 65536
    full, plain = train("float32", LossScaling("float32", "cpu"), factor=0.1)
    assert plain.scaler is None
    torch.testing.assert_close(half.state_dict(), full.state_dict(), rtol=1e-2, atol=1e-3)
    assert not torch.equal(half.weight, full.weight)


def test_gradient_that_would_vanish_in_float16_arrives() -> None:
    torch.manual_seed(0)
    start = nn.Linear(4, 1).weight
    network, _ = train("float16", LossScaling("float16", "cpu"), factor=1e-7)
    assert not torch.equal(network.weight, start)


def test_overflowing_step_is_left_out_and_the_scale_lowered() -> None:
    scaling = LossScaling("float16", "cpu")
    scaling.scaler.load_state_dict({**scaling.state_dict(), "scale": 2.0**40})
    torch.manual_seed(0)
    start = nn.Linear(4, 1).weight
    network, trainer = train("float16", scaling, steps=1)
    assert torch.equal(network.weight, start)
    assert trainer.scaler.get_scale() == 2.0**39


def test_scale_comes_back_from_a_checkpoint() -> None:
    scaling, other = LossScaling("float16", "cpu"), LossScaling("float16", "cpu")
    scaling.scaler.load_state_dict({**scaling.state_dict(), "scale": 2.0**40})
    train("float16", scaling, steps=2)
    other.load_state_dict(scaling.state_dict())
    assert other.state_dict() == scaling.state_dict()
    assert other.state_dict()["scale"] == 2.0**38


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_other_precisions_have_no_state(precision: str) -> None:
    scaling = LossScaling(precision, "cpu")
    assert scaling.state_dict() == {}
    scaling.load_state_dict({})
