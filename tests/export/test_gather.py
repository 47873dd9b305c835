"""The gather form of deformable attention against the operators' own reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinomed.export.gather import gather_ms_deform_attn, gather_ms_deform_attn_fused
from dinomed.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = [(5, 4), (1, 1), (3, 7)]
HEIGHTS, WIDTHS = [5, 1, 3], [4, 1, 7]


def make_inputs(batch: int = 2, queries: int = 9, levels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, 42, 2, 5, generator=generator, dtype=torch.float64)
    places = torch.rand(batch, queries, 2, levels, 4, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    return value, places, torch.randn(places.shape[:-1], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize("queries", [9, 0])
def test_it_equals_the_operator(batch: int, queries: int) -> None:
    value, locations, weights = make_inputs(batch, queries)
    found = gather_ms_deform_attn(value, HEIGHTS, WIDTHS, locations, weights)
    torch.testing.assert_close(found, ms_deform_attn(value, SHAPES, locations, weights), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 9, 3, 2), (1, 9, 1, 2), (1, 9, 3, 2), (2, 9, 1, 2)], ids=str)
def test_the_fused_form_equals_the_fused_operator(shape: tuple[int, ...]) -> None:
    value, offsets, logits = make_inputs()
    references = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = gather_ms_deform_attn_fused(value, HEIGHTS, WIDTHS, references, 3 * offsets, logits)
    expected = ms_deform_attn_fused(value, SHAPES, references, 3 * offsets, logits)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("place", [1e30, -1e30, float("inf"), -float("inf"), 1.9, -0.9])
def test_points_outside_read_zero_beside_infinite_values(place: float) -> None:
    value, locations, weights = (x.float() for x in make_inputs())
    value[:] = float("inf")
    locations[:] = place
    assert gather_ms_deform_attn(value, HEIGHTS, WIDTHS, locations, weights).eq(0).all()
    references = torch.full((1, 9, 1, 2), 0.5)
    assert gather_ms_deform_attn_fused(value, HEIGHTS, WIDTHS, references, 20 * locations, weights).eq(0).all()


def test_a_nan_location_gives_nan_in_its_own_query_and_head_only() -> None:
    value, locations, weights = (x.float() for x in make_inputs())
    clean = gather_ms_deform_attn(value, HEIGHTS, WIDTHS, locations, weights)
    locations[1, 4, 1, 0, 0, 0] = float("nan")
    spoiled = gather_ms_deform_attn(value, HEIGHTS, WIDTHS, locations, weights)
    assert spoiled[1, 4, 5:].isnan().all()
    spoiled[1, 4, 5:] = clean[1, 4, 5:]
    assert torch.equal(spoiled, clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_values_type(dtype: torch.dtype) -> None:
    value, locations, weights = (x.float() for x in make_inputs())
    found = gather_ms_deform_attn(value.to(dtype), HEIGHTS, WIDTHS, locations, weights)
    expected = ms_deform_attn(value.to(dtype).double(), SHAPES, locations.double(), weights.double())
    assert found.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=20 * tolerance)
