from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from dinomed.inferers import precision
from dinomed.inferers.precision import AutocastInferer, native_bfloat16, resolve_precision

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """A layer that remembers what type its product had."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.seen: torch.dtype | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        product = self.layer(inputs)
        self.seen = product.dtype
        return product


def test_named_precisions_are_those_types() -> None:
    assert resolve_precision("float32", CPU) is torch.float32
    assert resolve_precision("bfloat16", CPU) is torch.bfloat16


@pytest.mark.parametrize("native", [True, False])
def test_auto_follows_the_device(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: native)
    assert resolve_precision("auto", CPU) is (torch.bfloat16 if native else torch.float32)


def test_other_devices_do_not_count_as_native() -> None:
    assert not native_bfloat16(torch.device("meta"))
    assert isinstance(native_bfloat16(CPU), bool)


def test_unknown_precision_is_refused_with_the_choices() -> None:
    for build in (lambda: resolve_precision("half", CPU), lambda: AutocastInferer("half")):
        with pytest.raises(ValueError, match="'half' is unknown; choose from auto, float32, bfloat16"):
            build()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_network_computes_in_the_precision_and_gives_float32(name: str) -> None:
    network = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = AutocastInferer(name)(torch.ones(4, 3), network)
    assert network.seen is getattr(torch, name)
    assert logits.dtype is torch.float32
    assert network.layer.weight.dtype is torch.float32
    logits.sum().backward()
    assert network.layer.weight.grad is not None
    assert network.layer.weight.grad.dtype is torch.float32


def test_float32_is_exact_even_within_an_autocast_of_the_caller() -> None:
    network, inputs = Recorder(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = AutocastInferer("float32")(inputs, network)
    assert torch.equal(logits, network(inputs))


def test_further_arguments_reach_the_network() -> None:
    inferer = AutocastInferer("float32")
    assert torch.equal(
        inferer(torch.ones(2), lambda x, scale, shift: x * scale + shift, 3, shift=1), torch.full((2,), 4.0)
    )


def test_logits_of_several_tasks_are_float32_each() -> None:
    network = Recorder()
    logits = AutocastInferer("bfloat16")(torch.ones(4, 3), lambda inputs: {"one": network(inputs)})
    assert network.seen is torch.bfloat16
    assert logits["one"].dtype is torch.float32
