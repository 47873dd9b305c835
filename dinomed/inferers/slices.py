"""From a volume to slices and back.

A volume (X, Y, Z) lies on the network grid: x to the right, y to the front, z up (RAS). A slice shows the two axes
p < q that it does not cut: its rows run along q downwards (descending), its columns along p (ascending), so that
pictures stand upright. Training and inference cut slices with the functions of this file.

`SliceInferer` runs a 2-D network over the slices of one or more planes and adds up their probabilities as uint8, so
that classes x volume never exist in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from dinomed.errors import DinomedError
from dinomed.inferers.occupancy import Span, occupied, tight_span, whole_span
from dinomed.inferers.precision import PRECISIONS, resolve_precision

Network = Callable[..., Any]
Progress = Callable[[int, int], None]

PLANE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis that a plane's slices follow, in RAS voxel order."""

FULL_PROBABILITY = 255


def _in_plane_axes(axis: int) -> tuple[int, int]:
    """Return the axes (q, p) of a slice's rows and columns."""
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0 (sagittal), 1 (coronal) or 2 (axial), not {axis!r}")
    p, q = (other for other in (0, 1, 2) if other != axis)
    return q, p


def _check_volume(volume: Tensor) -> None:
    if volume.ndim != 3:
        raise ValueError(
            f"a volume must have the shape (X, Y, Z), not {tuple(volume.shape)}; pass one channel at a time"
        )


def slices_along(volume: Tensor, axis: int) -> Tensor:
    """Turn a volume into upright slices along one axis.

    Args:
        volume: (X, Y, Z) of any type on the RAS network grid.
        axis: 0 sagittal, 1 coronal, 2 axial.

    Returns:
        (N, rows, cols) with N the size of `axis`; a copy.

    Raises:
        ValueError: If the volume is not three-dimensional or the axis is unknown.
    """
    _check_volume(volume)
    q, p = _in_plane_axes(axis)
    return volume.permute(axis, q, p).flip(1)


def slice_inputs(volume: Tensor, axis: int, indices: Sequence[int] | Tensor, neighbours: int = 1) -> Tensor:
    """Cut slices together with their neighbours on both sides as channels.

    Args:
        volume: (X, Y, Z) on the RAS network grid.
        axis: 0 sagittal, 1 coronal, 2 axial.
        indices: Positions along `axis`, n of them.
        neighbours: Slices taken on each side; beyond the volume its edge slice is repeated.

    Returns:
        (n, 2 * neighbours + 1, rows, cols); channel `neighbours` is the slice itself, the channels ascend along `axis`.

    Raises:
        ValueError: If the volume is not three-dimensional, the axis is unknown, or a position lies outside.
    """
    _check_volume(volume)
    q, p = _in_plane_axes(axis)
    if neighbours < 0:
        raise ValueError(f"neighbours must be 0 or more, not {neighbours}")
    size = volume.shape[axis]
    centres = torch.as_tensor(indices, dtype=torch.long, device="cpu")
    if centres.numel() and (int(centres.min()) < 0 or int(centres.max()) >= size):
        raise ValueError(f"slice positions must lie in 0..{size - 1}, not {centres.tolist()}")
    offsets = torch.arange(-neighbours, neighbours + 1)
    wanted = (centres[:, None] + offsets).clamp_(0, size - 1)
    if wanted.numel() == 0:
        return volume.new_empty((0, len(offsets), volume.shape[q], volume.shape[p]))
    # Gather each plane once: neighbouring slices share most of their channels.
    planes, places = torch.unique(wanted, return_inverse=True)
    upright = volume.index_select(axis, planes.to(volume.device)).permute(axis, q, p).flip(1).contiguous()
    return upright[places.to(volume.device)]


@dataclass(frozen=True)
class _Batch:
    """Slices of one plane of which the same part goes through the network, in ascending order."""

    axis: int
    indices: list[int]
    rows: Span
    columns: Span
    weight: int


class SliceInferer(Inferer):
    """Segment a volume with a 2-D network, slice by slice, along one or more planes.

    Each voxel's probabilities are averaged over the planes. Slices without anything in them are not run, nor is the
    margin around everything in the volume; there the background, class 0, is certain. The network should be in eval
    mode; it may live on another device than the volume.
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
    ) -> None:
        """Choose how to slice.

        Args:
            planes: Any of "axial", "coronal", "sagittal", each at most once.
            neighbours: Slices on each side that become input channels; 1 gives three channels.
            batch_size: Slices (or windows) at a time.
            precision: "float32", "bfloat16", or "auto", which takes bfloat16 where the device multiplies it natively.
            window: Side in voxels of the square that slides over larger slices; `None` takes slices whole.
            overlap: Part of a window that the next one covers again, 0 to below 1.
            skip_empty: Do not run the network where there is nothing.
            empty_value: Voxels up to this intensity are empty; by default the volume's minimum.
            progress: Show a bar, or a function that is called with the slices done and their number.

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

        # One autocast region for everything: within it, each weight is converted only once.
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            results = [self._infer_volume(volume[0], predict, device) for volume in values]
        probs = results[0][None] if len(results) == 1 else torch.stack(results)
        return MetaTensor(probs).copy_meta_from(inputs, copy_attr=True) if isinstance(inputs, MetaTensor) else probs

    def _infer_volume(self, volume: Tensor, predict: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
        """Return probabilities times 255 (C, X, Y, Z) for one volume (X, Y, Z)."""
        empty = float(volume.amin()) if self.empty_value is None else self.empty_value
        batches = self._batches(volume, empty)
        total = sum(len(batch.indices) for batch in batches)
        bar = tqdm(total=total, unit="slice") if self.progress is True else None
        probs: Tensor | None = None
        done = 0
        for batch in batches:
            with torch.inference_mode():
                slices = _cut(volume, batch, self.neighbours, empty)
                slices = slices.to(device, torch.float32, memory_format=torch.channels_last)
                weighted = self._predict_slices(slices, predict).mul_(batch.weight).round_().to(torch.uint8)
            if probs is None:  # not in inference mode, so that the caller may change it
                probs = torch.zeros((weighted.shape[1], *volume.shape), dtype=torch.uint8, device=volume.device)
                probs[0] = FULL_PROBABILITY
            _add(probs, weighted.to(volume.device), batch)
            done += len(batch.indices)
            if bar is not None:
                bar.update(len(batch.indices))
            elif callable(self.progress):
                self.progress(done, total)
        if bar is not None:
            bar.close()
        assert probs is not None
        return probs

    def _batches(self, volume: Tensor, empty: float) -> list[_Batch]:
        """List what goes through the network."""
        found: Sequence[Tensor] | None = occupied(volume, empty) if self.skip_empty else None
        batches = []
        for number, plane in enumerate(self.planes):
            axis = PLANE_AXES[plane]
            # Whole weights that add up to exactly 255.
            weight = FULL_PROBABILITY * (number + 1) // len(self.planes) - FULL_PROBABILITY * number // len(self.planes)
            together: dict[tuple[Span, Span], list[int]] = {}
            for index in range(volume.shape[axis]):
                spans = _spans(volume.shape, found, axis, index)
                if spans is not None:
                    together.setdefault(spans, []).append(index)
            for (rows, columns), indices in together.items():
                for start in range(0, len(indices), self.batch_size):
                    batches.append(_Batch(axis, indices[start : start + self.batch_size], rows, columns, weight))
        if not batches:  # an empty volume still needs one slice, without weight, to learn the number of classes
            axis = PLANE_AXES[self.planes[0]]
            spans = _spans(volume.shape, None, axis, 0)
            assert spans is not None
            batches.append(_Batch(axis, [0], *spans, weight=0))
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


def _spans(shape: Sequence[int], found: Sequence[Tensor] | None, axis: int, index: int) -> tuple[Span, Span] | None:
    """Choose the rows and columns of a slice that are worth running; `None` where it is empty.

    Args:
        shape: (X, Y, Z) of the volume.
        found: The volume's projections as `occupied` gives them, or `None` to take slices whole.
        axis: Axis of the slice.
        index: Its position.
    """
    q, p = _in_plane_axes(axis)
    if found is None:
        return whole_span(shape[q]), whole_span(shape[p])
    # The projection along p has the axes q and `axis`, in ascending order; that along q likewise. Rows run down q.
    in_rows = found[p].select(0 if axis < q else 1, index).flip(0)
    in_columns = found[q].select(0 if axis < p else 1, index)
    return (tight_span(in_rows), tight_span(in_columns)) if bool(in_rows.any()) else None


def _region(volume: Tensor, batch: _Batch) -> Tensor:
    """Return a view of what a batch covers in its plane, from a volume (..., X, Y, Z)."""
    q, p = _in_plane_axes(batch.axis)
    q, p = q - 3, p - 3
    region = volume.narrow(q, volume.shape[q] - batch.rows.stop, batch.rows.stop - batch.rows.start)
    return region.narrow(p, batch.columns.start, batch.columns.stop - batch.columns.start)


def _cut(volume: Tensor, batch: _Batch, neighbours: int, empty: float) -> Tensor:
    """Cut the slices of a batch with their neighbours (n, channels, rows, cols), padded with empty space."""
    slices = slice_inputs(_region(volume, batch), batch.axis, batch.indices, neighbours)
    return functional.pad(slices, (0, batch.columns.padding, 0, batch.rows.padding), value=empty)


def _add(probs: Tensor, part: Tensor, batch: _Batch) -> None:
    """Add the probabilities (n, C, rows, cols) of a batch to those of the volume (C, X, Y, Z)."""
    part = part[:, :, : batch.rows.stop - batch.rows.start, : batch.columns.stop - batch.columns.start].flip(2)
    # So far the background has the plane's whole weight. uint8 wraps around, so taking it away first does no harm.
    part[:, 0] -= batch.weight
    q, p = _in_plane_axes(batch.axis)
    region = _region(probs, batch).permute(1 + batch.axis, 0, 1 + q, 1 + p)
    first, last = batch.indices[0], batch.indices[-1]
    if last - first + 1 == len(batch.indices):
        region[first : last + 1] += part
    else:
        for index, one in zip(batch.indices, part, strict=True):
            region[index] += one
