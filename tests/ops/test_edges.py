"""What the operators do at the edges: nothing to do, numbers that are none, tiny and huge maps, odd strides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dinomed.ops import ms_deform_attn, ms_deform_attn_fused
from dinomed.ops.ms_deform_attn import _reference, _reference_backward
from dinomed.ops.ms_deform_attn_fused import locations_and_weights

SHAPES = [(5, 4), (1, 1), (3, 2)]


def make_inputs(batch: int = 2, queries: int = 6, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Values, reference points, offsets and logits."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 27, 3, 5), (batch, queries, 3, 2), (batch, queries, 3, 3, 4, 2), (batch, queries, 3, 3, 4)]
    value, references, offsets, logits = (torch.randn(shape, generator=generator) for shape in shapes)
    return [value.to(dtype), references.sigmoid(), 2 * offsets, logits]


def run(inputs: list[Tensor]) -> Tensor:
    return ms_deform_attn_fused(inputs[0], SHAPES, *inputs[1:])


@pytest.mark.parametrize(("batch", "queries"), [(0, 6), (2, 0), (0, 0)])
def test_the_fused_operator_passes_empty_batches_and_queries_with_zero_gradients(batch: int, queries: int) -> None:
    inputs = [tensor.requires_grad_() for tensor in make_inputs(batch, queries)]
    output = run(inputs)
    assert output.shape == (batch, queries, 15)
    output.sum().backward()
    for tensor in inputs:
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.eq(0).all()


@pytest.mark.parametrize("place", [float("inf"), -float("inf"), 1e30, -1e30])
def test_a_reference_point_far_away_reads_zero_and_moves_nothing(place: float) -> None:
    inputs = make_inputs()
    inputs[1][1, 4] = place
    inputs = [tensor.requires_grad_() for tensor in inputs]
    output = run(inputs)
    assert output[1, 4].eq(0).all()
    assert output.isfinite().all()
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
    assert inputs[2].grad[1, 4].eq(0).all()
    assert inputs[0].grad.ne(0).any()


def test_a_reference_point_that_is_no_number_spoils_its_query_only() -> None:
    inputs = make_inputs()
    clean = run(inputs)
    inputs[1][1, 4, 1, 0] = float("nan")
    spoiled = run(inputs)
    assert spoiled[1, 4].isnan().all()
    spoiled[1, 4] = clean[1, 4]
    assert torch.equal(spoiled, clean)


def test_a_logit_that_is_no_number_spoils_its_query_and_head_only() -> None:
    inputs = make_inputs()
    clean = run(inputs).view(2, 6, 3, 5)
    inputs[3][0, 2, 1, 2, 3] = float("nan")
    spoiled = run(inputs).view(2, 6, 3, 5)
    assert spoiled[0, 2, 1].isnan().all()
    spoiled[0, 2, 1] = clean[0, 2, 1]
    assert torch.equal(spoiled, clean)


def test_every_number_is_within_1e_5_of_the_double_reference_relative_to_what_was_summed() -> None:
    value, references, offsets, logits = make_inputs(queries=200)
    exact = run([tensor.double() for tensor in (value, references, offsets, logits)])
    summed = run([value.abs().double(), references.double(), offsets.double(), logits.double()])
    found = run([value, references, offsets, logits])
    assert ((found - exact).abs() <= 1e-5 * summed + 1e-7).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-2)], ids=str)
def test_half_precision_gradients_are_within_1e_2_of_the_double_reference(dtype: torch.dtype, tolerance: float) -> None:
    half = [tensor.requires_grad_() for tensor in make_inputs(queries=50, dtype=dtype)]
    exact = [tensor.detach().double().requires_grad_() for tensor in half]
    run(half).sum().backward()
    run(exact).sum().backward()
    for one, other in zip(half, exact, strict=True):
        assert (one.grad.double() - other.grad).norm() <= tolerance * other.grad.norm()


def test_gradients_that_arrive_strided_or_expanded_are_read_right() -> None:
    inputs = [tensor.requires_grad_() for tensor in make_inputs()]
    plain = torch.randn(2, 6, 15, generator=torch.Generator().manual_seed(1))
    strided = plain.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided.is_contiguous()
    results = [torch.autograd.grad(run(inputs), inputs, gradient) for gradient in (plain, strided)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    expanded = torch.ones(1, 1, 1).expand(2, 6, 15)
    results = [torch.autograd.grad(run(inputs), inputs, gradient) for gradient in (expanded, expanded.contiguous())]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def split() -> tuple[list[int], list[int]]:
    return [height for height, _ in SHAPES], [width for _, width in SHAPES]


@pytest.mark.parametrize("case", range(4))
def test_single_precision_is_within_1e_5_of_the_published_numbers(kernel: str, golden_dir: Path, case: int) -> None:
    arrays = load_file(golden_dir / "ms_deform_attn.safetensors")
    prefix = f"case{case}."
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [arrays[prefix + name].float().requires_grad_() for name in names]
    shapes = [tuple(shape) for shape in arrays[prefix + "spatial_shapes"].tolist()]
    output = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    output.backward(arrays[prefix + "grad_output"].float())
    expected = [arrays[f"{prefix}{name}"] for name in ("output", *(f"grad_{name}" for name in names))]
    for one, other in zip((output, *(tensor.grad for tensor in inputs)), expected, strict=True):
        assert (one.double() - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("queries", [40, 1], ids=["packed", "direct"])
def test_a_weight_that_is_no_number_spoils_its_query_and_head_even_outside_the_map(kernel: str, queries: int) -> None:
    value, locations = torch.ones(1, 49, 2, 12), torch.full((1, queries, 2, 1, 4, 2), 0.5)
    weights = torch.ones(locations.shape[:-1])
    locations[0, 0, 1, 0, 3] = 7
    weights[0, 0, 1, 0, 3] = float("nan")
    output = ms_deform_attn(value, [(7, 7)], locations, weights).view(queries, 2, 12)
    assert output[0, 1].isnan().all()
    assert output[0, 0].eq(4).all()
    assert output[1:].eq(4).all()


def test_a_map_of_one_pixel_fades_to_zero_half_a_map_beyond_its_edge(kernel: str) -> None:
    places = torch.tensor([[0.5, 0.5], [0.0, 0.5], [0.0, 0.0], [1.0, 1.25], [1.5, 0.5], [-0.5, 0.5]])
    value, weights = torch.full((1, 1, 1, 3), 8.0), torch.ones(1, 6, 1, 1, 1)
    output = ms_deform_attn(value, [(1, 1)], places.view(1, 6, 1, 1, 1, 2), weights)
    assert output[0, :, 0].tolist() == [8, 4, 2, 1, 0, 0]


@pytest.mark.parametrize("shapes", [[(0, 4), (2, 2)], [(3, 0), (0, 5)], []], ids=str)
def test_maps_without_pixels_count_nothing(kernel: str, shapes: list[tuple[int, int]]) -> None:
    pixels, levels = sum(height * width for height, width in shapes), len(shapes)
    given = [torch.ones(2, pixels, 3, 5), torch.zeros(2, 7, 3, levels, 4, 2), torch.zeros(2, 7, 3, levels, 4)]
    given = [tensor.requires_grad_() for tensor in given]
    output = ms_deform_attn_fused(given[0], shapes, torch.full((7, 2), 0.5), *given[1:])
    assert output.detach().eq(0.5 if pixels else 0).all()
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in given)


def test_plain_pytorch_takes_maps_without_pixels_too(kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    value, places = torch.randn(2, 4, 3, 5, generator=generator), torch.rand(2, 7, 3, 2, 4, 2, generator=generator)
    weights, heights, widths = torch.rand(2, 7, 3, 2, 4, generator=generator), [0, 2], [4, 2]
    plain = _reference(value, heights, widths, places, weights)
    torch.testing.assert_close(ms_deform_attn(value, [(0, 4), (2, 2)], places, weights), plain)
    compiled = torch.ops.dinomed.ms_deform_attn_backward(torch.ones(2, 7, 15), value, heights, widths, places, weights)
    for ours, wanted in zip(
        compiled, _reference_backward(torch.ones(2, 7, 15), value, heights, widths, places, weights), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_a_point_at_infinity_reads_nothing_of_a_map_without_pixels(kernel: str) -> None:
    places = torch.full((1, 1, 1, 2, 1, 2), 0.5)
    places[0, 0, 0, 0] = float("inf")
    output = ms_deform_attn(torch.ones(1, 1, 1, 3), [(0, 1000000), (1, 1)], places, torch.ones(1, 1, 1, 2, 1))
    assert output.eq(1).all()


@pytest.mark.parametrize("shape", [(333, 333), (1999, 2001), (3, 60000)], ids=str)
@pytest.mark.parametrize("place", ["anywhere", "beside a pixel's centre"])
def test_large_maps_keep_the_precision_of_float32(kernel: str, shape: tuple[int, int], place: str) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([shape[1], shape[0]], dtype=torch.float64)
    # Sums of two numbers: the multiples of 2^-24 that `rand` gives would be exact in maps of many sizes.
    places = torch.rand(1, 2000, 1, 1, 1, 2, generator=generator) * 0.9 + torch.rand(1, generator=generator) * 0.1
    if place != "anywhere":
        centres = (((places.double() * sizes).floor() + 0.5) / sizes).float()
        places = torch.nextafter(centres, torch.where(places > 0.5, 0.0, 1.0))
    value = torch.randn(1, shape[0] * shape[1], 1, 2, generator=generator)
    found = ms_deform_attn(value, [shape], places, torch.ones(1, 2000, 1, 1, 1))
    at = places.double().view(-1, 2) * sizes - 0.5
    corner = at.floor()
    x, y = (at - corner).unbind(1)
    wanted = torch.zeros(2000, 2, dtype=torch.float64)
    for dx, dy, weight in ((0, 0, (1 - x) * (1 - y)), (1, 0, x * (1 - y)), (0, 1, (1 - x) * y), (1, 1, x * y)):
        column, row = corner[:, 0] + dx, corner[:, 1] + dy
        inside = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
        index = (row.clamp(0, shape[0] - 1) * shape[1] + column.clamp(0, shape[1] - 1)).long()
        wanted += (weight * inside)[:, None] * value[0, index, 0].double()
    assert (found[0] - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize(
    ("heights", "widths"), [([2**33, 5], [2**31, 4]), ([2**62, 5], [4, 4]), ([0, 5], [2**40, 4])], ids=str
)
@pytest.mark.parametrize("queries", [3, 200])
def test_sizes_that_overflow_are_refused(kernel: str, heights: list[int], widths: list[int], queries: int) -> None:
    given = [torch.rand(1, queries, 2, 2, 4, 2), torch.rand(1, queries, 2, 2, 4)]
    with pytest.raises(RuntimeError, match="too large"):
        torch.ops.dinomed.ms_deform_attn(torch.randn(1, 20, 2, 8), heights, widths, *given)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shapes": [(-5, -4)]}, "cannot be negative"),
        ({"shapes": [(5, 4, 1)]}, "must be pairs"),
        ({"value": torch.ones(1, 20, 2, 8, dtype=torch.int32)}, "value must be float32"),
        ({"locations": torch.ones(1, 3, 2, 1, 4, 2, dtype=torch.complex64)}, "real"),
        ({"weights": torch.ones(1, 3, 2, 1, 4, dtype=torch.bool)}, "real"),
        ({"locations": torch.ones(1, 3, 2, 1, 4, 2, device="meta")}, "move them to one device"),
    ],
)
def test_what_does_not_belong_together_is_refused_in_words(change: dict[str, Any], sentence: str) -> None:
    given = {
        "value": torch.ones(1, 20, 2, 8),
        "shapes": [(5, 4)],
        "locations": torch.ones(1, 3, 2, 1, 4, 2),
        "weights": torch.ones(1, 3, 2, 1, 4),
        **change,
    }
    for function, references in ((ms_deform_attn, []), (ms_deform_attn_fused, [torch.ones(3, 2)])):
        with pytest.raises(ValueError, match=sentence):
            function(given["value"], given["shapes"], *references, given["locations"], given["weights"])


@pytest.mark.parametrize(("heads", "depth", "points"), [(0, 5, 4), (3, 0, 4), (3, 5, 0)])
def test_no_heads_channels_or_points_give_zeros_with_zero_gradients(heads: int, depth: int, points: int) -> None:
    given = [torch.ones(2, 20, heads, depth), torch.rand(2, 7, heads, 1, points, 2), torch.ones(2, 7, heads, 1, points)]
    given = [tensor.requires_grad_() for tensor in given]
    output = ms_deform_attn(given[0], [(5, 4)], *given[1:])
    assert output.shape == (2, 7, heads * depth)
    output.sum().backward()
    assert all(tensor.grad.eq(0).all() for tensor in given)


def test_gradients_of_the_plain_operator_match_finite_differences(kernel: str) -> None:
    value, references, offsets, logits = (tensor.double() for tensor in make_inputs(batch=1, queries=3))
    places = locations_and_weights(value, *split(), references, offsets, logits)
    given = [tensor.requires_grad_() for tensor in (value, *places)]
    assert torch.autograd.gradcheck(lambda v, p, w: ms_deform_attn(v, SHAPES, p, w), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_four_operators_pass_every_check_of_pytorch(kernel: str, dtype: torch.dtype) -> None:
    value, references, offsets, logits = make_inputs(dtype=dtype)
    places = locations_and_weights(value, *split(), references, offsets, logits)
    gradient = torch.randn(2, 6, 15).to(dtype)
    for name, rest in (("ms_deform_attn", places), ("ms_deform_attn_fused", (references, offsets, logits))):
        torch.library.opcheck(getattr(torch.ops.dinomed, name), (value, *split(), *rest))
        torch.library.opcheck(getattr(torch.ops.dinomed, name + "_backward"), (gradient, value, *split(), *rest))


@pytest.mark.slow
def test_gradients_beyond_two_gigabytes_of_values_land_where_they_belong() -> None:
    height, width = 12000, 6000  # times 16 channels of bfloat16: 2.3e9 bytes, and as much for the gradient
    value = torch.zeros(1, height * width, 1, 16, dtype=torch.bfloat16).requires_grad_()
    references = torch.tensor([[(width - 0.5) / width, (height - 0.5) / height]])
    offsets, logits = torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)
    ms_deform_attn_fused(value, [(height, width)], references, offsets, logits).sum().backward()
    torch.testing.assert_close(value.grad[0, -1, 0].float(), torch.ones(16), rtol=0.02, atol=0)
    assert value.grad[0, : 2**20].eq(0).all()
    assert value.grad[0, -(2**20) : -width - 2].eq(0).all()


@pytest.mark.slow
def test_more_than_two_gigabytes_of_offsets_are_read_right() -> None:
    queries, heads, points = 2_100_000, 8, 16  # times two coordinates of float32: 2.15e9 bytes
    value = torch.zeros(1, 12, heads, 1)
    value[0, 5] = 1
    offsets = torch.zeros(1, queries, heads, 1, points, 2)
    assert offsets.numel() * offsets.element_size() > 2**31
    offsets[0, -1] = 100
    references = torch.tensor([[1.5 / 4, 1.5 / 3]]).expand(queries, 2)
    logits = torch.zeros(1, 1, 1, 1, 1).expand(offsets.shape[:-1])
    output = ms_deform_attn_fused(value, [(3, 4)], references, offsets, logits)
    assert output[0, :-1].eq(1).all()
    assert output[0, -1].eq(0).all()


@pytest.mark.slow
def test_more_than_two_gigabytes_of_locations_are_read_right() -> None:
    queries, heads, points = 4_300_000, 4, 16  # times two coordinates of float32: 2.2e9 bytes
    value = torch.zeros(1, 12, heads, 1)
    value[0, 5] = 1
    locations = torch.empty(1, queries, heads, 1, points, 2)
    locations[..., 0], locations[..., 1] = 1.5 / 4, 1.5 / 3
    assert locations.numel() * locations.element_size() > 2**31
    locations[0, -1] = 3
    weights = torch.ones(1, 1, 1, 1, 1).expand(locations.shape[:-1])
    output = ms_deform_attn(value, [(3, 4)], locations, weights)
    assert output[0, :-1].eq(points).all()
    assert output[0, -1].eq(0).all()
