"""A 2-D network over the slices of a volume, along one plane or several (`dinomed.inferers.planes`).

`SliceInferer` adds up the slices' probabilities as uint8, so that classes x volume never exist in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from dinomed.errors import DinomedError
from dinomed.inferers.occupancy import occupied
from dinomed.inferers.planes import PLANE_AXES, in_plane_axes, slice_inputs
from dinomed.inferers.precision import PRECISIONS, resolve_precision
from dinomed.inferers.workers import Workers

Network = Callable[..., Any]
Progress = Callable[[int, int], None]

FULL_PROBABILITY = 255


BLOCK = 32
"""Slices are padded with emptiness to a multiple of this many pixels; networks would pad with something else."""


MOST_WORKERS = 4
"""Python itself is the limit of more."""


@dataclass(frozen=True)
class _Batch:
    """Slices of one plane that go through the network together, in ascending order."""

    axis: int
    indices: list[int]
    weight: int


class _Report:
    """Tells how many slices are done, as a bar or by the caller's function."""

    def __init__(self, progress: bool | Progress, total: int) -> None:
        self.total = total
        self.done = 0
        self.bar = tqdm(total=total, unit="slice") if progress is True else None
        self.function = progress if callable(progress) else None

    def __call__(self, count: int) -> None:
        """Count further slices."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        if self.function is not None:
            self.function(self.done, self.total)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


class SliceInferer(Inferer):
    """Segment a volume with a 2-D network, slice by slice, along one or more planes.

    Each voxel's probabilities are averaged over the planes. Slices without anything in them are not run; there the
    background, class 0, is certain. The others are run whole, since what a transformer sees of a part depends on where
    that is cut off. The network should be in eval mode; it may live on another device than the volume.
    """

    def __init__(
        self,
        planes: Sequence[str] = ("axial", "coronal", "sagittal"),
        neighbours: int = 1,
        batch_size: int = 8,
        precision: str = "auto",
        window: int | None = None,
        overlap: float = 0.25,
        skip_empty: bool = True,
        empty_value: float | None = None,
        progress: bool | Progress = False,
        workers: int | None = None,
    ) -> None:
        """Choose how to slice.

        Args:
            planes: Any of "axial", "coronal", "sagittal", each at most once.
            neighbours: Slices on each side that become input channels; 1 gives three channels.
            batch_size: Slices (or windows) at a time, of all workers together.
            precision: "float32", "bfloat16", or "auto", which takes bfloat16 where the device multiplies it natively.
            window: Side in voxels of the square that slides over larger slices; `None` takes slices whole.
            overlap: Part of a window that the next one covers again, 0 to below 1.
            skip_empty: Do not run the network where there is nothing.
            empty_value: Voxels up to this intensity are empty; by default the volume's minimum.
            progress: Show a bar, or a function that is called with the slices done and their number.
            workers: Threads that run batches side by side where the network lives on the CPU, each with its share of
                PyTorch's threads; a slice is too small to keep many busy. By default as many as PyTorch uses, up to
                4. Take 1 for a network whose forward is not safe to call from several threads.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__()
        planes = (planes,) if isinstance(planes, str) else tuple(planes)
        if not planes or len(set(planes)) != len(planes) or not set(planes) <= set(PLANE_AXES):
            raise ValueError(f"planes must be one or more of {', '.join(PLANE_AXES)}, each once, not {planes}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
        if batch_size < 1 or neighbours < 0:
            raise ValueError(f"batch_size must be 1 or more and neighbours 0 or more, not {batch_size}, {neighbours}")
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be 1 or more, not {workers}")
        if not 0 <= overlap < 1 or (window is not None and window < 1):
            raise ValueError(f"overlap must lie in [0, 1) and window be positive, not {overlap}, {window}")
        self.planes = planes
        self.neighbours = neighbours
        self.batch_size = batch_size
        self.precision = precision
        self.window = window
        self.overlap = overlap
        self.skip_empty = skip_empty
        self.empty_value = empty_value
        self.progress = progress
        self.workers = workers

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Segment volumes.

        Args:
            inputs: (B, 1, X, Y, Z) floating point on the RAS network grid.
            network: Maps (n, 2 * neighbours + 1, rows, cols) to logits (n, C, rows, cols).
            *args: Further arguments of the network.
            **kwargs: Further arguments of the network.

        Returns:
            uint8 (B, C, X, Y, Z) on the device of `inputs`, probabilities times 255; a MetaTensor with the meta data of
            `inputs` if that is one.

        Raises:
            ValueError: If the input or the network's output has another shape or type.
            DinomedError: If the network's output is not finite.
        """
        if inputs.ndim != 5 or inputs.shape[1] != 1 or 0 in inputs.shape:
            raise ValueError(
                f"inputs must have the shape (B, 1, X, Y, Z), not {tuple(inputs.shape)}; add the missing axes"
            )
        if not inputs.is_floating_point():
            raise ValueError(f"inputs must be floating point, not {inputs.dtype}; normalise intensities first")
        values = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        device = values.device if parameter is None else parameter.device
        dtype = resolve_precision(self.precision, device)

        def predict(slices: Tensor) -> Tensor:
            return _softmax(network(slices, *args, **kwargs), slices)

        results = [self._infer_volume(volume[0], predict, device, dtype) for volume in values]
        probs = results[0][None] if len(results) == 1 else torch.stack(results)
        return MetaTensor(probs).copy_meta_from(inputs, copy_attr=True) if isinstance(inputs, MetaTensor) else probs

    def _infer_volume(
        self, volume: Tensor, predict: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Return probabilities times 255 (C, X, Y, Z) for one volume (X, Y, Z)."""
        empty = float(volume.amin()) if self.empty_value is None else self.empty_value
        threads = torch.get_num_threads()
        workers = min(threads, MOST_WORKERS) if self.workers is None else self.workers
        workers = workers if device.type == "cpu" else 1

        def run(batch: _Batch) -> Tensor:
            with torch.inference_mode():
                slices = _cut(volume, batch, self.neighbours, empty)
                slices = slices.to(device, torch.float32, memory_format=torch.channels_last)
                return self._predict_slices(slices, predict).mul_(batch.weight).round_().to(torch.uint8)

        first, *rest = self._batches(volume, empty, max(1, self.batch_size // workers))
        report = _Report(self.progress, len(first.indices) + sum(len(batch.indices) for batch in rest))
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
        # One autocast region in each thread for everything: within it, each weight is converted only once.
        with autocast, Workers(workers, threads, autocast) as pool:
            weighted = run(first)  # it tells the number of classes
            probs = _certain_background(volume, weighted.shape[1], first.axis)
            _add(probs, weighted.to(volume.device), first)
            report(len(first.indices))
            for _, plane in groupby(rest, lambda batch: batch.axis):  # batches of one plane do not meet
                for count in pool.map(lambda batch: _add(probs, run(batch).to(volume.device), batch), list(plane)):
                    report(count)
        report.close()
        return probs

    def _batches(self, volume: Tensor, empty: float, size: int) -> list[_Batch]:
        """List what goes through the network, plane by plane, up to `size` slices at a time."""
        found = occupied(volume, empty) if self.skip_empty else None
        batches = []
        for number, plane in enumerate(self.planes):
            axis = PLANE_AXES[plane]
            # Whole weights that add up to exactly 255.
            weight = FULL_PROBABILITY * (number + 1) // len(self.planes) - FULL_PROBABILITY * number // len(self.planes)
            indices = list(range(volume.shape[axis])) if found is None else torch.nonzero(found[axis])[:, 0].tolist()
            for start in range(0, len(indices), size):
                batches.append(_Batch(axis, indices[start : start + size], weight))
        if not batches:  # an empty volume still needs one slice, without weight, to learn the number of classes
            batches.append(_Batch(PLANE_AXES[self.planes[0]], [0], weight=0))
        return batches

    def _predict_slices(self, slices: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Return float32 probabilities (n, C, rows, cols), from windows where the slices are larger than one."""
        rows, cols = slices.shape[-2:]
        if self.window is None or max(rows, cols) <= self.window:
            return predict(slices)
        roi = (min(self.window, rows), min(self.window, cols))
        probs = sliding_window_inference(slices, roi, self.batch_size, predict, self.overlap, mode="gaussian")
        assert isinstance(probs, Tensor)
        return probs


def _softmax(logits: Any, slices: Tensor) -> Tensor:
    """Turn a network's output into float32 probabilities, after checking it."""
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[-2:] != slices.shape[-2:]:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the network must map {tuple(slices.shape)} to logits (n, C, rows, cols), not to {shape}")
    probs = logits.float().softmax(dim=1)
    if not bool(torch.isfinite(probs.sum())):
        raise DinomedError("the network's output is not finite; try precision float32, or check input and weights")
    return probs


def _cut(volume: Tensor, batch: _Batch, neighbours: int, empty: float) -> Tensor:
    """Cut the slices of a batch with their neighbours (n, channels, rows, cols), padded with empty space."""
    slices = slice_inputs(volume, batch.axis, batch.indices, neighbours)
    rows, cols = slices.shape[-2:]
    return functional.pad(slices, (0, -cols % BLOCK, 0, -rows % BLOCK), value=empty)


def _certain_background(volume: Tensor, num_classes: int, axis: int) -> Tensor:
    """Make probabilities (C, X, Y, Z) of class 0 everywhere, laid out in memory slice by slice along `axis`."""
    q, p = in_plane_axes(axis)
    shape = (volume.shape[axis], num_classes, volume.shape[q], volume.shape[p])
    by_slice = torch.zeros(shape, dtype=torch.uint8, device=volume.device)
    by_slice[:, 0] = FULL_PROBABILITY
    order = [0, 0, 0]
    order[axis], order[q], order[p] = 0, 2, 3
    return by_slice.permute(1, *order)


def _add(probs: Tensor, part: Tensor, batch: _Batch) -> int:
    """Add the probabilities (n, C, rows, cols) of a batch to those of the volume (C, X, Y, Z); return n."""
    q, p = in_plane_axes(batch.axis)
    region = probs.permute(1 + batch.axis, 0, 1 + q, 1 + p)
    part = part[:, :, : region.shape[2], : region.shape[3]].flip(2)
    # So far the background has the plane's whole weight. uint8 wraps around, so taking it away first does no harm.
    part[:, 0] -= batch.weight
    first, last = batch.indices[0], batch.indices[-1]
    if last - first + 1 == len(batch.indices):
        region[first : last + 1] += part
    else:
        for index, one in zip(batch.indices, part, strict=True):
            region[index] += one
    return len(batch.indices)
