"""ONNX: the whole network in standard operators, for any batch and, by default, any size."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.errors import DinomedError, InputError
from dinomed.export.gather import DECOMPOSITIONS
from dinomed.export.parity import RELATIVE_TOLERANCE, as_outputs, check_parity
from dinomed.export.tracing import Exported, trace, write_safely

OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    relative_tolerance: float = RELATIVE_TOLERANCE,
) -> Exported:
    """Write a network as ONNX and compare what ONNX Runtime makes of it with the network itself.

    Deformable attention becomes gathers, batch norm a part of the convolution before it. The input is `image`
    (B, C, H, W); the output `logits`, or `map_0` and so on for a backbone. Nothing is left where the check fails.

    Args:
        network: A segmenter or a backbone; it stays as it is.
        path: The file, .onnx; weights beyond 2 GB go into files beside it.
        channels: Channels of the image.
        size: Height and width if they are to be fixed, in pixels; otherwise any multiple of the network's own.
        relative_tolerance: See `check_parity`.

    Raises:
        InputError: If a package is missing or the size does not suit the network.
        OutputError: If the file cannot be written.
        DinomedError: If the network cannot be exported or ONNX Runtime's results differ.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX export needs {', '.join(missing)}; install them with: pip install 'dinomed[export]'")
    file = Path(path)
    traced = trace(network, channels, size)
    # Only our operators are taken apart: the exporter knows the others, attention and norms among them, as wholes.
    program = traced.program.run_decompositions(DECOMPOSITIONS)
    with torch.no_grad():
        result = traced.network(torch.zeros(traced.check_shapes[0]))
    names = ["logits"] if isinstance(result, Tensor) else [f"map_{i}" for i in range(len(as_outputs(result)))]
    try:
        made = torch.onnx.export(
            program, (), dynamo=True, input_names=["image"], output_names=names, opset_version=OPSET, verbose=False
        )
    except Exception as error:  # the exporter's errors wrap whatever went wrong
        raise DinomedError(f"the network cannot be exported to ONNX ({' '.join(str(error).split())[:300]})") from error
    assert made is not None
    _name_axes(made)
    parity = []

    def write(place: Path) -> None:
        made.save(str(place))
        parity.append(
            check_parity(
                traced.network, _runner(place), traced.check_shapes, f"{file.name} in ONNX Runtime", relative_tolerance
            )
        )

    write_safely(file, ".onnx", write)
    return Exported(file, "onnx", traced.multiple, size, parity[0])


def _runner(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]

    return run


def _name_axes(made: Any) -> None:
    """Call the free sizes batch, rows and columns, instead of by the tracer's numbers, wherever they occur."""
    import onnx_ir

    graph = made.model.graph
    names = {}
    for axis, name in ((0, "batch"), (2, "rows"), (3, "columns")):
        for symbol in re.findall(r"[A-Za-z_]\w*", str(graph.inputs[0].shape[axis])):
            names[symbol] = name
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        if value.shape is not None and any(isinstance(size, onnx_ir.SymbolicDim) for size in value.shape):
            value.shape = onnx_ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: Any, names: dict[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return (
        None if size.value is None else re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), size.value)
    )
