"""Multi-scale deformable attention on a GPU: the compiled kernels against `grid_sample` and, where built, others.

Shapes are those of the DINOv3 adapter at batch 8, and one of a detector with four levels. Times are medians of CUDA
events around single calls, taken in turn after a warm-up; inputs rotate, so that they do not all stay in the cache.
`x floor` compares with reading every input and writing every output once at the speed of a large copy in this run.
Others are measured where they can be imported: `detr`, the Deformable-DETR kernel (MultiScaleDeformableAttention),
which takes float32 only, so half-precision values are widened for it; and in mode `fused` with half-precision values
`flash`, FlashDeformAttn (DCNv4), which does the softmax itself, takes locations in half precision and refuses some
heads, points and levels, where it has no line.

    python benchmarks/ms_deform_attn_cuda.py --seconds 1
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dinomed.ops import kernel_status, ms_deform_attn, ms_deform_attn_fused
from dinomed.ops.ms_deform_attn_fused import locations_and_weights

Shapes = list[tuple[int, int]]
# Name, levels, sides of the queries' maps, heads, depth, points.
CASES: list[tuple[str, Shapes, list[int], int, int, int]] = [
    *((f"512 ViT-{name}", [(32, 32)], [64, 32, 16], 16, depth, 4) for name, depth in zip("SBLH", (12, 24, 32, 40))),  # noqa: B905
    ("512 ViT-7B", [(32, 32)], [64, 32, 16], 16, 128, 4),
    ("1024 ViT-S", [(64, 64)], [128, 64, 32], 16, 12, 4),
    ("detector", [(100, 134), (50, 67), (25, 34), (13, 17)], [100, 80, 50], 8, 32, 4),
]
SETS = 4  # of inputs, in turn


def make_inputs(case: tuple[str, Shapes, list[int], int, int, int], batch: int, dtype: torch.dtype) -> list[Tensor]:
    _, shapes, sides, heads, depth, points = case
    queries, levels = sum(side * side for side in sides), len(shapes)
    centres = []
    for side in sides:
        ticks = (torch.arange(side, device="cuda") + 0.5) / side
        centres.append(torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).flatten(0, 1))
    pixels = sum(height * width for height, width in shapes)
    return [
        torch.randn(batch, pixels, heads, depth, device="cuda", dtype=dtype),
        torch.cat(centres),
        2 * torch.randn(batch, queries, heads, levels, points, 2, device="cuda"),
        torch.randn(batch, queries, heads, levels, points, device="cuda"),
        torch.randn(batch, queries, heads * depth, device="cuda", dtype=dtype),
    ]


def grid_sample_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample level by level with PyTorch; locations are rounded to the values' type, which grid_sample asks for."""
    batch, _, heads, depth = value.shape
    _, queries, _, levels, points, _ = locations.shape
    grids = (2 * locations - 1).to(value.dtype).permute(3, 0, 2, 1, 4, 5).reshape(levels, -1, queries, points, 2)
    sampled = []
    for part, grid, (height, width) in zip(value.split([h * w for h, w in shapes], dim=1), grids, shapes, strict=True):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, depth, height, width).contiguous()
        sampled.append(F.grid_sample(maps, grid, align_corners=False))
    flat = weights.to(value.dtype).transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.cat(sampled, dim=-1) * flat).sum(-1)
    return output.view(batch, heads * depth, queries).transpose(1, 2).contiguous()


def starts_of(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])


def deformable_detr(shapes: Shapes) -> Callable[..., Tensor] | None:
    """Give the Deformable-DETR kernel, if it is there."""
    try:
        module = importlib.import_module("MultiScaleDeformableAttention")
    except ImportError:
        return None
    sizes = torch.tensor(shapes, device="cuda")
    starts = starts_of(sizes)

    class DeformableDETR(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, locations, weights):
            ctx.save_for_backward(value, locations, weights)
            return module.ms_deform_attn_forward(value, sizes, starts, locations, weights, 64)

        @staticmethod
        def backward(ctx, gradient):
            value, locations, weights = ctx.saved_tensors
            return module.ms_deform_attn_backward(value, sizes, starts, locations, weights, gradient.contiguous(), 64)

    return lambda value, *rest: DeformableDETR.apply(value.float(), *rest).to(value.dtype)


def flash_deform_attn(shapes: Shapes) -> Callable[..., Tensor] | None:
    """Give FlashDeformAttn of values, references, offsets and logits, if it is there."""
    try:
        function = importlib.import_module("DCNv4.functions").FlashDeformAttnFunction
    except ImportError:
        return None
    sizes = torch.tensor(shapes, device="cuda")
    starts, widths_first = starts_of(sizes), sizes.flip(1)

    def call(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = references[None, :, None, None, None] + offsets / widths_first[:, None]
        together = torch.cat([locations.flatten(2), logits.flatten(2)], dim=-1).to(value.dtype)
        return function.apply(value, sizes, starts, together, 64, logits.shape[-1])

    return call


def variants(mode: str, shapes: Shapes, dtype: torch.dtype) -> dict[str, Callable[[list[Tensor]], object]]:
    heights, widths = [height for height, _ in shapes], [width for _, width in shapes]

    def after_prologue(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            places = locations_and_weights(value, heights, widths, references[None, :, None], offsets, logits)
            return attention(value, *places)

        return call

    def timed(attention: Callable[..., Tensor]) -> Callable[[list[Tensor]], object]:
        def run(given: list[Tensor]) -> None:
            *inputs, gradient = given
            if mode != "both":
                with torch.no_grad():
                    attention(*inputs)
                return
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            torch.autograd.grad(attention(*leaves), leaves, gradient)

        return run

    detr, flash = deformable_detr(shapes), flash_deform_attn(shapes)
    attentions: dict[str, Callable[..., Tensor]] = {
        "grid_sample": lambda value, *rest: grid_sample_attention(value, shapes, *rest),
        "ours": lambda value, *rest: ms_deform_attn(value, shapes, *rest),
        **({"detr": detr} if detr is not None else {}),
    }
    if mode == "both":
        attentions["determin."] = lambda value, *rest: ms_deform_attn(value, shapes, *rest, deterministic=True)
    if mode == "fused":
        attentions = {name: after_prologue(attention) for name, attention in attentions.items()}
        attentions["ours"] = lambda value, *rest: ms_deform_attn_fused(value, shapes, *rest)
        if flash is not None and dtype != torch.float32:
            attentions["flash"] = flash
    return {name: timed(attention) for name, attention in attentions.items()}


def measure(runs: dict[str, Callable[[list[Tensor]], object]], sets: list[list[Tensor]], seconds: float) -> dict:
    """Run all variants in turn until the time is over; median milliseconds of a call."""
    for name, run in list(runs.items()):
        try:
            for _ in range(3):
                run(sets[0])
        except (RuntimeError, AssertionError, ValueError) as refusal:  # heads, points or levels that it does not take
            if name != "flash":
                raise
            print(f"flash refuses this: {str(refusal).splitlines()[0]}")
            del runs[name]
    times: dict[str, list[float]] = {name: [] for name in runs}
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turn < 20:
        for name, run in runs.items():
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(100_000)  # the launches of a call are queued before it begins
            before.record()
            run(sets[turn % len(sets)])
            after.record()
            after.synchronize()
            times[name].append(before.elapsed_time(after))
        turn += 1
    return {name: statistics.median(all_times) for name, all_times in times.items()}


def copy_bytes_per_ms() -> float:
    block = torch.empty(1 << 28, device="cuda").normal_()
    target = torch.empty_like(block)
    times = measure({"copy": lambda _: target.copy_(block)}, [[]], 0.2)
    return 2 * block.numel() * 4 / times["copy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line of the table")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtypes", default="float32,bfloat16,float16")
    parser.add_argument("--modes", default="forward,both,fused")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU to measure on")
        return
    speed = copy_bytes_per_ms()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, copy {speed / 1e9:.2f} TB/s, {kernel_status()}")
    print(f"{'mode':8}{'type':10}{'case':13}{'variant':>12}{'ms':>9}{'ratio':>7}{'x floor':>9}")
    for mode in options.modes.split(","):
        for dtype in (getattr(torch, name) for name in options.dtypes.split(",")):
            for case in CASES:
                shapes = case[1]
                sets = [make_inputs(case, options.batch, dtype) for _ in range(SETS)]
                inputs = sum(sets[0][i].nbytes for i in (0, 2, 3))
                output = sets[0][4].nbytes
                # Backward reads all again and the output's gradient, and writes the gradients of what it reads.
                floor = (3 * inputs + 2 * output if mode == "both" else inputs + output) / speed
                if mode != "fused":
                    sizes = [height for height, _ in shapes], [width for _, width in shapes]
                    sets = [
                        [s[0], *locations_and_weights(s[0], *sizes, s[1][None, :, None], *s[2:4]), s[4]] for s in sets
                    ]
                found = measure(variants(mode, shapes, dtype), sets, options.seconds)
                for name, ms in found.items():
                    print(f"{mode:8}{str(dtype)[6:]:10}{case[0]:13}{name:>12}{ms:9.3f}", end="")
                    print(f"{found['grid_sample'] / ms:7.1f}{ms / floor:9.1f}", flush=True)


if __name__ == "__main__":
    main()
