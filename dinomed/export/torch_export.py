"""Programs that PyTorch runs without the network's Python code: torch.export files and AOTInductor packages.

Deformable attention stays one operator there: `import dinomed.ops` must come before such a file is loaded. It then
runs with the compiled kernel where there is one, and as plain PyTorch where not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.errors import DinomedError
from dinomed.export.parity import RELATIVE_TOLERANCE, as_outputs, check_parity
from dinomed.export.tracing import Exported, Traced, trace, write_safely

SUFFIX = ".pt2"


def export_program(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    relative_tolerance: float = RELATIVE_TOLERANCE,
) -> Exported:
    """Write a network as a torch.export program, load it again and compare it with the network.

    Args:
        network: A segmenter or a backbone; it stays as it is.
        path: The file, .pt2, for `torch.export.load`.
        channels: Channels of the image.
        size: Height and width if they are to be fixed, in pixels; otherwise any multiple of the network's own.
        device: Where the program will run.
        relative_tolerance: See `check_parity`.

    Raises:
        InputError: If the size does not suit the network.
        OutputError: If the file cannot be written.
        DinomedError: If the network cannot be captured or the program's results differ.
    """
    traced = trace(network, channels, size, device)

    def write(place: Path) -> Any:
        torch.export.save(traced.program, place)
        return torch.export.load(place).module()

    return _write_and_check(traced, Path(path), "torch_export", size, write, relative_tolerance)


def export_aoti(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    relative_tolerance: float = RELATIVE_TOLERANCE,
) -> Exported:
    """Compile a network ahead of time with Inductor, load the package again and compare it with the network.

    The package holds machine code for this kind of processor and device, and needs a C++ compiler to be made, none
    to run.

    Args:
        network: A segmenter or a backbone; it stays as it is.
        path: The file, .pt2, for `torch._inductor.aoti_load_package`.
        channels: Channels of the image.
        size: Height and width if they are to be fixed, in pixels; otherwise any multiple of the network's own.
        device: Where the package will run.
        relative_tolerance: See `check_parity`.

    Raises:
        InputError: If the size does not suit the network.
        OutputError: If the file cannot be written.
        DinomedError: If the network cannot be captured or compiled, or the package's results differ.
    """
    traced = trace(network, channels, size, device)

    def write(place: Path) -> Any:
        from torch._inductor import aoti_compile_and_package, aoti_load_package

        try:
            aoti_compile_and_package(traced.program, package_path=str(place))
        except Exception as error:  # Inductor's errors wrap whatever went wrong, the C++ compiler's among them
            raise DinomedError(
                f"Inductor cannot compile the network ({' '.join(str(error).split())[:300]}); is there a C++ compiler?"
            ) from error
        return aoti_load_package(str(place))

    return _write_and_check(traced, Path(path), "aoti", size, write, relative_tolerance)


def _write_and_check(
    traced: Traced, file: Path, kind: str, size: tuple[int, int] | None, write: Any, relative_tolerance: float
) -> Exported:
    parity = []

    def write_and_check(place: Path) -> None:
        program = write(place)

        def run(image: Tensor) -> Sequence[Tensor]:
            with torch.no_grad():
                return as_outputs(program(image))

        what = f"{file.name}, loaded again,"
        parity.append(check_parity(traced.network, run, traced.check_shapes, what, relative_tolerance))

    write_safely(file, SUFFIX, write_and_check)
    return Exported(file, kind, traced.multiple, size, parity[0])
