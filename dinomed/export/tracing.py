"""What every export shares: a folded copy of the network, its graph for any batch and size, and safe writing."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dinomed.errors import DinomedError, InputError, OutputError
from dinomed.export.parity import Parity
from dinomed.networks.blocks import ConvNormAct


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: The file.
        format: onnx, torch_export or aoti.
        size_multiple: Height and width of an image must be multiples of this, in pixels.
        fixed_size: Height and width if they are fixed; else None.
        parity: How far it is from the network.
    """

    path: Path
    format: str
    size_multiple: int
    fixed_size: tuple[int, int] | None
    parity: Parity


@dataclass(frozen=True)
class Traced:
    """A network's graph and what was traced.

    Attributes:
        program: Its input is `image`.
        network: The folded copy.
        multiple: See `Exported.size_multiple`.
        check_shapes: Shapes of images to check the result with; other batches, and other sizes if the size is free.
    """

    program: torch.export.ExportedProgram
    network: nn.Module
    multiple: int
    check_shapes: list[tuple[int, int, int, int]]


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Copy a network for inference, each batch norm that follows a convolution made part of it.

    Returns:
        A copy in eval mode, without gradients; the network itself stays as it is.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for block in folded.modules():
        if not isinstance(block, ConvNormAct) and type(block) is not nn.Sequential:
            continue
        for index in range(len(block) - 1):
            conv, norm = block[index], block[index + 1]
            if type(conv) is not nn.Conv2d or not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
                continue
            if norm.running_mean is not None:
                block[index] = fuse_conv_bn_eval(conv, norm)
                block[index + 1] = nn.Identity()
    return folded


def size_multiple(network: nn.Module) -> int:
    """Give what height and width must be a multiple of so that the network pads nothing: that of its backbones."""
    multiples = [getattr(module, "multiple", 1) for module in network.modules()]
    return max(multiples)


def trace(
    network: nn.Module, channels: int = 3, size: tuple[int, int] | None = None, device: str | torch.device = "cpu"
) -> Traced:
    """Capture a network's graph for any batch.

    Args:
        network: Images (B, C, H, W) to a tensor or a list of tensors.
        channels: C.
        size: Height and width that every image will have; None leaves them free.
        device: Where the graph will run.

    Raises:
        InputError: If the size does not suit the network.
        DinomedError: If the network cannot be captured.
    """
    folded = fold_batch_norms(network).to(device)
    multiple = size_multiple(folded)
    if size is not None and (min(size) < 1 or size[0] % multiple or size[1] % multiple):
        raise InputError(
            f"the size {size[0]}x{size[1]} cannot be exported; height and width must be multiples of {multiple}"
        )
    batch = torch.export.Dim("batch", min=1)
    dynamic: dict[int, Any] = {0: batch}
    height, width = (4 * multiple, 5 * multiple) if size is None else size
    others = [(3, channels, 6 * multiple, 4 * multiple)]
    if size is None:
        rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
        dynamic |= {2: multiple * rows, 3: multiple * columns}
    else:
        others = [(3, channels, height, width)]
    image = torch.zeros(2, channels, height, width, device=device)
    try:
        program = torch.export.export(_Named(folded), (image,), dynamic_shapes={"image": dynamic})
    except Exception as error:  # PyTorch's own have no common base
        free = "; give a fixed size" if size is None else ""
        raise DinomedError(f"the network cannot be captured by torch.export ({_short(error)}){free}") from error
    return Traced(program, folded, multiple, [(1, channels, height, width), *others])


class _Named(nn.Module):
    """Gives the input its name, whatever the network calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> Any:
        return self.network(image)


def write_safely(path: Path, suffix: str, write: Callable[[Path], None]) -> None:
    """Let `write` write the file and others beside it in a temporary folder, then move them to their place.

    Args:
        path: Where the file goes.
        suffix: What its name must end in.
        write: Called with a path of the same name elsewhere.

    Raises:
        OutputError: If the file cannot be written there.
    """
    if path.suffix != suffix:
        raise OutputError(f"{path} must end in {suffix}; choose such a name")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another place") from error
    try:
        write(folder / path.name)
        # The file that names the others comes last.
        for made in sorted(folder.iterdir(), key=lambda each: each.name == path.name):
            os.replace(made, path.parent / made.name)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
