"""`dinomed export`: a bundle's network as a file that other programs run, checked against the network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.errors import InputError

if TYPE_CHECKING:
    from dinomed.export import Exported
    from dinomed.predictor import Predictor

FORMATS = ("onnx", "torch_export", "aoti")

EPILOG = """
onnx: standard operators for ONNX Runtime, TensorRT and others. torch_export: a program for torch.export.load. aoti:
machine code for torch._inductor.aoti_load_package. Beside the file goes FILE.json: input, output, labels, the
preprocessing that the file does not hold, and how far its results are from the network's. Not a medical device.
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser("export", help="write a bundle's network as ONNX or for PyTorch", description=__doc__)
    parser.epilog = EPILOG
    parser.add_argument("--bundle", required=True, metavar="NAME_OR_PATH", help="model, see `dinomed bundle list`")
    parser.add_argument("--format", required=True, choices=FORMATS, help="kind of file")
    parser.add_argument("--output", required=True, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument("--size", metavar="HxW", help="fixed size of images, such as 256x256 (default: any)")
    parser.add_argument("--device", default="cpu", help="where .pt2 files will run: cpu (default), cuda or cuda:N")
    parser.add_argument("--overlay", metavar="NAME_OR_FILE", help="variant of the bundle, by name or as a YAML file")
    parser.add_argument("--weights", metavar="FILE", help="weights to use instead of the bundle's")
    parser.add_argument("--json", action="store_true", help="print the description as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, check, and describe.

    Raises:
        InputError: If the bundle, the size or the place of the file cannot be used.
        DinomedError: If the network cannot be exported or the file's results differ.
    """
    from dinomed.cli.quiet import quiet

    size = None if arguments.size is None else parse_size(arguments.size)
    if arguments.format == "onnx" and arguments.device != "cpu":
        raise InputError("an ONNX file belongs to no device; leave --device out")
    with quiet():
        from dinomed.predictor import Predictor

        predictor = Predictor.from_bundle(
            arguments.bundle,
            device=arguments.device,
            precision="float32",
            overlay=arguments.overlay,
            weights=arguments.weights,
        )
        exported = _export(predictor, arguments, size)
        description = describe_export(predictor, exported)
        text = json.dumps(description, indent=2, allow_nan=False)
        beside = Path(f"{exported.path}.json")
        unfinished = beside.with_name(beside.name + ".new")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(beside)
    parity = exported.parity
    labels = "" if parity.label_agreement is None else f", labels equal on {parity.label_agreement:.3%} of the pixels"
    sizes = f"any multiple of {exported.size_multiple}" if size is None else arguments.size
    sentences = (
        f"{exported.path}: {exported.format}, images of {sizes} pixels; results differ from the network's by at most "
        f"{parity.max_relative_error:.1e} of the largest{labels}\n{beside}: input, output, labels, preprocessing"
    )
    print(text if arguments.json else sentences)
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """Turn "256x192" into height and width.

    Raises:
        InputError: If it is something else.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"--size {text!r} is no height and width; write it like 256x192")
    return int(parts[0]), int(parts[1])


def image_channels(predictor: Predictor) -> int:
    """Read from the bundle's metadata how many channels its network's images have; 3 where it does not say."""
    from dinomed.bundle.locate import read_metadata

    try:
        return int(read_metadata(predictor.root)["network_data_format"]["inputs"]["image"]["num_channels"])
    except (KeyError, TypeError, ValueError):
        return 3


def _export(predictor: Predictor, arguments: argparse.Namespace, size: tuple[int, int] | None) -> Exported:
    from dinomed.export import export_aoti, export_onnx, export_program

    options: dict[str, Any] = {"channels": image_channels(predictor), "size": size}
    if arguments.format == "onnx":
        return export_onnx(predictor.network, arguments.output, **options)
    write = export_program if arguments.format == "torch_export" else export_aoti
    return write(predictor.network, arguments.output, device=predictor.device, **options)


def describe_export(predictor: Predictor, exported: Exported) -> dict[str, Any]:
    """Say what a program needs to know to use the file, as JSON can hold it."""
    import torch

    height, width = exported.fixed_size or (None, None)
    return {
        "format": exported.format,
        "file": exported.path.name,
        "model": predictor.run.model(),
        "input": {
            "name": "image",
            "layout": "batch, channels, rows, columns",
            "dtype": "float32",
            "channels": image_channels(predictor),
            "height": height,
            "width": width,
            "multiple": exported.size_multiple,
        },
        "output": {"name": "logits", "layout": "batch, labels, rows, columns", "dtype": "float32"},
        "label_names": {str(value): name for value, name in predictor.label_names.items()},
        "planes": list(predictor.run.planes),
        "preprocessing": list(predictor.run.preprocessing),
        "parity": {
            "max_abs_error": exported.parity.max_abs_error,
            "max_relative_error": exported.parity.max_relative_error,
            "label_agreement": exported.parity.label_agreement,
            "image_shapes": [list(shape) for shape in exported.parity.image_shapes],
        },
        "device": "any" if exported.format == "onnx" else str(predictor.device),
        "torch_version": torch.__version__,
    }
