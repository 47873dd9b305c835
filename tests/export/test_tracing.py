"""What every export shares: folding, sizes and safe writing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import drawn, make_adapter
from torch import nn

from dinomed.errors import InputError, OutputError
from dinomed.export.tracing import fold_batch_norms, size_multiple, trace, write_safely
from dinomed.networks.blocks import ConvNormAct


def test_batch_norms_after_convolutions_vanish_and_the_result_stays() -> None:
    network = drawn(nn.Sequential(ConvNormAct(3, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    folded = fold_batch_norms(network)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len([module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]) == 2
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded(image), network(image).detach(), rtol=1e-5, atol=1e-5)


def test_a_folded_adapter_gives_the_same_maps_and_leaves_the_network_as_it_was() -> None:
    adapter = make_adapter().train()
    folded = fold_batch_norms(adapter)
    assert adapter.training
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for one, other in zip(folded(image), adapter.eval()(image), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-4)


def test_the_size_must_be_a_multiple_of_the_largest_in_the_network() -> None:
    assert size_multiple(make_adapter()) == 32
    assert size_multiple(nn.Conv2d(3, 3, 1)) == 1
    with pytest.raises(InputError, match="48x64 cannot be exported; height and width must be multiples of 32"):
        trace(make_adapter(), size=(48, 64))


def test_a_file_and_what_lies_beside_it_arrive_together(tmp_path: Path) -> None:
    def write(place: Path) -> None:
        place.write_text("model")
        place.with_name("weights.bin").write_text("weights")

    write_safely(tmp_path / "new" / "a.onnx", ".onnx", write)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.onnx", "weights.bin"]


def test_nothing_is_left_where_writing_fails_and_the_old_file_stays(tmp_path: Path) -> None:
    def write(place: Path) -> None:
        place.write_text("half")
        raise RuntimeError

    (tmp_path / "a.onnx").write_text("old")
    with pytest.raises(RuntimeError):
        write_safely(tmp_path / "a.onnx", ".onnx", write)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "old"


def test_a_name_or_a_place_that_does_not_suit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    for path in (tmp_path / "a.bin", tmp_path / "file" / "a.onnx", tmp_path / "folder.onnx"):
        with pytest.raises(OutputError, match=str(path)):
            write_safely(path, ".onnx", lambda place: place.write_text(""))
