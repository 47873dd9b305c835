"""The operator against published numbers, finite differences and PyTorch's own operator checks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dinomed.ops import ms_deform_attn

SHAPES = [(5, 4), (3, 2)]


def make_inputs(
    batch: int = 2,
    queries: int = 6,
    heads: int = 3,
    depth: int = 5,
    points: int = 2,
    shapes: list[tuple[int, int]] = SHAPES,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations a tenth of a pixel or more off the lattice (some outside the map), and weights."""
    generator = torch.Generator().manual_seed(0)
    pixels = sum(height * width for height, width in shapes)
    value = torch.randn(batch, pixels, heads, depth, generator=generator, dtype=torch.float64)
    whole = torch.rand(batch, queries, heads, len(shapes), points, 2, generator=generator, dtype=torch.float64)
    part = 0.1 + 0.8 * torch.rand(whole.shape, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([[width, height] for height, width in shapes], dtype=torch.float64).view(-1, 1, 2)
    # Pixel centres lie at whole + 0.5, so floor(...) + 0.5 + part keeps clear of the function's kinks.
    locations = ((whole * (sizes + 3) - 2).floor() + 0.5 + part) / sizes
    weights = torch.rand(whole.shape[:-1], generator=generator, dtype=torch.float64)
    return value.to(dtype), locations.to(dtype), weights.to(dtype)


@pytest.mark.parametrize("case", range(4))
def test_forward_and_gradients_match_the_published_numbers(golden_dir: Path, case: int) -> None:
    arrays = load_file(golden_dir / "ms_deform_attn.safetensors")
    prefix = f"case{case}."
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [arrays[prefix + name].requires_grad_() for name in names]
    shapes = [tuple(shape) for shape in arrays[prefix + "spatial_shapes"].tolist()]
    output = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    torch.testing.assert_close(output, arrays[prefix + "output"], rtol=1e-9, atol=1e-10)
    output.backward(arrays[prefix + "grad_output"])
    for name, tensor in zip(names, inputs, strict=True):
        torch.testing.assert_close(tensor.grad, arrays[f"{prefix}grad_{name}"], rtol=1e-9, atol=1e-9)


def test_gradients_match_finite_differences_in_double_precision() -> None:
    value, locations, weights = (tensor.requires_grad_() for tensor in make_inputs())
    assert torch.autograd.gradcheck(lambda v, p, w: ms_deform_attn(v, SHAPES, p, w), (value, locations, weights))
