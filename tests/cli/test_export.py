"""`dinomed export` on a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_bundle import LABELS, make_bundle

from dinomed.cli.main import main
from dinomed.predictor import Predictor


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundles")


def test_a_program_and_its_description_are_written(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "net.pt2"
    assert main(["export", "--bundle", str(bundle), "--format", "torch_export", "--output", str(output)]) == 0
    assert "torch_export, images of any multiple of 1 pixels" in capsys.readouterr().out
    told = json.loads(Path(f"{output}.json").read_text())
    assert list(told["label_names"].values()) == LABELS
    assert told["input"] | {"channels": 3, "height": None, "multiple": 1} == told["input"]
    assert told["model"]["weights_sha256"]
    assert told["preprocessing"]
    assert told["parity"]["label_agreement"] == 1.0
    image = torch.randn(2, 3, 30, 20)
    network = Predictor.from_bundle(bundle, device="cpu", precision="float32").network
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(output).module()(image), network(image))


def test_an_onnx_file_of_fixed_size_is_written(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    output = tmp_path / "net.onnx"
    command = ["export", "--bundle", str(bundle), "--format", "onnx", "--output", str(output), "--size", "32x48"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input"]["width"] == 48
    sizes = onnx.load(output).graph.output[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes[1:]] == [3, 32, 48]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--format", "onnx", "--output", "a.onnx", "--size", "big"], "write it like 256x192"),
        (["--format", "onnx", "--output", "a.onnx", "--device", "cuda"], "leave --device out"),
        (["--format", "aoti", "--output", "a.onnx"], "must end in .pt2"),
        (["--format", "torch_export", "--output", "a.pt2", "--size", "0x16"], "cannot be exported"),
    ],
)
def test_wrong_arguments_are_exit_status_2_and_leave_nothing(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    said: str,
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["export", "--bundle", str(bundle), *extra]) == 2
    assert said in capsys.readouterr().err
    assert list(folder.iterdir()) == []
