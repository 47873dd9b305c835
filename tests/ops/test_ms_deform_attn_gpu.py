"""What of the CUDA kernels only a GPU can show: streams, devices, graphs, autocast and memory beyond 2^31 bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinomed.ops import kernel_status, ms_deform_attn, ms_deform_attn_fused

pytestmark = pytest.mark.gpu
SHAPES = [(40, 36), (20, 18)]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    if not kernel_status()["CUDA"].startswith("compiled kernel"):
        pytest.skip(f"CUDA runs {kernel_status()['CUDA']}")


def make_inputs(device: str = "cuda", queries: int = 2000) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 1800, 8, 24, generator=generator)
    references = torch.rand(queries, 2, generator=generator)
    offsets = torch.randn(2, queries, 8, 2, 4, 2, generator=generator) * 2
    logits = torch.randn(2, queries, 8, 2, 4, generator=generator)
    return [tensor.to(device) for tensor in (value, references, offsets, logits)]


def run(given: list[Tensor], deterministic: bool = True) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    output = ms_deform_attn_fused(leaves[0], SHAPES, *leaves[1:], deterministic=deterministic)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def test_kernels_run_on_the_current_stream() -> None:
    given = make_inputs()
    expected = run(given)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # inputs come late: a kernel on another stream would read zeros
        late = [torch.zeros_like(tensor).copy_(tensor) for tensor in given]
        found = run(late)
    side.synchronize()
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_on_the_device_of_their_tensors_and_leave_the_current_one_alone() -> None:
    expected = run(make_inputs("cuda:0"))
    with torch.cuda.device(0):
        found = run(make_inputs("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(tensor.device.index == 1 for tensor in found)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two.to("cuda:0"))


def test_tensors_on_different_devices_are_refused() -> None:
    value, references, offsets, logits = make_inputs()
    with pytest.raises(RuntimeError, match="device"):
        ms_deform_attn_fused(value, SHAPES, references, offsets.cpu(), logits)


def test_a_captured_graph_replays_forward_and_backward() -> None:
    given = make_inputs()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(given)
    given[0].mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, two) for one, two in zip(captured, run(given), strict=True))


def test_a_layer_under_autocast_gives_half_values_with_offsets_of_its_own_type() -> None:
    value, references, offsets, logits = make_inputs()
    project = torch.nn.Linear(24, 24, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = project(value)
        output = ms_deform_attn_fused(half, SHAPES, references, offsets, logits)
    assert half.dtype == output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert project.weight.grad is not None
    assert project.weight.grad.isfinite().all()


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_compiled_function_trains_as_the_eager_one(dynamic: bool) -> None:
    def loss(*given: Tensor) -> Tensor:
        return ms_deform_attn_fused(given[0], SHAPES, *given[1:], deterministic=True).square().mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, dynamic=dynamic)):
        leaves = [tensor.requires_grad_() for tensor in make_inputs()]
        function(*leaves).backward()
        results.append([leaf.grad for leaf in leaves])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.slow
def test_offsets_beyond_two_gigabytes_are_computed_right() -> None:
    height, width = 12000, 6000  # times 16 channels of bfloat16: 2.3e9 bytes
    value = torch.zeros(1, height * width, 1, 16, dtype=torch.bfloat16, device="cuda")
    value[0, -1] = 3
    location = torch.tensor([(width - 0.5) / width, (height - 0.5) / height], dtype=torch.float64)
    locations = location.float().view(1, 1, 1, 1, 1, 2).cuda()
    output = ms_deform_attn(value, [(height, width)], locations, torch.ones(1, 1, 1, 1, 1, device="cuda"))
    torch.testing.assert_close(output.float().cpu(), torch.full((1, 1, 16), 3.0), rtol=0.02, atol=0)


@pytest.mark.slow
def test_more_points_than_four_gigabytes_hold_are_read_where_they_are() -> None:
    queries = 40_000_000  # times 2 heads, 4 points and 8 bytes: 2.56e9 bytes of locations, 8e7 rows
    value = torch.randn(1, 16, 2, 4, device="cuda", dtype=torch.bfloat16)
    locations = torch.rand(1, queries, 2, 1, 4, 2, device="cuda")
    weights = torch.rand(1, queries, 2, 1, 4, device="cuda")
    output = ms_deform_attn(value, [(4, 4)], locations, weights)
    for part in (slice(0, 1000), slice(queries - 1000, queries)):
        expected = ms_deform_attn(value, [(4, 4)], locations[:, part], weights[:, part])
        assert torch.equal(output[:, part], expected)
