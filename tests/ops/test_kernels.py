"""The compiled CPU kernels, each instruction set that runs here, against the plain-PyTorch reference in float64."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dinomed.ops import kernels, ms_deform_attn, ms_deform_attn_fused
from dinomed.ops.ms_deform_attn import _reference, _reference_backward
from dinomed.ops.ms_deform_attn_fused import locations_and_weights


def make_inputs(
    shapes: list[tuple[int, int]],
    batch: int = 2,
    queries: int = 40,
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


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def split(shapes: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [height for height, _ in shapes], [width for _, width in shapes]


ONE_LEVEL = [(9, 7)]
MANY = [(8, 6), (5, 1), (1, 1), (3, 4), (2, 9)]
# Depth, heads, levels, points: all head sizes in use, odd ones, 1 to 5 levels, 1 to 16 points.
CASES = [
    (12, 16, ONE_LEVEL, 4),
    (24, 3, ONE_LEVEL, 4),
    (32, 5, MANY[:2], 4),
    (40, 2, MANY[:3], 3),
    (128, 1, MANY[:4], 4),
    (1, 4, MANY, 1),
    (7, 3, MANY, 5),
    (17, 2, ONE_LEVEL, 16),
    (65, 1, MANY, 2),
    (200, 1, ONE_LEVEL, 7),
]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}


@pytest.mark.parametrize(("depth", "heads", "shapes", "points"), CASES)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("queries", [40, 1], ids=["packed", "direct"])
def test_forward_and_gradients_agree_with_the_double_reference(
    kernel: str, dtype: torch.dtype, depth: int, heads: int, shapes: list[tuple[int, int]], points: int, queries: int
) -> None:
    value, references, offsets, logits = make_inputs(shapes, 2, queries, heads, depth, points)
    heights, widths = split(shapes)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    value = value.to(dtype).double()
    locations, weights = locations_and_weights(value, heights, widths, references, offsets, logits)
    locations, weights = locations.to(real).double(), weights.to(real).double()
    output = ms_deform_attn(value.to(dtype), shapes, locations.to(real), weights.to(real))
    assert output.dtype == dtype
    assert relative_error(output, _reference(value, heights, widths, locations, weights)) < TOLERANCES[dtype]
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.ops.dinomed.ms_deform_attn_backward(
        gradient, value.to(dtype), heights, widths, locations.to(real), weights.to(real)
    )
    expected = _reference_backward(gradient.double(), value, heights, widths, locations, weights)
    for one, other, allowed in zip(found, expected, (dtype, real, real), strict=True):
        assert one.dtype == allowed
        # Location gradients jump at pixel edges, where float32 and float64 may fall on different sides.
        assert relative_error(one, other) < max(TOLERANCES[allowed], 2e-6 if real == torch.float32 else 0)


@pytest.mark.parametrize(("depth", "heads", "shapes", "points"), CASES)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("queries", [40, 1], ids=["packed", "direct"])
def test_fused_operator_agrees_with_softmax_and_locations_in_double(
    kernel: str, dtype: torch.dtype, depth: int, heads: int, shapes: list[tuple[int, int]], points: int, queries: int
) -> None:
    value, references, offsets, logits = make_inputs(shapes, 2, queries, heads, depth, points)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    exact = [tensor.requires_grad_() for tensor in (value.to(dtype).double(), references, offsets, logits)]
    heights, widths = split(shapes)
    places = locations_and_weights(exact[0], heights, widths, *exact[1:])
    expected = ms_deform_attn(exact[0], shapes, *places)
    given = [tensor.detach().to(dtype if i == 0 else real).requires_grad_() for i, tensor in enumerate(exact)]
    output = ms_deform_attn_fused(given[0], shapes, *given[1:])
    assert relative_error(output, expected) < TOLERANCES[dtype]
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    output.backward(gradient)
    expected.backward(gradient.double())
    for one, other in zip(given, exact, strict=True):
        assert relative_error(one.grad, other.grad) < max(TOLERANCES[one.dtype], 4e-6 if real == torch.float32 else 0)


def all_results(shapes: list[tuple[int, int]], dtype: torch.dtype, **sizes: int) -> list[Tensor]:
    value, references, offsets, logits = (x.to(dtype).requires_grad_() for x in make_inputs(shapes, **sizes))
    output = ms_deform_attn_fused(value, shapes, references, offsets, logits)
    output.square().sum().backward()
    return [output, *(tensor.grad for tensor in (value, references, offsets, logits))]


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("sizes", [{"heads": 5}, {"batch": 1, "heads": 1}, {"queries": 1}], ids=str)
def test_one_two_and_seven_threads_give_the_same_bits(kernel: str, sizes: dict[str, int], dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(all_results([(12, 11), (4, 5)], dtype, **sizes))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("queries", [40, 1], ids=["packed", "direct"])
@pytest.mark.parametrize("place", [3e38, -3e38, 1e9, float("inf"), -float("inf"), 1.6, -0.6])
def test_points_far_outside_read_zero_beside_infinite_values(kernel: str, queries: int, place: float) -> None:
    shapes = [(4, 4), (3, 5)]
    value = torch.full((1, 31, 2, 12), float("inf"))
    locations = torch.full((1, queries, 2, 2, 4, 2), 0.5)
    locations[..., 1] = place
    weights = torch.ones(locations.shape[:-1])
    assert ms_deform_attn(value, shapes, locations, weights).eq(0).all()
    if abs(place) < 1:
        return
    offsets = torch.full_like(locations, place) * 10
    assert ms_deform_attn_fused(value, shapes, torch.full((queries, 2), 0.5), offsets, weights).eq(0).all()


@pytest.mark.parametrize("queries", [40, 1], ids=["packed", "direct"])
def test_a_nan_location_spoils_only_its_query_and_head(kernel: str, queries: int) -> None:
    shapes = [(4, 4), (3, 5)]
    value, references, offsets, logits = (x.float() for x in make_inputs(shapes, queries=queries))
    clean = ms_deform_attn_fused(value, shapes, references, offsets, logits).view(2, queries, 3, 12)
    offsets[1, 0, 1, 0, 2, 0] = float("nan")
    spoiled = ms_deform_attn_fused(value, shapes, references, offsets, logits).view(2, queries, 3, 12)
    assert spoiled[1, 0, 1].isnan().all()
    spoiled[1, 0, 1] = clean[1, 0, 1]
    assert torch.equal(spoiled, clean)


def test_an_infinite_value_spoils_only_those_who_read_it(kernel: str) -> None:
    value = torch.ones(1, 16, 1, 12)
    value[0, 5] = float("inf")
    locations = torch.tensor([[0.1, 0.1], [0.3, 0.35], [0.9, 0.9], [1.2, 0.3]]).view(1, 4, 1, 1, 1, 2)
    output = ms_deform_attn(value, [(4, 4)], locations, torch.ones(1, 4, 1, 1, 1))
    assert output.isfinite().all(-1).tolist() == [[True, False, True, True]]


def test_large_logits_and_minus_infinity_give_the_softmax_of_pytorch(kernel: str) -> None:
    shapes = [(5, 5)]
    for points in (4, 5):
        value, references, offsets, logits = (x.float() for x in make_inputs(shapes, points=points))
        logits *= 60
        logits[..., 0] = -float("inf")
        output = ms_deform_attn_fused(value, shapes, references, offsets, logits)
        places = locations_and_weights(value.double(), [5], [5], references, offsets, logits)
        assert relative_error(output, ms_deform_attn(value.double(), shapes, *places)) < 1e-5


def test_sixty_random_small_problems_agree_with_the_reference(kernel: str) -> None:
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for seed in range(60):
        shapes = [(draw(1, 9), draw(1, 9)) for _ in range(draw(1, 5))]
        sizes = {"batch": draw(1, 3), "queries": draw(1, 20), "heads": draw(1, 6)}
        value, references, offsets, logits = make_inputs(shapes, **sizes, depth=draw(1, 50), points=draw(1, 16))
        heights, widths = split(shapes)
        locations, weights = locations_and_weights(value, heights, widths, references, offsets, logits)
        expected = _reference(value, heights, widths, locations, weights)
        found = ms_deform_attn(value.float(), shapes, locations.float(), weights.float())
        assert relative_error(found, expected) < 1e-5, (seed, shapes, sizes)


def test_whole_and_half_types_may_be_mixed_as_autocast_does(kernel: str) -> None:
    shapes = [(6, 5)]
    value, references, offsets, logits = make_inputs(shapes)
    given = (value.bfloat16(), shapes, references.float(), offsets.bfloat16(), logits.half())
    same = (value.bfloat16(), shapes, references.float(), offsets.bfloat16().float(), logits.half().float())
    assert torch.equal(ms_deform_attn_fused(*given), ms_deform_attn_fused(*same))


def test_strided_inputs_are_read_where_they_are(kernel: str) -> None:
    shapes = [(6, 5)]
    given = [x.float() for x in make_inputs(shapes)]
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in given]
    assert torch.equal(
        ms_deform_attn_fused(given[0], shapes, *given[1:]), ms_deform_attn_fused(strided[0], shapes, *strided[1:])
    )


@pytest.mark.slow
def test_offsets_beyond_two_gigabytes_are_computed_right(kernel: str) -> None:
    height, width = 12000, 6000  # times 16 channels of bfloat16: 2.3e9 bytes
    value = torch.zeros(1, height * width, 1, 16, dtype=torch.bfloat16)
    value[0, -1] = 3
    location = torch.tensor([(width - 0.5) / width, (height - 0.5) / height], dtype=torch.float64)
    locations = location.float().view(1, 1, 1, 1, 1, 2)
    output = ms_deform_attn(value, [(height, width)], locations, torch.ones(1, 1, 1, 1, 1))
    torch.testing.assert_close(output.float(), torch.full((1, 1, 16), 3.0), rtol=0.02, atol=0)


def _wrong_calls() -> list[tuple[str, Callable[..., tuple[object, ...]]]]:
    return [
        ("pixels", lambda v, p, w: (v, [3], [4], p, w)),
        ("negative", lambda v, p, w: (v, [-4], [-4], p, w)),
        ("each of 1 levels", lambda v, p, w: (v, [4, 1], [4, 0], p, w)),
        ("2 coordinates", lambda v, p, w: (v, [4], [4], p[..., :1], w)),
        ("differ", lambda v, p, w: (v[:, :, :1], [4], [4], p, w)),
        ("dimensions", lambda v, p, w: (v[0], [4], [4], p, w)),
        ("bfloat16", lambda v, p, w: (v.int(), [4], [4], p, w)),
    ]


@pytest.mark.parametrize(("message", "change"), _wrong_calls(), ids=lambda x: x if isinstance(x, str) else "")
def test_the_kernel_itself_refuses_wrong_arguments(kernel: str, message: str, change: Callable[..., object]) -> None:
    arguments = change(torch.ones(1, 16, 2, 3), torch.rand(1, 5, 2, 1, 2, 2), torch.rand(1, 5, 2, 1, 2))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dinomed.ms_deform_attn(*arguments)


def test_gradients_of_the_fused_operator_match_finite_differences(kernel: str) -> None:
    shapes = [(5, 4), (3, 2)]
    given = [tensor.requires_grad_() for tensor in make_inputs(shapes, batch=1, queries=6, heads=2, depth=3, points=2)]
    assert torch.autograd.gradcheck(lambda v, r, o, a: ms_deform_attn_fused(v, shapes, r, o, a), given)


def test_fused_operator_passes_every_check_of_pytorch() -> None:
    shapes = [(5, 4), (3, 2)]
    value, references, offsets, logits = (x.float().requires_grad_() for x in make_inputs(shapes, queries=8))
    arguments = (value, *split(shapes), references.detach(), offsets, logits)
    torch.library.opcheck(torch.ops.dinomed.ms_deform_attn_fused, arguments)


@pytest.mark.parametrize("shape", [(40, 3), (3, 40, 1, 2), (1, 40, 4, 2), (39, 2)])
def test_reference_points_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    value, _, offsets, logits = make_inputs([(4, 4), (2, 2)])
    with pytest.raises(ValueError, match="reference_points"):
        ms_deform_attn_fused(value, [(4, 4), (2, 2)], torch.rand(shape), offsets, logits)


def test_status_names_a_kernel_or_a_reason_for_each_device() -> None:
    status = kernels.kernel_status()
    assert set(status) == {"CPU", "CUDA"}
    for sentence in status.values():
        assert sentence.startswith(("compiled kernel", "plain PyTorch, since "))


def test_status_says_why_an_instruction_set_is_in_use(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_widest", kernel)
    assert kernels.kernel_status()["CPU"] == f"compiled kernel ({kernel}, the widest that this machine runs)"
    monkeypatch.setattr(kernels, "_widest", "another")
    assert kernels.kernel_status()["CPU"] == f"compiled kernel ({kernel}, chosen in place of another)"


class Library:
    """A CUDA library that says what it found when it was loaded."""

    def __init__(self, problem: bytes | None) -> None:
        self.problem = problem

    def dinomed_cuda_problem(self) -> bytes | None:
        return self.problem

    def __getattribute__(self, name: str) -> object:  # ctypes gives its functions attributes, methods have none
        found = object.__getattribute__(self, name)
        return (lambda: found()) if callable(found) else found


@pytest.mark.parametrize(
    ("problem", "available", "sentence"),
    [
        (b"no NVIDIA driver is installed", False, "plain PyTorch, since no NVIDIA driver is installed"),
        (None, False, "compiled kernel, unused, since PyTorch finds no GPU"),
        (None, True, "compiled kernel"),
    ],
)
def test_status_tells_what_the_cuda_library_found(
    monkeypatch: pytest.MonkeyPatch, problem: bytes | None, available: bool, sentence: str
) -> None:
    monkeypatch.setattr(kernels, "_libraries", {"CUDA": Library(problem)})
    monkeypatch.setattr(kernels, "_reasons", {"CPU": "none here"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    kernels._keep_reason_of_cuda()
    assert kernels.kernel_status() == {"CPU": "plain PyTorch, since none here", "CUDA": sentence}


@pytest.mark.parametrize("device", ["CPU", "CUDA"])
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_a_library_that_is_not_ours_is_left_out_with_its_reason(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"_ms_deform_attn_{device.lower()}.abi3.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)], input=b"int x;", check=True)
    monkeypatch.setattr(kernels, "_FOLDER", tmp_path)
    monkeypatch.setattr(kernels, "_libraries", {})
    monkeypatch.setattr(kernels, "_reasons", {})
    kernels._load(device)
    assert device not in kernels._libraries
    assert "cannot be loaded" in kernels._reasons[device]
    assert path.name in kernels._reasons[device]


def test_environment_leaves_plain_pytorch_in_place_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(kernels, "_libraries", {})
    monkeypatch.setattr(kernels, "_reasons", {})
    monkeypatch.setenv("DINOMED_CUDA_KERNEL", "none")
    monkeypatch.setenv("DINOMED_CPU_KERNEL", "none")
    kernels.load_kernels()
    assert kernels.kernel_status()["CUDA"] == "plain PyTorch, since DINOMED_CUDA_KERNEL=none"


@pytest.mark.parametrize(("missing", "message"), [("toolkit", "nvcc was not found"), ("source", "cuda.cu")])
def test_asking_for_the_cuda_library_fails_where_it_cannot_be_built(
    tmp_path: Path, repository: Path, missing: str, message: str
) -> None:
    (tmp_path / "csrc/ms_deform_attn").mkdir(parents=True)
    (tmp_path / "csrc/ms_deform_attn/cpu.cpp").touch()
    (tmp_path / "setup.py").write_text((repository / "setup.py").read_text())
    (tmp_path / "bin").mkdir()
    if missing == "source":
        (tmp_path / "bin/nvcc").touch()
    environment = {**os.environ, "DINOMED_BUILD": "cuda", "CUDA_HOME": str(tmp_path), "CXX": sys.executable}
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_deterministic_choice_is_taken_and_changes_nothing_on_the_cpu(kernel: str) -> None:
    shapes = [(6, 5), (3, 3)]
    results = []
    for deterministic in (None, False, True):
        given = [tensor.float().requires_grad_() for tensor in make_inputs(shapes)]
        output = ms_deform_attn_fused(given[0], shapes, *given[1:], deterministic=deterministic)
        results.append([output, *torch.autograd.grad(output.square().sum(), given)])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_use_deterministic_algorithms_reaches_the_backward_of_both_operators() -> None:
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "ms_deform_attn" in str(func) and "backward" in str(func):
                seen.append((func.__name__, args[-1]))
            return func(*args, **(kwargs or {}))

    shapes = [(6, 5)]
    given = [tensor.requires_grad_() for tensor in make_inputs(shapes)]
    torch.use_deterministic_algorithms(True)
    try:
        outputs = (
            ms_deform_attn_fused(given[0], shapes, *given[1:]),
            ms_deform_attn(given[0], shapes, *locations_and_weights(given[0], [6], [5], *given[1:])),
        )
    finally:
        torch.use_deterministic_algorithms(False)
    with Watch():
        for output in outputs:
            torch.autograd.grad(output.sum(), given[0])
    assert seen == [("ms_deform_attn_fused_backward.default", True), ("ms_deform_attn_backward.default", True)]
