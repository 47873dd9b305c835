"""Multi-scale deformable attention: the compiled operator against plain PyTorch, in one run, interleaved.

Shapes are those of the DINOv3 adapter: queries at strides 8, 16 and 32 read a stride-16 map, 4 points a head. The
baseline is `grid_sample` on contiguous maps, as in the published PyTorch form; half-precision values are turned to
float32 for it, since the CPU's half-precision grid_sample is wrong on large maps. In every round each variant runs some
times in a row, once untimed; a round gives one mean. Times and ratios are medians over the rounds; `best` is the ratio
of the fastest rounds. The allocator is kept warm. `x floor` compares with reading every neighbour's row once from the
second-level cache, at the speed at which a sum over a block there runs. Mode `fused` takes offsets and logits, and the
baseline does what comes before the sampling in PyTorch; mode `adapter` is the whole DINOv3 adapter of a ViT-S at 512
pixels, backbone included, against the same weights in plain PyTorch, step by step as published, bfloat16 by autocast.

    python benchmarks/ms_deform_attn.py --threads 2 --seconds 5
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dinomed.networks import DINOv3Adapter, create_backbone
from dinomed.networks.blocks import ConvNormAct
from dinomed.ops import kernel_status, kernels, ms_deform_attn, ms_deform_attn_fused
from dinomed.ops.ms_deform_attn_fused import locations_and_weights

WARM_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "67108864"}
HEADS = {"S": (16, 12), "B": (16, 24), "L": (16, 32), "H": (16, 40), "7B": (16, 128)}
POINTS = 4
CASES = ((512, 1, "S"), (512, 1, "B"), (512, 4, "S"), (1024, 1, "S"), (1024, 1, "B"), (1024, 4, "B"))


def make_case(side: int, batch: int, model: str, dtype: torch.dtype, spread: str, device: str) -> dict[str, Tensor]:
    heads, depth = HEADS[model]
    generator = torch.Generator().manual_seed(0)
    centres = []
    for stride in (8, 16, 32):
        centres.append(pixel_centres(side // stride, side // stride))
    references = torch.cat(centres)
    if spread == "anywhere":
        references = torch.rand(references.shape, generator=generator)
    queries = len(references)
    shape = (batch, queries, heads, 1, POINTS)
    case = {
        "value": torch.randn(batch, (side // 16) ** 2, heads, depth, generator=generator).to(dtype),
        "references": references,
        "offsets": torch.randn(*shape, 2, generator=generator) * (2.0 if spread == "near" else side / 48),
        "logits": torch.randn(shape, generator=generator),
        "gradient": torch.randn(batch, queries, heads * depth, generator=generator).to(dtype),
    }
    return {name: tensor.to(device) for name, tensor in case.items()}


def grid_sample_attention(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The published plain-PyTorch form, with contiguous float32 maps."""
    batch, _, heads, depth = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    grids = 2 * locations - 1
    sampled = []
    for level, part in enumerate(value.float().split([h * w for h, w in shapes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(batch * heads, depth, *shapes[level]).contiguous()
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    flat = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * flat).sum(-1)
    return output.view(batch, heads * depth, queries).transpose(1, 2).contiguous().to(value.dtype)


def plain_adapter(adapter: DINOv3Adapter, image: Tensor) -> list[Tensor]:
    """The adapter as published: no fused operator, no folded batch norm, channels first throughout."""
    prior, token_maps = adapter.spatial_prior, adapter.backbone(image)
    priors = [image]
    for block in prior.stem:
        priors[0] = (
            torch.nn.Sequential.forward(block, priors[0]) if isinstance(block, ConvNormAct) else block(priors[0])
        )
    for stage in prior.stages:
        priors.append(torch.nn.Sequential.forward(stage, priors[-1]))
    priors = [project(x) for project, x in zip(prior.projections, priors, strict=True)]
    sizes = [x.shape[-2:] for x in priors[1:]]
    references = torch.cat([pixel_centres(*size) for size in sizes])[None, :, None]
    levels = zip(priors[1:], adapter.level_embedding, strict=True)
    queries = torch.cat([x.flatten(2).transpose(1, 2) + level for x, level in levels], dim=1)
    height, width = token_maps[0].shape[-2:]
    for extractor, tap in zip(adapter.extractors, adapter.taps, strict=True):
        attention, normed = extractor.attention, extractor.query_norm(queries)
        tokens = token_maps[tap].flatten(2).transpose(1, 2)
        value = attention.value_proj(extractor.feature_norm(tokens)).unflatten(-1, (attention.num_heads, -1))
        offsets = attention.sampling_offsets(normed).unflatten(-1, (attention.num_heads, 1, -1, 2))
        logits = attention.attention_weights(normed).unflatten(-1, (attention.num_heads, 1, -1))
        places = locations_and_weights(value, [height], [width], references, offsets, logits)
        queries = queries + attention.output_proj(grid_sample_attention(value, [(height, width)], *places))
        hidden = as_maps(extractor.ffn.fc1(extractor.ffn_norm(queries)), sizes)
        hidden = [extractor.ffn.dwconv(x).flatten(2).transpose(1, 2) for x in hidden]
        queries = queries + extractor.ffn.fc2(F.gelu(torch.cat(hidden, dim=1)))
    maps = as_maps(queries, sizes)
    maps = [adapter.up(maps[0]) + priors[0], *maps]
    resized = [F.interpolate(x, size=y.shape[-2:], mode="bilinear") for x, y in zip(token_maps, maps, strict=True)]
    return [norm(x + y) for norm, x, y in zip(adapter.norms, maps, resized, strict=True)]


def as_maps(tokens: Tensor, sizes: list[torch.Size]) -> list[Tensor]:
    parts = tokens.split([height * width for height, width in sizes], dim=1)
    return [part.transpose(1, 2).unflatten(2, size).contiguous() for part, size in zip(parts, sizes, strict=True)]


def pixel_centres(rows: int, columns: int) -> Tensor:
    x, y = (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def adapter_variants(device: str, names: list[str], dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Give the two forms of the whole adapter, after a look whether they agree; bfloat16 is autocast's."""
    torch.manual_seed(0)
    adapter = DINOv3Adapter(create_backbone("dinov3_vits16"), num_heads=HEADS["S"][0]).eval().to(device)
    image = torch.randn(1, 3, 512, 512, device=device)

    def timed(function: Callable[[Tensor], list[Tensor]], kernel: str | None) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            if kernel is not None:
                kernels.select_cpu_kernel(kernel)
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                return function(image)

        return run

    runs = {"grid_sample": timed(lambda x: plain_adapter(adapter, x), None)}
    runs |= {name: timed(adapter, None if name == "cuda" else name) for name in names}
    for name in names:
        for ours, plain in zip(runs[name](), runs["grid_sample"](), strict=True):
            difference = (ours.float() - plain.float()).norm() / plain.float().norm()
            assert difference < (1e-4 if dtype == torch.float32 else 2e-2), f"the two forms differ by {difference:.1e}"
    return runs


def variants(case: dict[str, Tensor], mode: str, names: list[str]) -> dict[str, Callable[[], object]]:
    """Give what is timed: the baseline, and ours for each kernel."""
    pixels = case["value"].shape[1]
    shapes = [(int(pixels**0.5),) * 2]
    heights, widths = [shapes[0][0]], [shapes[0][1]]
    parts = [case["value"], case["references"], case["offsets"], case["logits"]]

    def places(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return locations_and_weights(value, heights, widths, references[None, :, None], offsets, logits)

    def plain(value: Tensor, *rest: Tensor) -> Tensor:
        return grid_sample_attention(value, shapes, *(places(value, *rest) if mode == "fused" else rest))

    def ours(value: Tensor, *rest: Tensor) -> Tensor:
        operator = ms_deform_attn_fused if mode == "fused" else ms_deform_attn
        return operator(value, shapes, *rest)

    given = parts if mode == "fused" else [parts[0], *places(*parts)]

    def timed(function: Callable[..., Tensor], kernel: str | None) -> Callable[[], object]:
        def run() -> None:
            if kernel is not None:
                kernels.select_cpu_kernel(kernel)
            if mode == "both":
                leaves = [tensor.detach().requires_grad_() for tensor in given]
                torch.autograd.grad(function(*leaves), leaves, case["gradient"])
            else:
                with torch.no_grad():
                    function(*given)

        return run

    return {
        "grid_sample": timed(plain, None),
        **{name: timed(ours, None if name == "cuda" else name) for name in names},
    }


def measure(
    runs: dict[str, Callable[[], object]], seconds: float, device: str, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Run all variants in turn until the time is over, at least five rounds; mean seconds of a run in each round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    in_a_row = {}
    for name, run in runs.items():
        run()
        start = clock()
        run()
        synchronize(device)
        in_a_row[name] = max(1, min(20, round(0.02 / max(clock() - start, 1e-6))))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["grid_sample"]) < 5:
        for name, run in runs.items():
            run()
            synchronize(device)
            start = clock()
            for _ in range(in_a_row[name]):
                run()
            synchronize(device)
            times[name].append((clock() - start) / in_a_row[name])
    return times


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def cache_bytes_per_second(threads: int) -> float:
    """Measure how fast sums read a block that stays in the second-level cache, for all threads together."""
    block = torch.ones(128 * 1024)
    best = float("inf")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(300):
        start = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return threads * block.numel() * 4 / best


def main() -> None:
    if any(os.environ.get(key) != value for key, value in WARM_ALLOCATOR.items()):  # read by libc at the start only
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WARM_ALLOCATOR})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line of the table")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--modes", default="forward,both,fused,adapter")
    parser.add_argument("--kernels", default=None, help="instruction sets; by default the one in use, and avx2")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, on shared machines"
    )
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of the shapes")
    parser.add_argument(
        "--spread", choices=("near", "anywhere"), default="near", help="points around their query, or not"
    )
    options = parser.parse_args()
    gc.disable()  # as timeit does: a collection's time belongs to none of the variants
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    names = options.kernels.split(",") if options.kernels else default_kernels(options.device)
    if not names:
        sys.exit(f"no compiled kernel to measure: {kernel_status()}")
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads, load {os.getloadavg()[0]:.1f}"
    print(f"torch {torch.__version__}, {machine}, {options.clock} clock, points {options.spread}; {kernel_status()}")
    speed = cache_bytes_per_second(options.threads) if options.device == "cpu" else float("nan")
    print(f"{'mode':8}{'type':10}{'image':>6}{'batch':>6}{'ViT':>5}{'kernel':>9}{'plain ms':>10}{'ours ms':>9}", end="")
    print(f"{'ratio':>7}{'best':>7}{'x floor':>9}")
    for mode in options.modes.split(","):
        for dtype in options.dtypes.split(","):
            if mode == "adapter":
                runs = adapter_variants(options.device, names, getattr(torch, dtype))
                times = measure(runs, options.seconds, options.device, clock)
                print_lines((mode, dtype, 512, 1, "S"), times, None)
                continue
            for side, batch, model in CASES[: options.cases]:
                case = make_case(side, batch, model, getattr(torch, dtype), options.spread, options.device)
                times = measure(variants(case, mode, names), options.seconds, options.device, clock)
                floor = case["logits"].numel() * 4 * HEADS[model][1] * 4 / speed
                print_lines((mode, dtype, side, batch, model), times, floor if mode == "forward" else None)


def default_kernels(device: str) -> list[str]:
    """The kernel in use first, and the AVX2 one where it runs too."""
    if device == "cuda":
        return ["cuda"]
    in_use = kernels.cpu_kernel()
    if in_use is None:
        return []
    try:
        kernels.select_cpu_kernel("avx2")
    except ValueError:
        return [in_use]
    kernels.select_cpu_kernel(in_use)
    return list(dict.fromkeys((in_use, "avx2")))


def print_lines(case: tuple[str, str, int, int, str], times: dict[str, list[float]], floor: float | None) -> None:
    """Print a line for each kernel, with its ratios to plain PyTorch."""
    mode, dtype, side, batch, model = case
    plain = times["grid_sample"]
    for name in list(times)[1:]:
        ratio = statistics.median(a / b for a, b in zip(plain, times[name], strict=True))
        ours = statistics.median(times[name])
        best = min(plain) / min(times[name])
        print(f"{mode:8}{dtype:10}{side:6}{batch:6}{model:>5}{name:>9}", end="")
        print(f"{statistics.median(plain) * 1e3:10.2f}{ours * 1e3:9.2f}{ratio:7.1f}{best:7.1f}", end="")
        print(f"{ours / floor:9.1f}" if floor is not None else f"{'':9}", flush=True)


if __name__ == "__main__":
    main()
