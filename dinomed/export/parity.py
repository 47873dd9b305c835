"""The check that an exported file computes what the network computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dinomed.errors import DinomedError

# Float32 programs that sum in other orders were some 1e-6 apart; a wrong one is 1e-2 off or more.
RELATIVE_TOLERANCE = 1e-4
# Of pixels whose two best classes are all but equal some flip.
LABEL_AGREEMENT = 0.999

Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Parity:
    """How far two programs were apart.

    Attributes:
        max_abs_error: Largest difference.
        max_relative_error: Largest difference over the largest number of the same output.
        label_agreement: Share of pixels with the same winning class; None where the outputs are no logits.
        image_shapes: Shapes of the images that were tried, (B, C, H, W).
    """

    max_abs_error: float
    max_relative_error: float
    label_agreement: float | None
    image_shapes: tuple[tuple[int, ...], ...]


def as_outputs(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Give one tensor or several as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def make_image(shape: tuple[int, int, int, int], seed: int = 0) -> Tensor:
    """Draw an image (B, C, H, W) of smooth patches with some noise, about standard normal, as normalised scans are."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn((*shape[:2], 8, 8), generator=generator)
    noise = 0.1 * torch.randn(shape, generator=generator)
    return F.interpolate(patches, size=shape[2:], mode="bilinear") + noise


def check_parity(
    network: nn.Module,
    run: Run,
    image_shapes: Sequence[tuple[int, int, int, int]],
    what: str,
    relative_tolerance: float = RELATIVE_TOLERANCE,
) -> Parity:
    """Compare a program with the network it was made from.

    Args:
        network: In eval mode.
        run: The program: an image (B, C, H, W) on the network's device to the network's outputs.
        image_shapes: Shapes of the images to try.
        what: What the program is, for the message.
        relative_tolerance: Largest difference allowed, relative to the output's largest number.

    Raises:
        DinomedError: If an output has another shape, is not finite where the network's is, or is too far off.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    errors, relative_errors, agreements = [0.0], [0.0], []
    for seed, shape in enumerate(image_shapes):
        image = make_image(shape, seed).to(device)
        with torch.no_grad():
            result = network(image)
        expected = as_outputs(result)
        found = [output.to(device) for output in run(image)]
        shapes = [[tuple(output.shape) for output in outputs] for outputs in (expected, found)]
        if shapes[0] != shapes[1]:
            raise DinomedError(f"{what} gives outputs of shapes {shapes[1]}, the network {shapes[0]}; do not use it")
        for one, other in zip(expected, found, strict=True):
            error, scale = (other - one).abs().max().item(), one.abs().max().item()
            errors.append(error)
            relative_errors.append(error / max(scale, 1e-12))
        if isinstance(result, Tensor):
            agreements.append((expected[0].argmax(1) == found[0].argmax(1)).float().mean().item())
    worst = max(relative_errors, key=lambda error: float("inf") if error != error else error)  # NaN is the worst
    agreement = min(agreements) if agreements else None
    if not worst <= relative_tolerance or (agreement is not None and agreement < LABEL_AGREEMENT):
        labels = "" if agreement is None else f" and agrees on {agreement:.2%} of the labels"
        raise DinomedError(
            f"{what} differs from the network by {worst:.1e} of the largest output{labels}, where "
            f"{relative_tolerance:.0e} and {LABEL_AGREEMENT:.1%} are allowed; do not use it and report this"
        )
    return Parity(max(errors), worst, agreement, tuple(tuple(shape) for shape in image_shapes))
