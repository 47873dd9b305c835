"""The CUDA kernels against the plain-PyTorch reference in float64 on the CPU.

They run on a GPU (`pytest -m gpu`), or, most of them, on the CPU: `make emulate-cuda` compiles the kernels' source
against a stand-in for CUDA and names the library in DINOMED_EMULATED_CUDA.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dinomed.ops import kernel_status, ms_deform_attn, ms_deform_attn_fused
from dinomed.ops.ms_deform_attn import _reference, _reference_backward
from dinomed.ops.ms_deform_attn_fused import locations_and_weights

EMULATED = os.environ.get("DINOMED_EMULATED_CUDA")
DEVICE = "cpu" if EMULATED else "cuda"
pytestmark = [] if EMULATED else [pytest.mark.gpu]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    if EMULATED:
        assert kernel_status()["CPU"].endswith("DINOMED_CPU_KERNEL=none"), "the CPU's own kernels must stay away"
        ctypes.CDLL(EMULATED)  # registers the kernels for the CPU
    elif not kernel_status()["CUDA"].startswith("compiled kernel"):
        pytest.skip(f"CUDA runs {kernel_status()['CUDA']}")


def make_inputs(
    shapes: list[tuple[int, int]],
    batch: int = 2,
    queries: int = 13,
    heads: int = 3,
    depth: int = 12,
    points: int = 4,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, reference points, offsets of a few pixels and logits, all float64 numbers that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    levels, pixels = len(shapes), sum(height * width for height, width in shapes)
    value = torch.randn(batch, pixels, heads, depth, generator=generator)
    references = torch.rand(batch, queries, levels, 2, generator=generator) * 1.2 - 0.1
    offsets = torch.randn(batch, queries, heads, levels, points, 2, generator=generator) * 2
    logits = torch.randn(batch, queries, heads, levels, points, generator=generator) * 2
    return value.double(), references.double(), offsets.double(), logits.double()


class Reference(torch.autograd.Function):
    """Plain PyTorch on the CPU, whatever is registered there."""

    @staticmethod
    def forward(ctx, value, heights, widths, locations, weights):
        ctx.save_for_backward(value, locations, weights)
        ctx.sizes = heights, widths
        return _reference(value, heights, widths, locations, weights)

    @staticmethod
    def backward(ctx, gradient):
        value, locations, weights = ctx.saved_tensors
        grad_value, grad_locations, grad_weights = _reference_backward(
            gradient.contiguous(), value, *ctx.sizes, locations, weights
        )
        return grad_value, None, None, grad_locations, grad_weights


def reference_fused(value: Tensor, shapes: list[tuple[int, int]], *rest: Tensor) -> Tensor:
    heights, widths = split(shapes)
    return Reference.apply(value, heights, widths, *locations_and_weights(value, heights, widths, *rest))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def split(shapes: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [height for height, _ in shapes], [width for _, width in shapes]


def on_device(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [tensor.to(DEVICE, dtype) for tensor in tensors]


ONE = [(9, 7)]
MANY = [(8, 6), (5, 1), (1, 1), (3, 4), (2, 9)]
# Depth, heads, levels, points: all head sizes in use, odd and wide ones, 1 to 5 levels, 1 to 16 points and more.
CASES = [
    *((12, 16, ONE, 4), (24, 3, ONE, 4), (32, 5, MANY[:2], 4), (40, 2, MANY[:3], 3), (128, 1, MANY[:4], 4)),
    *((1, 4, MANY, 1), (2, 3, ONE, 4), (6, 3, ONE, 4), (7, 3, MANY, 5), (17, 2, ONE, 16), (64, 2, MANY, 16)),
    *((65, 1, MANY, 2), (200, 1, ONE, 7), (520, 1, ONE, 2), (4, 2, ONE, 100), (3, 1, [(2, 2)] * 20, 3)),
]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}
choices = pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])


@pytest.mark.parametrize(("depth", "heads", "shapes", "points"), CASES)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@choices
def test_forward_and_gradients_agree_with_the_double_reference(
    deterministic: bool, dtype: torch.dtype, depth: int, heads: int, shapes: list[tuple[int, int]], points: int
) -> None:
    value, references, offsets, logits = make_inputs(shapes, heads=heads, depth=depth, points=points)
    heights, widths = split(shapes)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    value = value.to(dtype).double()
    locations, weights = locations_and_weights(value, heights, widths, references, offsets, logits)
    locations, weights = locations.to(real).double(), weights.to(real).double()
    given = [value.to(DEVICE, dtype), heights, widths, *on_device(locations, weights, dtype=real)]
    output = torch.ops.dinomed.ms_deform_attn(*given, deterministic)
    assert output.dtype == dtype
    assert relative_error(output, _reference(value, heights, widths, locations, weights)) < TOLERANCES[dtype]
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.ops.dinomed.ms_deform_attn_backward(gradient.to(DEVICE), *given, deterministic)
    expected = _reference_backward(gradient.double(), value, heights, widths, locations, weights)
    for one, other, allowed in zip(found, expected, (dtype, real, real), strict=True):
        assert one.dtype == allowed
        # Location gradients jump at pixel edges, where float32 and float64 may fall on different sides.
        assert relative_error(one, other) < max(TOLERANCES[allowed], 2e-6 if real == torch.float32 else 0)


@pytest.mark.parametrize(("depth", "heads", "shapes", "points"), CASES)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@choices
def test_fused_operator_agrees_with_softmax_and_locations_in_double(
    deterministic: bool, dtype: torch.dtype, depth: int, heads: int, shapes: list[tuple[int, int]], points: int
) -> None:
    value, references, offsets, logits = make_inputs(shapes, heads=heads, depth=depth, points=points)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    exact = [tensor.requires_grad_() for tensor in (value.to(dtype).double(), references, offsets, logits)]
    expected = reference_fused(exact[0], shapes, *exact[1:])
    given = [tensor.detach().to(DEVICE, dtype if i == 0 else real).requires_grad_() for i, tensor in enumerate(exact)]
    output = ms_deform_attn_fused(given[0], shapes, *given[1:], deterministic=deterministic)
    assert relative_error(output.detach(), expected.detach()) < TOLERANCES[dtype]
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    output.backward(gradient.to(DEVICE))
    expected.backward(gradient.double())
    for one, other in zip(given, exact, strict=True):
        assert one.grad is not None
        assert relative_error(one.grad, other.grad) < max(TOLERANCES[one.dtype], 4e-6 if real == torch.float32 else 0)


def test_eighty_random_small_problems_agree_with_the_reference() -> None:
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for seed in range(80):
        shapes = [(draw(1, 9), draw(1, 9)) for _ in range(draw(1, 5))]
        sizes = {"batch": draw(1, 3), "queries": draw(1, 20), "heads": draw(1, 6)}
        exact = make_inputs(shapes, **sizes, depth=draw(1, 70), points=draw(1, 17), seed=seed)
        if draw(0, 1):
            exact = (exact[0], exact[1][:1, :, :1], *exact[2:])
        exact = [tensor.requires_grad_() for tensor in exact]
        given = [tensor.requires_grad_() for tensor in on_device(*(tensor.detach() for tensor in exact))]
        expected = reference_fused(exact[0], shapes, *exact[1:])
        found = ms_deform_attn_fused(given[0], shapes, *given[1:], deterministic=bool(draw(0, 1)))
        assert relative_error(found.detach(), expected.detach()) < 1e-5, (seed, shapes, sizes)
        found.sum().backward()
        expected.sum().backward()
        for one, other in zip(given, exact, strict=True):
            assert relative_error(one.grad, other.grad) < 2e-5, (seed, shapes, sizes)


@pytest.mark.parametrize("place", [3e38, -3e38, 1e9, float("inf"), -float("inf"), 1.6, -0.6])
def test_points_far_outside_read_zero_beside_infinite_values_and_have_no_gradient(place: float) -> None:
    shapes = [(4, 4), (3, 5)]
    value = torch.full((1, 31, 2, 12), float("inf"), device=DEVICE)
    locations = torch.full((1, 20, 2, 2, 4, 2), 0.5, device=DEVICE)
    locations[..., 1] = place
    weights = torch.ones(locations.shape[:-1], device=DEVICE)
    given = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    for deterministic in (False, True):
        output = ms_deform_attn(value, shapes, locations, weights, deterministic=deterministic)
        assert output.eq(0).all()
        assert all(grad.eq(0).all() for grad in torch.autograd.grad(output.sum(), given))
    if abs(place) > 1:
        offsets = torch.full_like(locations, place) * 10
        references = torch.full((20, 2), 0.5, device=DEVICE)
        assert ms_deform_attn_fused(value, shapes, references, offsets, weights).eq(0).all()


@pytest.mark.parametrize("coordinate", [0, 1])
def test_a_nan_location_spoils_only_its_query_and_head(coordinate: int) -> None:
    shapes = [(4, 4), (3, 5)]
    value, references, offsets, logits = on_device(*make_inputs(shapes))
    clean = ms_deform_attn_fused(value, shapes, references, offsets, logits).view(2, 13, 3, 12)
    offsets[1, 4, 1, 0, 2, coordinate] = float("nan")
    given = [tensor.requires_grad_() for tensor in (value, references, offsets, logits)]
    output = ms_deform_attn_fused(value, shapes, references, offsets, logits, deterministic=True)
    spoiled = output.detach().view(2, 13, 3, 12).clone()
    assert spoiled[1, 4, 1].isnan().all()
    spoiled[1, 4, 1] = clean[1, 4, 1]
    assert torch.equal(spoiled, clean)
    grad_value, _, grad_offsets, _ = torch.autograd.grad(output.nan_to_num().sum(), given)
    assert grad_value.isfinite().all()
    assert grad_offsets.isnan().any(-1).sum() <= 8


def test_an_infinite_value_spoils_only_those_who_read_it() -> None:
    value = torch.ones(1, 16, 1, 12, device=DEVICE)
    value[0, 5] = float("inf")
    locations = torch.tensor([[0.1, 0.1], [0.3, 0.35], [0.9, 0.9], [1.2, 0.3]], device=DEVICE).view(1, 4, 1, 1, 1, 2)
    output = ms_deform_attn(value, [(4, 4)], locations, torch.ones(1, 4, 1, 1, 1, device=DEVICE))
    assert output.isfinite().all(-1).tolist() == [[True, False, True, True]]


def test_large_logits_and_minus_infinity_give_the_softmax_of_pytorch() -> None:
    for points in (1, 4, 5, 40):
        value, references, offsets, logits = make_inputs([(5, 5)], points=points)
        logits *= 60
        if points > 1:
            logits[..., 0] = -float("inf")
        found = ms_deform_attn_fused(*on_device(value), [(5, 5)], *on_device(references, offsets, logits))
        assert relative_error(found, reference_fused(value, [(5, 5)], references, offsets, logits)) < 1e-5


def backward_bits(deterministic: bool | None) -> list[Tensor]:
    shapes = [(12, 11), (4, 5)]
    given = [tensor.requires_grad_() for tensor in on_device(*make_inputs(shapes, queries=300))]
    output = ms_deform_attn_fused(given[0], shapes, *given[1:], deterministic=deterministic)
    output.square().sum().backward()
    return [output.detach(), *(tensor.grad for tensor in given)]


def test_deterministic_gradients_are_the_same_bits_in_every_run_and_those_of_atomic_sums_nearly() -> None:
    first = backward_bits(True)
    for _ in range(3):
        assert all(torch.equal(one, two) for one, two in zip(first, backward_bits(True), strict=True))
    for one, two in zip(first, backward_bits(False), strict=True):
        assert relative_error(one, two.cpu().double()) < 1e-6


def test_use_deterministic_algorithms_chooses_the_deterministic_gradients() -> None:
    expected = backward_bits(True)
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN too, so every number must be written
    try:
        found = backward_bits(None)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))


def test_whole_and_half_types_may_be_mixed_as_autocast_does() -> None:
    shapes = [(6, 5)]
    value, references, offsets, logits = (tensor.to(DEVICE) for tensor in make_inputs(shapes))
    given = (value.bfloat16(), shapes, references.float(), offsets.bfloat16(), logits.half())
    same = (value.bfloat16(), shapes, references.float(), offsets.bfloat16().float(), logits.half().float())
    assert torch.equal(ms_deform_attn_fused(*given), ms_deform_attn_fused(*same))
    leaves = [tensor.detach().requires_grad_() for tensor in (given[0], given[3], given[4])]
    ms_deform_attn_fused(leaves[0], shapes, given[2], *leaves[1:]).sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.bfloat16, torch.float16]


def test_strided_inputs_and_parts_of_larger_tensors_give_the_same() -> None:
    shapes = [(6, 5)]
    given = on_device(*make_inputs(shapes))
    expected = ms_deform_attn_fused(given[0], shapes, *given[1:])
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in given]
    assert torch.equal(expected, ms_deform_attn_fused(strided[0], shapes, *strided[1:]))
    parts = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in given]
    assert all(part.is_contiguous() and part.data_ptr() % 16 for part in parts)
    assert torch.equal(expected, ms_deform_attn_fused(parts[0], shapes, *parts[1:]))


@pytest.mark.parametrize(("batch", "queries"), [(0, 6), (2, 0)])
@choices
def test_empty_batches_and_queries_pass_and_give_zero_gradients(deterministic: bool, batch: int, queries: int) -> None:
    given = [tensor.requires_grad_() for tensor in on_device(*make_inputs(MANY, batch, queries))]
    output = ms_deform_attn_fused(given[0], MANY, *given[1:], deterministic=deterministic)
    assert output.shape == (batch, queries, 36)
    output.sum().backward()
    assert all(tensor.grad.eq(0).all() for tensor in given)


def _wrong_calls() -> list[tuple[str, Callable[..., tuple[object, ...]]]]:
    return [
        ("pixels", lambda v, p, w: (v, [3], [4], p, w)),
        ("negative", lambda v, p, w: (v, [-4], [-4], p, w)),
        ("2 coordinates", lambda v, p, w: (v, [4], [4], p[..., :1], w)),
        ("differ", lambda v, p, w: (v[:, :, :1], [4], [4], p, w)),
        ("bfloat16", lambda v, p, w: (v.int(), [4], [4], p, w)),
    ]


@pytest.mark.parametrize(("message", "change"), _wrong_calls(), ids=lambda x: x if isinstance(x, str) else "")
def test_the_kernel_itself_refuses_wrong_arguments(message: str, change: Callable[..., object]) -> None:
    given = (torch.ones(1, 16, 2, 3), torch.rand(1, 5, 2, 1, 2, 2), torch.rand(1, 5, 2, 1, 2))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dinomed.ms_deform_attn(*change(*on_device(*given)))


@choices
def test_gradients_match_finite_differences(deterministic: bool) -> None:
    shapes = [(5, 4), (3, 2)]
    exact = make_inputs(shapes, batch=1, queries=6, heads=2, depth=3, points=2)
    given = [tensor.requires_grad_() for tensor in on_device(*exact, dtype=torch.float64)]

    def fused(value: Tensor, *rest: Tensor) -> Tensor:
        return ms_deform_attn_fused(value, shapes, *rest, deterministic=deterministic)

    nondet_tol = 0.0 if deterministic else 1e-10
    assert torch.autograd.gradcheck(fused, given, nondet_tol=nondet_tol)
    places = [x.detach().requires_grad_() for x in locations_and_weights(given[0], *split(shapes), *given[1:])]

    def plain(value: Tensor, *rest: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes, *rest, deterministic=deterministic)

    assert torch.autograd.gradcheck(plain, (given[0], *places), nondet_tol=nondet_tol)


@choices
def test_operators_pass_every_check_of_pytorch(deterministic: bool) -> None:
    shapes = [(5, 4), (3, 2)]
    value, references, offsets, logits = on_device(*make_inputs(shapes, queries=8, depth=5))
    places = locations_and_weights(value, *split(shapes), references, offsets, logits)
    plain = (value.requires_grad_(), *split(shapes), *(place.requires_grad_() for place in places), deterministic)
    fused = (value, *split(shapes), references, offsets.requires_grad_(), logits.requires_grad_(), deterministic)
    torch.library.opcheck(torch.ops.dinomed.ms_deform_attn, plain)
    torch.library.opcheck(torch.ops.dinomed.ms_deform_attn_fused, fused)
    gradient = torch.randn(2, 8, 15, device=DEVICE)
    for operator, given in (("ms_deform_attn_backward", plain), ("ms_deform_attn_fused_backward", fused)):
        detached = [x.detach() if isinstance(x, Tensor) else x for x in given]
        torch.library.opcheck(getattr(torch.ops.dinomed, operator), (gradient, *detached))


@pytest.mark.parametrize("case", range(4))
def test_forward_and_gradients_match_the_published_numbers(golden_dir: Path, case: int) -> None:
    arrays = load_file(golden_dir / "ms_deform_attn.safetensors")
    prefix = f"case{case}."
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [arrays[prefix + name].to(DEVICE).requires_grad_() for name in names]
    shapes = [tuple(shape) for shape in arrays[prefix + "spatial_shapes"].tolist()]
    output = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    torch.testing.assert_close(output.cpu(), arrays[prefix + "output"], rtol=1e-9, atol=1e-10)
    output.backward(arrays[prefix + "grad_output"].to(DEVICE))
    for name, tensor in zip(names, inputs, strict=True):
        torch.testing.assert_close(tensor.grad.cpu(), arrays[f"{prefix}grad_{name}"], rtol=1e-9, atol=1e-9)
