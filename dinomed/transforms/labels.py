"""Labels: decided on the native grid from probabilities on the network grid; translated between numberings."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from dinomed.transforms.geometry import GridMap, match_grids, native_blocks
from dinomed.transforms.resampling import NativeBlock

BLOCK_VOXELS = 2**21
"""Native voxels that are decided at a time; one class of them in float32 takes 8 MiB."""

FULL_PROBABILITY = 255.0


@dataclass(frozen=True)
class NativeLabels:
    """A label map and what its voxels say about each label.

    Attributes:
        labels: (X, Y, Z) uint8 on the native grid.
        mean_confidence: (labels,) mean probability of the winning label over its voxels, NaN where it has none.
        voxel_counts: (labels,) int64.
    """

    labels: npt.NDArray[np.uint8]
    mean_confidence: npt.NDArray[np.float32]
    voxel_counts: npt.NDArray[np.int64]


def _check_groups(class_groups: Sequence[Sequence[int]] | None, classes: int) -> list[list[int]]:
    """Return the channels of each label, after checking that every channel is used once."""
    groups = [[channel] for channel in range(classes)] if class_groups is None else [list(g) for g in class_groups]
    if sorted(channel for group in groups for channel in group) != list(range(classes)) or not all(groups):
        raise ValueError(
            f"class_groups must hold each of the channels 0..{classes - 1} exactly once, in groups that are not empty, "
            f"not {class_groups}"
        )
    if len(groups) > 256:
        raise ValueError(f"a uint8 label map holds at most 256 labels, not {len(groups)}")
    return groups


def _decide_block(probs: Tensor, block: NativeBlock, groups: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the labels (uint8) of one block (x, y, z) and the probabilities times 255 that won."""
    xs, ys, zs = block.source
    part = probs[:, xs, ys, zs]
    labels: Tensor | None = None
    best: Tensor | None = None
    for label, group in enumerate(groups):
        values = part[group[0]] if len(group) == 1 else part[group].sum(dim=0, dtype=torch.int16)
        if best is not None and not bool(values.amax()):
            continue  # a class that is absent from the whole block cannot win
        if not block.is_copy:
            values = block.resample(values)
        elif values.dtype is torch.uint8 and any(len(other) > 1 for other in groups):
            values = values.to(torch.int16)
        if best is None or labels is None:
            best = values.clone()
            labels = torch.zeros_like(values, dtype=torch.uint8)
            continue
        # A later label is larger than all before it, so that the maximum writes it where it wins. This is many
        # times faster than argmax over the first dimension, and keeps the first of equal classes like argmax.
        wins = torch.gt(values, best).view(torch.uint8)
        labels = torch.maximum(labels, wins.mul_(label), out=labels)
        best = torch.maximum(best, values, out=best)
    assert labels is not None
    assert best is not None
    return labels, best


def decide_labels(
    probs: Tensor, grid: GridMap, class_groups: Sequence[Sequence[int]] | None = None, block_voxels: int = BLOCK_VOXELS
) -> NativeLabels:
    """Resample probabilities linearly to the native grid and take the most probable label, block by block.

    Args:
        probs: (C, X, Y, Z) uint8 on the network grid, probabilities times 255.
        grid: Map between the grids.
        class_groups: Channels whose probabilities are added to make label 0, 1, ...; by default each channel is one.
        block_voxels: Native voxels decided at a time.

    Returns:
        The label map in Fortran order, as NIfTI stores it. Of equally probable labels the first one wins.

    Raises:
        ValueError: If `probs` is not uint8 (C, *grid.shape), or `class_groups` leaves a channel out or names one twice.
    """
    if probs.dtype is not torch.uint8 or probs.ndim != 4 or tuple(probs.shape[1:]) != grid.shape:
        raise ValueError(
            f"probabilities must be uint8 of shape (C, {', '.join(map(str, grid.shape))}), not {probs.dtype} of shape "
            f"{tuple(probs.shape)}"
        )
    groups = _check_groups(class_groups, probs.shape[0])
    native = np.empty(grid.native_shape, dtype=np.uint8, order="F")
    canonical = grid.canonical_view(native)
    counts = np.zeros(len(groups), dtype=np.int64)
    sums = np.zeros(len(groups), dtype=np.float64)
    probs = probs.cpu()
    for block in native_blocks(grid, block_voxels):
        labels, best = _decide_block(probs, block, groups)
        canonical[block.where] = labels.numpy()
        found, won = labels.reshape(-1).numpy(), best.reshape(-1).numpy()
        counts += np.bincount(found, minlength=len(groups))
        sums += np.bincount(found, weights=won, minlength=len(groups))
    confidence = np.full(len(groups), np.nan, dtype=np.float32)
    # A sum of rounded probabilities may exceed the whole a little.
    np.divide(sums / FULL_PROBABILITY, counts, out=confidence, where=counts > 0, casting="same_kind")
    return NativeLabels(native, np.minimum(confidence, 1), counts)


class LabelsToNativeGridd(MapTransform):
    """Turn uint8 probabilities on the network grid into a label map on the scan's own grid.

    The label map (1, X, Y, Z) is a MetaTensor with the native affine. Its meta data hold `mean_confidence` (float32 per
    label, NaN where absent) and `voxel_counts` (int64 per label).
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        image_key: str = "image",
        class_groups: Sequence[Sequence[int]] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        """Store what to decide.

        Args:
            keys: Probabilities (C, X, Y, Z).
            image_key: The image that ToNetworkGridd brought to the network grid.
            class_groups: Channels that make label 0, 1, ...
            allow_missing_keys: Skip keys that the dictionary lacks.
        """
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.class_groups = class_groups

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with label maps in place of probabilities.

        Raises:
            ValueError: If the image never went through ToNetworkGridd, or the probabilities do not fit its grid.
        """
        out = dict(data)
        image = out[self.image_key]
        if not isinstance(image, MetaTensor) or "native_shape" not in image.meta:
            raise ValueError(f"{self.image_key!r} carries no native grid; preprocess it with ToNetworkGridd")
        native_affine = np.asarray(image.meta["native_affine"], dtype=np.float64)
        x, y, z = (int(n) for n in image.meta["native_shape"])
        nx, ny, nz = (int(n) for n in image.shape[-3:])
        grid = match_grids((x, y, z), native_affine, (nx, ny, nz), np.asarray(image.affine, dtype=np.float64))
        for key in self.key_iterator(out):
            probs = torch.as_tensor(out[key])
            probs = probs.as_tensor() if isinstance(probs, MetaTensor) else probs
            decided = decide_labels(probs, grid, self.class_groups)
            meta = {name: image.meta[name] for name in ("filename_or_obj",) if name in image.meta}
            meta["mean_confidence"] = torch.from_numpy(decided.mean_confidence)
            meta["voxel_counts"] = torch.from_numpy(decided.voxel_counts)
            labels = torch.from_numpy(decided.labels)[None]
            out[key] = MetaTensor(labels, affine=torch.from_numpy(native_affine), meta=meta)
        return out


def map_labels(labels: Tensor, mapping: Mapping[int | str, int], unlisted: int = 0) -> Tensor:
    """Translate label numbers through a table.

    Args:
        labels: Whole numbers of any type and shape; negative ones count as unlisted.
        mapping: New label (0..255) of each old number; a key may be text, as configuration files write it.
        unlisted: New label of numbers that the table lacks.

    Returns:
        uint8 tensor of the same shape.

    Raises:
        ValueError: If a number of the table is negative, a new label does not fit uint8, or `labels` are not whole.
    """
    table = {int(old): int(new) for old, new in mapping.items()}
    if any(old < 0 for old in table) or any(not 0 <= new <= 255 for new in [unlisted, *table.values()]):
        raise ValueError("a table of labels maps numbers from 0 on to labels 0..255")
    numbers = labels.to(torch.int32)
    if labels.is_floating_point() and not torch.equal(numbers.to(labels.dtype), labels):
        raise ValueError("label maps hold whole numbers; was this one resampled linearly?")
    last = max(table, default=0) + 1
    lookup = torch.full((last + 1,), unlisted, dtype=torch.uint8, device=labels.device)
    for old, new in table.items():
        lookup[old] = new
    numbers = torch.where(numbers < 0, last, numbers).clamp_(max=last)
    return lookup[numbers]


class MapLabelsd(MapTransform):
    """Dictionary version of `map_labels`, keeping each label map's meta data."""

    def __init__(
        self,
        keys: KeysCollection,
        mapping: Mapping[int | str, int],
        unlisted: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mapping = dict(mapping)
        self.unlisted = unlisted

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the listed label maps translated."""
        out = dict(data)
        for key in self.key_iterator(out):
            labels = out[key]
            if isinstance(labels, MetaTensor):
                values = map_labels(labels.as_tensor(), self.mapping, self.unlisted)
                out[key] = MetaTensor(values, meta=labels.meta, applied_operations=labels.applied_operations)
            else:
                out[key] = map_labels(torch.as_tensor(labels), self.mapping, self.unlisted)
        return out
