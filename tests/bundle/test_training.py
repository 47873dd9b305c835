from __future__ import annotations

import math
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import distributed, nn

from dinomed.bundle import distribution
from dinomed.bundle.training import (
    connect,
    distribute,
    join_processes,
    leave_processes,
    parameter_groups,
    prepare_run,
    process_count,
    process_device,
    start_network,
)
from dinomed.errors import InputError, WeightsError
from dinomed.handlers.logs import ValidationLog
from dinomed.handlers.resume import BestWeights
from dinomed.networks.segformer import SegFormer


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give every process-wide setting back."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_flush_denormal(False)


class Segmenter(nn.Module):
    """The parts of a segmenter with an adapter that parameter groups look at."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()  # the adapter
        self.backbone.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(4))
        self.backbone.extractor = nn.Linear(4, 4)
        self.decoder = nn.Conv2d(4, 2, 1)


def test_seed_decides_all_random_numbers() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    prepare_run(3)
    first = draw()
    prepare_run(3)
    assert draw() == first
    prepare_run(4)
    assert draw() != first


def test_large_seeds_are_taken() -> None:
    prepare_run(2**40)


def test_deterministic_kernels_are_asked_for_as_told() -> None:
    prepare_run(0)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    prepare_run(0, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_network_starts_from_named_weights_or_its_own(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "w.pt")
    network = start_network(nn.Conv2d(3, 4, 3), tmp_path / "w.pt", "cpu")
    assert torch.equal(network.state_dict()["weight"], torch.load(tmp_path / "w.pt", weights_only=True)["weight"])
    own = nn.Conv2d(3, 4, 3)
    before = own.weight.clone()
    assert start_network(own, None, "cpu") is own
    assert torch.equal(own.weight, before)
    assert own.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_another_network_or_none_stop_the_start(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 5, 3).state_dict(), tmp_path / "w.pt")
    for path in (tmp_path / "w.pt", tmp_path / "absent.pt"):
        with pytest.raises(WeightsError, match=path.name):
            start_network(nn.Conv2d(3, 4, 3), path, "cpu")


def test_groups_hold_every_parameter_once_at_its_rate() -> None:
    network = Segmenter()
    groups = parameter_groups(network, 0.1, 0.01)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group.get("weight_decay", "default"))
        for group in groups
        for parameter in group["params"]
    }
    assert found == {
        "backbone.backbone.0.weight": (0.01, "default"),
        "backbone.backbone.0.bias": (0.01, 0.0),
        "backbone.backbone.1.weight": (0.01, 0.0),
        "backbone.backbone.1.bias": (0.01, 0.0),
        "backbone.extractor.weight": (0.1, "default"),
        "backbone.extractor.bias": (0.1, 0.0),
        "decoder.weight": (0.1, "default"),
        "decoder.bias": (0.1, 0.0),
    }
    assert sum(len(group["params"]) for group in groups) == len(found)
    assert groups[0]["lr"] == 0.1
    assert "weight_decay" not in groups[0]


def test_frozen_backbone_has_no_group() -> None:
    network = Segmenter()
    network.backbone.backbone.requires_grad_(False)
    assert {group["lr"] for group in parameter_groups(network, 0.1, 0.01)} == {0.1}


def test_network_without_adapter_and_wrapped_network_have_groups_too() -> None:
    network = Segmenter()
    network.backbone = network.backbone.backbone
    plain = parameter_groups(network, 0.1, 0.01)
    wrapper = nn.Module()
    wrapper.module = network
    wrapped = parameter_groups(wrapper, 0.1, 0.01)
    sizes = [(group["lr"], len(group["params"])) for group in plain]
    assert (
        sizes
        == [(group["lr"], len(group["params"])) for group in wrapped]
        == [(0.1, 1), (0.1, 1), (0.01, 1), (0.01, 3)]
    )


def test_encoder_of_a_segformer_has_the_backbones_rate() -> None:
    pytest.importorskip("transformers")
    tiny = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 1, 1]}
    network = SegFormer(3, "b0", decoder_hidden_size=8, **tiny)
    groups = parameter_groups(network, 0.1, 0.01)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(network.parameters())) == sum(len(group["params"]) for group in groups)
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == (0.1 if name.startswith("model.decode_head.") else 0.01), name
    assert [group.get("weight_decay") for group in groups] == [None, 0.0, None, 0.0]


def test_network_without_a_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="a Linear has no backbone whose learning rate could be set"):
        parameter_groups(nn.Linear(1, 1), 0.1, 0.01)


def test_evaluators_handlers_learn_their_trainer(tmp_path: Path) -> None:
    trainer = Engine(lambda engine, batch: None)
    log, best = ValidationLog(tmp_path), BestWeights(tmp_path / "b.pt", nn.Linear(1, 1))
    connect(trainer, [log, best, object()])
    assert log.trainer is best.trainer is trainer


def test_one_process_without_torchrun() -> None:
    assert process_count() == 1
    assert process_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="start it with torchrun"):
        join_processes()
    leave_processes()  # nothing to leave


def test_processes_meet_wrap_the_network_and_part(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distribution, "process_device", lambda: torch.device("cpu"))
    network = distribute(nn.Linear(2, 2), torch.device("cpu"))
    try:
        join_processes()  # a second time changes nothing
        assert distributed.get_world_size() == process_count() == 1
        assert isinstance(network, nn.parallel.DistributedDataParallel)
    finally:
        leave_processes()
    assert not distributed.is_initialized()
    leave_processes()


@pytest.mark.parametrize("wrong", ["abc", "1e-4", -1, math.nan, math.inf, True, None])
def test_learning_rates_that_are_no_rates_are_refused(wrong: Any) -> None:
    for rates, name in (((wrong, 0.1), "learning_rate"), ((0.1, wrong), "backbone_learning_rate")):
        with pytest.raises(InputError, match=f"^{name} is {wrong!r}; give a number from 0 on"):
            parameter_groups(nn.Linear(1, 1), *rates)


def test_a_device_that_is_not_here_is_refused() -> None:
    for device in ("cuda:99", "tpu"):
        with pytest.raises(InputError, match=f"device is '{device}', which cannot be used here"):
            start_network(nn.Linear(1, 1), None, device)


def test_a_seed_and_determinism_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(InputError, match="seed is 'abc'"):
        prepare_run("abc")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="deterministic is 'maybe'; give true or false"):
        prepare_run(0, "maybe")  # type: ignore[arg-type]
