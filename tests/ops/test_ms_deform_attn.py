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


def test_a_point_on_a_pixel_centre_reads_that_pixel() -> None:
    value = torch.arange(20.0).view(1, 20, 1, 1)
    column, row = 2, 3
    location = torch.tensor([(column + 0.5) / 4, (row + 0.5) / 5]).view(1, 1, 1, 1, 1, 2)
    output = ms_deform_attn(value, [(5, 4)], location, torch.ones(1, 1, 1, 1, 1))
    assert output.item() == pytest.approx(row * 4 + column)


@pytest.mark.parametrize("location", [2.5, -1.5, 1e9, -1e30, float("inf"), -float("inf")])
def test_a_point_far_outside_reads_zero_even_beside_infinite_values(location: float) -> None:
    value, locations, weights = make_inputs(dtype=torch.float32)
    value[:, [0, -1]] = float("inf")
    locations[:] = location
    assert ms_deform_attn(value, SHAPES, locations, weights).eq(0).all()


def test_a_nan_location_gives_nan_in_its_own_query_and_head_only() -> None:
    value, locations, weights = make_inputs(dtype=torch.float32)
    expected = ms_deform_attn(value, SHAPES, locations, weights).view(2, 6, 3, 5).clone()
    expected[1, 4, 2] = float("nan")
    locations[1, 4, 2, 0, 0, 0] = float("nan")
    torch.testing.assert_close(
        ms_deform_attn(value, SHAPES, locations, weights).view(2, 6, 3, 5), expected, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_are_summed_in_single_precision_on_large_strided_maps(dtype: torch.dtype) -> None:
    shapes = [(200, 210)]
    value, locations, weights = make_inputs(batch=1, queries=50, shapes=shapes, dtype=torch.float32)
    half = value.transpose(1, 2).to(dtype).contiguous().transpose(1, 2)
    output = ms_deform_attn(half, shapes, locations, weights)
    assert output.dtype == dtype
    expected = ms_deform_attn(half.double(), shapes, locations.double(), weights.double())
    torch.testing.assert_close(output.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_mixed_types_each_get_a_gradient_of_their_own_type() -> None:
    value, locations, weights = make_inputs(dtype=torch.float32)
    inputs = [value.bfloat16().requires_grad_(), locations.requires_grad_(), weights.half().requires_grad_()]
    ms_deform_attn(inputs[0], SHAPES, inputs[1], inputs[2]).sum().backward()
    assert [tensor.grad.dtype for tensor in inputs] == [torch.bfloat16, torch.float32, torch.float16]


def test_strided_inputs_give_the_same_output_and_gradients() -> None:
    plain = [tensor.requires_grad_() for tensor in make_inputs()]
    strided = [tensor.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_() for tensor in plain]
    assert not any(tensor.is_contiguous() for tensor in strided)
    outputs = [ms_deform_attn(value, SHAPES, locations, weights) for value, locations, weights in (plain, strided)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(plain, strided, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(("batch", "queries"), [(0, 6), (2, 0)])
def test_empty_batches_and_queries_pass_and_give_zero_gradients(batch: int, queries: int) -> None:
    value, locations, weights = (tensor.requires_grad_() for tensor in make_inputs(batch, queries))
    output = ms_deform_attn(value, SHAPES, locations, weights)
    assert output.shape == (batch, queries, 15)
    output.sum().backward()
    assert value.grad is not None
    assert value.grad.eq(0).all()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_operator_passes_every_check_of_pytorch(requires_grad: bool) -> None:
    value, locations, weights = (tensor.requires_grad_(requires_grad) for tensor in make_inputs(dtype=torch.float32))
    heights, widths = zip(*SHAPES, strict=True)
    torch.library.opcheck(torch.ops.dinomed.ms_deform_attn, (value, heights, widths, locations, weights))


def test_backward_operator_passes_every_check_of_pytorch() -> None:
    value, locations, weights = make_inputs(dtype=torch.float32)
    heights, widths = zip(*SHAPES, strict=True)
    arguments = (torch.randn(2, 6, 15), value, heights, widths, locations, weights)
    torch.library.opcheck(torch.ops.dinomed.ms_deform_attn_backward, arguments)


def test_operator_stays_one_opaque_node_in_an_exported_graph_with_dynamic_batch_and_queries() -> None:
    class Read(torch.nn.Module):
        def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ms_deform_attn(value, SHAPES, locations, weights)

    batch, queries = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("queries", min=1, max=4096)
    dynamic = {"value": {0: batch}, "locations": {0: batch, 1: queries}, "weights": {0: batch, 1: queries}}
    program = torch.export.export(Read(), make_inputs(), dynamic_shapes=dynamic)
    nodes = [node for node in program.graph.nodes if node.target == torch.ops.dinomed.ms_deform_attn.default]
    assert len(nodes) == 1
    others = make_inputs(batch=3, queries=9)
    torch.testing.assert_close(program.module()(*others), Read()(*others))


def test_compiled_function_traces_in_one_dynamic_graph_and_trains() -> None:
    def loss(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, SHAPES, locations, weights).square().mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries in (6, 9):
        eager = [tensor.requires_grad_() for tensor in make_inputs(queries=queries)]
        traced = [tensor.detach().clone().requires_grad_() for tensor in eager]
        loss(*eager).backward()
        compiled(*traced).backward()
        for one, other in zip(eager, traced, strict=True):
            torch.testing.assert_close(one.grad, other.grad)


def test_a_kernel_registered_for_one_device_takes_the_place_of_the_reference() -> None:
    value, locations, weights = make_inputs()
    with torch.library._scoped_library("dinomed", "IMPL") as library:
        library.impl("ms_deform_attn", lambda value, *_: value.new_full((1,), 7.0), "CPU")
        assert ms_deform_attn(value, SHAPES, locations, weights).tolist() == [7.0]
    assert ms_deform_attn(value, SHAPES, locations, weights).shape == (2, 6, 15)


def test_differentiating_twice_is_refused() -> None:
    value, locations, weights = (tensor.requires_grad_() for tensor in make_inputs())
    (grad,) = torch.autograd.grad(ms_deform_attn(value, SHAPES, locations, weights).sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, s, p, w: (v, [(5, 4), (3, 3)], p, w), "hold 29 pixels but value has 26"),
        (lambda v, s, p, w: (v, s[:1], p, w), "1 spatial shapes were given for 2 levels"),
        (lambda v, s, p, w: (v[:, :, :2], s, p, w), "differ in batch or in heads"),
        (lambda v, s, p, w: (v, s, p[..., :1], w), "with 2 coordinates"),
        (lambda v, s, p, w: (v.flatten(2), s, p, w), r"must be \(B, S, M, D\)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(change, message: str) -> None:
    value, locations, weights = make_inputs()
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*change(value, SHAPES, locations, weights))
