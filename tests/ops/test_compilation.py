"""Both operators, forward and backward, under torch.compile, torch.export, Inductor, AOTInductor and autocast."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dinomed.ops import ms_deform_attn, ms_deform_attn_fused

HEADS, POINTS = 2, 3
Function = Callable[..., Tensor]
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="Inductor needs a C++ compiler"
)


def read_plain(first: Tensor, second: Tensor, places: Tensor, scores: Tensor) -> Tensor:
    """Sample two maps (B, M * D, H, W), whose sizes the graph must carry, by `ms_deform_attn`."""
    value, shapes = as_value(first, second)
    return ms_deform_attn(value, shapes, places, scores.flatten(3).softmax(-1).view(scores.shape)).square()


def read_fused(first: Tensor, second: Tensor, places: Tensor, scores: Tensor) -> Tensor:
    """Do the same by `ms_deform_attn_fused`, with reference points that a gradient reaches."""
    value, shapes = as_value(first, second)
    references = places.mean(dim=(2, 4)).sigmoid()
    return ms_deform_attn_fused(value, shapes, references, 2 * places, scores).square()


def as_value(*maps: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    return tokens.unflatten(-1, (HEADS, -1)), [(x.shape[2], x.shape[3]) for x in maps]


def make_inputs(batch: int = 2, queries: int = 6, rows: int = 5, columns: int = 4, depth: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, HEADS * depth, rows, columns), (batch, HEADS * depth, rows + 3, columns + 2)]
    shapes += [(batch, queries, HEADS, 2, POINTS, 2), (batch, queries, HEADS, 2, POINTS)]
    return [torch.randn(shape, generator=generator).sigmoid() for shape in shapes]


def results(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Give the output and the gradients of all inputs."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


def check_same(function: Function, other: Function, inputs: list[Tensor]) -> None:
    for one, two in zip(results(function, inputs), results(other, inputs), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


# No two sizes are equal: the compiler would take those for one.
DISTINCT = {"batch": 5, "queries": 13, "rows": 7, "columns": 9}
both = pytest.mark.parametrize("function", [read_plain, read_fused])


@both
def test_one_dynamic_graph_serves_all_batches_queries_and_sizes_forward_and_backward(function: Function) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    check_same(function, compiled, make_inputs(**DISTINCT))
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_same(function, compiled, make_inputs(batch=3, queries=9, rows=6, columns=4))


@both
def test_compiled_functions_take_strided_inputs(function: Function) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in make_inputs()]
    assert not any(x.is_contiguous() for x in strided)
    check_same(function, compiled, strided)


@both
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}], ids=str)
def test_empty_batches_and_queries_pass_eager_and_compiled(function: Function, sizes: dict[str, int]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    found = results(compiled, make_inputs(**sizes))
    assert found[0].shape == (sizes.get("batch", 2), sizes.get("queries", 6), 24)
    assert all(gradient.eq(0).all() for gradient in found[1:])
    check_same(function, compiled, make_inputs(**sizes))


@needs_compiler
@pytest.mark.slow
@both
def test_inductor_compiles_one_dynamic_graph_with_its_backward(function: Function) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    with torch._functorch.config.patch(enable_autograd_cache=False):  # it may hold graphs that other versions made
        check_same(function, compiled, make_inputs(**DISTINCT))
        with torch._dynamo.config.patch(error_on_recompile=True):
            check_same(function, compiled, make_inputs(batch=4, queries=70, rows=9, columns=8))


class Forward(nn.Module):
    """One of the functions as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, first: Tensor, second: Tensor, places: Tensor, scores: Tensor) -> Tensor:
        return self.function(first, second, places, scores)


class Backward(nn.Module):
    """Gradients by the backward operators, which an exported program calls by their names."""

    def forward(self, first: Tensor, second: Tensor, places: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        value, shapes = as_value(first, second)
        heights, widths = [h for h, _ in shapes], [w for _, w in shapes]
        references = places.mean(dim=(2, 4))
        gradient = torch.ones_like(places).sum(dim=(3, 4, 5)).repeat_interleave(value.shape[3], dim=2)
        plain = torch.ops.dinomed.ms_deform_attn_backward(gradient, value, heights, widths, places, scores)
        fused = torch.ops.dinomed.ms_deform_attn_fused_backward(
            gradient, value, heights, widths, references, places, scores
        )
        return (*plain, *fused)


def capture(module: nn.Module) -> torch.export.ExportedProgram:
    batch, queries = torch.export.Dim("batch", min=2), torch.export.Dim("queries", min=2)
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    dynamic = {
        "first": {0: batch, 2: rows, 3: columns},
        "second": {0: batch, 2: rows + 3, 3: columns + 2},
        "places": {0: batch, 1: queries},
        "scores": {0: batch, 1: queries},
    }
    return torch.export.export(module, tuple(make_inputs()), dynamic_shapes=dynamic)


MODULES = [(Forward(read_plain), 1), (Forward(read_fused), 1), (Backward(), 2)]
modules = pytest.mark.parametrize(("module", "operators"), MODULES, ids=["plain", "fused", "backward"])


def as_list(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@modules
def test_exported_programs_hold_the_operators_whole_for_any_batch_queries_and_size(
    module: nn.Module, operators: int
) -> None:
    program = capture(module)
    named = [node for node in program.graph.nodes if str(node.target).startswith("dinomed.")]
    assert len(named) == operators
    for inputs in (make_inputs(), make_inputs(batch=3, queries=9, rows=2, columns=6)):
        for one, other in zip(as_list(program.module()(*inputs)), as_list(module(*inputs)), strict=True):
            torch.testing.assert_close(one, other)


@needs_compiler
@pytest.mark.slow
@modules
def test_packages_of_machine_code_give_the_same(module: nn.Module, operators: int, tmp_path: Path) -> None:
    path = torch._inductor.aoti_compile_and_package(capture(module), package_path=str(tmp_path / "a.pt2"))
    package = torch._inductor.aoti_load_package(path)
    for inputs in (make_inputs(), make_inputs(batch=3, queries=9, rows=2, columns=6)):
        for one, other in zip(as_list(package(*inputs)), as_list(module(*inputs)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Layer(nn.Module):
    """The operator between linear layers, as an adapter has it."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.queries = nn.Linear(24, 24), nn.Linear(24, HEADS * POINTS * 3)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        value = self.values(tokens).unflatten(-1, (HEADS, -1))
        drawn = self.queries(tokens).unflatten(-1, (HEADS, 1, POINTS, 3))
        self.types = value.dtype, drawn.dtype
        references = torch.linspace(0, 1, 2 * tokens.shape[1]).view(-1, 2)
        return ms_deform_attn_fused(value, [size], references, drawn[..., :2], drawn[..., 2])


@pytest.mark.parametrize("compiled", [False, True])
def test_under_autocast_values_are_bfloat16_and_sums_and_gradients_stay_close(compiled: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = Layer()
    tokens = torch.randn(2, 20, 24)
    run = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager") if compiled else layer
    layer(tokens, (5, 4)).sum().backward()
    expected, gradient = layer(tokens, (5, 4)).detach(), layer.values.weight.grad.clone()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = run(tokens, (5, 4))
    output.float().sum().backward()
    assert layer.types == (torch.bfloat16, torch.bfloat16)
    assert output.dtype == torch.bfloat16
    assert layer.values.weight.grad.dtype == torch.float32
    assert (output - expected).norm() < 0.02 * expected.norm()
    assert (layer.values.weight.grad - gradient).norm() < 0.02 * gradient.norm()


@both
def test_vmap_over_a_leading_dimension_gives_each_part_its_own_result(function: Function) -> None:
    parts = [make_inputs(), [x.flip(0) for x in make_inputs()]]
    mapped = torch.vmap(function)(*(torch.stack(pair) for pair in zip(*parts, strict=True)))
    for one, inputs in zip(mapped, parts, strict=True):
        torch.testing.assert_close(one, function(*inputs))
