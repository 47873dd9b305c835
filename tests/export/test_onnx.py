"""ONNX files against the networks they were made from, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import make_adapter, make_full_segmenter, make_vit_segmenter
from torch import Tensor, nn

from dinomed.errors import DinomedError, InputError
from dinomed.export import export_onnx
from dinomed.export import onnx as onnx_export
from dinomed.ops import ms_deform_attn, ms_deform_attn_fused

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


class Attention(nn.Module):
    """Both operators, on the image's own pixels, at places that the image chooses."""

    multiple = 4

    def forward(self, image: Tensor) -> Tensor:
        batch, channels, height, width = image.shape
        value = image.flatten(2).transpose(1, 2).unflatten(-1, (2, channels // 2))
        offsets = 3 * image.mean(dim=(2, 3)).view(batch, 1, 2, 1, 1, 2) * torch.ones(1, height * width, 1, 1, 3, 1)
        logits = value.sum(dim=-1)[..., None, None] * torch.tensor([1.0, -1.0, 2.0])
        places = torch.sigmoid(image.flatten(2).transpose(1, 2)[..., :2])[:, :, None] * 1.2 - 0.1
        fused = ms_deform_attn_fused(value, [(height, width)], places, offsets, logits)
        locations = places[:, :, None, :, None].expand_as(offsets)
        plain = ms_deform_attn(value, [(height, width)], locations + 0.1 * offsets, logits.softmax(-1))
        return (fused + plain).transpose(1, 2).unflatten(-1, (height, width))


def nodes_of(path: Path) -> list[Any]:
    model = onnx.load(path)
    onnx.checker.check_model(model)
    return list(model.graph.node)


def axes(value: Any) -> list[int | str]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def run(path: Path, image: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]


def test_both_operators_become_gathers_for_any_batch_and_size(tmp_path: Path) -> None:
    exported = export_onnx(Attention(), tmp_path / "a.onnx", channels=4)
    kinds = {node.op_type for node in nodes_of(exported.path)}
    assert "Gather" in kinds
    assert "GridSample" not in kinds
    assert not [node for node in nodes_of(exported.path) if node.domain]
    assert exported.parity.max_relative_error < 1e-5
    for shape in ((1, 4, 8, 8), (5, 4, 12, 40)):
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(run(exported.path, image)[0], Attention()(image), rtol=1e-4, atol=1e-4)


def test_an_adapter_of_fixed_size_gives_four_maps_without_convolutions_that_batch_norm_follows(tmp_path: Path) -> None:
    exported = export_onnx(make_adapter(extractors=1), tmp_path / "a.onnx", size=(64, 96))
    model = onnx.load(exported.path)
    assert [axes(output)[2:] for output in model.graph.output] == [[16, 24], [8, 12], [4, 6], [2, 3]]
    assert [output.name for output in model.graph.output] == [f"map_{i}" for i in range(4)]
    assert exported.fixed_size == (64, 96)
    nodes = nodes_of(exported.path)
    convolved = {output for node in nodes if node.op_type == "Conv" for output in node.output}
    assert not [n for n in nodes if n.op_type == "BatchNormalization" and n.input[0] in convolved]
    assert exported.parity.label_agreement is None
    assert exported.parity.max_relative_error < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("make", "multiple"), [(make_full_segmenter, 32), (make_vit_segmenter, 16)])
def test_a_segmenter_of_any_size_gives_the_networks_logits(tmp_path: Path, make: Any, multiple: int) -> None:
    network = make()
    exported = export_onnx(network, tmp_path / "a.onnx")
    model = onnx.load(exported.path)
    sizes = ["batch", 3, f"{multiple}*rows", f"{multiple}*columns"]
    assert axes(model.graph.input[0]) == sizes
    assert axes(model.graph.output[0]) == sizes
    assert (exported.size_multiple, exported.fixed_size) == (multiple, None)
    image = torch.randn(4, 3, 3 * multiple, 7 * multiple, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(run(exported.path, image)[0], network(image), rtol=1e-4, atol=1e-5)


def test_a_file_that_differs_from_the_network_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = onnx_export._runner

    def wrong(path: Path) -> Any:
        run = original(path)
        return lambda image: [output + 0.01 for output in run(image)]

    monkeypatch.setattr(onnx_export, "_runner", wrong)
    with pytest.raises(DinomedError, match=r"a\.onnx in ONNX Runtime differs"):
        export_onnx(nn.Conv2d(3, 2, 1), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"needs no_such_package; .*dinomed\[export\]"):
        export_onnx(nn.Conv2d(3, 2, 1), tmp_path / "a.onnx")
