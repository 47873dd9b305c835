"""Loading a whole network's weights: all of them or an error, never something random."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dinomed.bundle.checkpoint import load_network
from dinomed.errors import WeightsError


def make_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    network = make_network()
    nn.init.normal_(network[1].running_mean)
    return network.state_dict()


def equal(network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"network": state, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
    ],
    ids=["bare", "state_dict", "model", "network", "data parallel"],
)
def test_every_usual_wrapping_is_loaded(wrap: Callable[[Any], Any], state: dict, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(wrap(state), path)
    network = make_network()
    assert not equal(network, state)
    assert load_network(network, path) is network
    assert equal(network, state)
    assert not network.training


def test_safetensors_are_loaded(state: dict, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    assert equal(load_network(make_network(), tmp_path / "model.safetensors", "cpu"), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_take_on_the_networks_types(dtype: torch.dtype, state: dict, tmp_path: Path) -> None:
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    torch.save(half, tmp_path / "model.pt")
    network = load_network(make_network(), tmp_path / "model.pt")
    assert network[0].weight.dtype == torch.float32
    assert torch.equal(network[0].weight, half["0.weight"].float())
    assert network[1].num_batches_tracked.dtype == torch.int64


def broken(state: dict, how: str) -> Any:
    state = dict(state)
    if how == "missing":
        del state["0.bias"]
    elif how == "unexpected":
        state["head.weight"] = torch.ones(2)
    elif how == "shape":
        state["0.weight"] = torch.ones(4, 1, 3, 3)
    elif how == "nan":
        state["0.bias"] = torch.full((4,), float("nan"))
    elif how == "infinite":
        state["1.running_mean"] = torch.full((4,), float("inf"))
    elif how == "text":
        state["note"] = "hello"
    elif how == "empty":
        state = {}
    return state


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", r"1 missing \(0\.bias\)"),
        ("unexpected", r"1 unexpected \(head\.weight\)"),
        ("shape", r"0\.weight: \(4, 1, 3, 3\) in the file, \(4, 3, 3, 3\) in the network"),
        ("nan", r"1 not finite \(0\.bias\).*take another file"),
        ("infinite", "not finite"),
        ("text", r"entries other than tensors \(note\)"),
        ("empty", "is empty"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(how: str, words: str, state: dict, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(broken(state, how), path)
    network = make_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=words) as caught:
        load_network(network, path)
    assert str(path) in str(caught.value)
    assert equal(network, before)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such weights file; .*--weights"):
        load_network(make_network(), tmp_path / "model.pt")


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        load_network(make_network(), path)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half a zip"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.pt"):
        load_network(make_network(), path)


def test_a_truncated_file_is_refused(state: dict, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"model\.pt"):
        load_network(make_network(), path)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_file_is_never_run(plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if plain:
        Path("model.pt").write_bytes(pickle.dumps({"weight": Trap()}))
    else:
        torch.save({"weight": Trap()}, "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt"):
        load_network(make_network(), "model.pt")
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda value: value.to_sparse(),
        lambda value: value.to(torch.complex64),
        lambda value: value.to("meta"),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(
    make: Callable[[torch.Tensor], torch.Tensor], state: dict, tmp_path: Path
) -> None:
    torch.save({"state_dict": state | {"0.bias": make(state["0.bias"])}}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"odd\.pt"):
        load_network(make_network(), tmp_path / "odd.pt")


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["a"] = content
    torch.save(content, tmp_path / "cycle.pt")
    with pytest.raises(WeightsError, match=r"cycle\.pt"):
        load_network(make_network(), tmp_path / "cycle.pt")
