"""Embeddings of scans and pictures by a frozen backbone: one vector a slice, one vector a scan.

A CT's axial slices, from the feet up, are clipped to [-1000, 1000] HU, normalised as the backbone was trained and
repeated to three channels. Where they are resized they keep their proportions in millimetres: what is missing to a
square is air. The order and the sides of the slices follow the scan's affine, not its storage, so the 48
voxel orders of one scan give the same embeddings.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dinomed.data.series_checks import without_frames
from dinomed.errors import InputError, VolumeError
from dinomed.inferers.planes import slices_along
from dinomed.inferers.precision import resolve_precision
from dinomed.inferers.workers import Workers
from dinomed.networks.backbones import LayerTokens, TimmBackbone, ViTBackbone
from dinomed.networks.classifier import FEATURES, join_features
from dinomed.networks.packed_vit import PackedViT, can_pack
from dinomed.transforms.geometry import plan_network_grid
from dinomed.transforms.image_reading import IMAGE_SUFFIXES, read_image
from dinomed.transforms.intensity import window_hu
from dinomed.transforms.slice_boxes import SliceBox, square_box
from dinomed.transforms.volume_reading import read_volume

POOLS = (*FEATURES, "mean", "meanmax")
LOW_HU, HIGH_HU = -1000.0, 1000.0
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the windowed slice too, in [0, 1]
# Backbones that were trained on CT, with the mean and the standard deviation in HU.
# Source: MedDINOv3, https://github.com/ricklisz/MedDINOv3.
CT_HU = {"meddinov3_vitb16": (65.1084213256836, 178.01663208007812)}
# Windows in which bleeding in a head CT is read, one a channel: brain, subdural, and the whole range with the skull.
HEAD_WINDOWS_HU = ((0.0, 80.0), (-20.0, 180.0), (LOW_HU, HIGH_HU))

# How slices become squares, as `FeatureExtractor.describe` says it.
KEPT_IN_MM, AS_STORED = "kept in mm, the square is filled up with air", "as stored"

_PART = 4  # fewest slices that are worth a thread of their own

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureSettings:
    """What decides an embedding beside the backbone and the scan.

    Attributes:
        pool: What a slice's embedding is: "cls" the class token, "patch" the mean of the patch tokens, "both" the two
            joined, "all" these and the maximum of the patch tokens; a scan's is the mean of its slices. "mean" and
            "meanmax" take the class token, and the mean, or the mean and the maximum joined, over the slices.
        resize: Side in pixels of the square that every slice or picture becomes: a CT's slice keeps its proportions in
            mm, with air beside it, and a picture is stretched; None leaves sizes and pixels as they are.
        stride: Every how many slices one is taken.
        max_slices: Most slices that are taken, spread over the scan; None for no limit.
        windows_hu: Lower and upper end in HU of three windows of a CT, one a channel, each scaled to [0, 1]; None
            shows [-1000, 1000] in every channel.

    Raises:
        InputError: If a value makes no sense.
    """

    pool: str = "cls"
    resize: int | None = 224
    stride: int = 1
    max_slices: int | None = None
    windows_hu: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise InputError(f"pool {self.pool!r} is unknown; choose from {', '.join(POOLS)}")
        numbers = {"resize": self.resize, "stride": self.stride, "max_slices": self.max_slices}
        for name, number in numbers.items():
            if type(number) is not int and (number is not None or name == "stride"):
                raise InputError(f"{name} must be a whole number, not {number!r}")
        for name, value, least in (("resize", self.resize, 16), ("max-slices", self.max_slices, 1)):
            if value is not None and value < least:
                raise InputError(f"{name} must be {least} or more, not {value}")
        if self.stride < 1:
            raise InputError(f"stride must be 1 or more, not {self.stride}")
        if self.windows_hu is not None:
            try:
                windows = tuple(tuple(float(end) for end in window) for window in self.windows_hu)
            except (TypeError, ValueError):
                windows = ()
            right = [len(window) == 2 and -np.inf < window[0] < window[1] < np.inf for window in windows]
            if right != [True] * 3:
                raise InputError(
                    f"windows_hu must be three windows in HU, each with its lower and upper end, not {self.windows_hu}"
                )
            object.__setattr__(self, "windows_hu", windows)


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of one scan or picture.

    Attributes:
        slices: One row a slice, from the feet up, (N, C) float32; a picture has one row.
        indices: Where each slice lies along `axis` in the file's own voxels, (N,) int64.
        volume: Embedding of the whole, (C,) or, with "meanmax", (2 * C,) float32.
        axis: The file's voxel axis that the slices follow; -1 for a picture.
    """

    slices: Array
    indices: npt.NDArray[np.int64]
    volume: Array
    axis: int


class FeatureExtractor:
    """A frozen backbone with what it needs around it.

    Args:
        backbone: Class and patch tokens come from its last layer.
        settings: Pooling, size and choice of slices.
        device: Where the backbone runs; it is moved there.
        precision: "auto", "float32" or "bfloat16"; auto takes bfloat16 where the device multiplies it itself.
        batch_size: Slices at a time.
    """

    def __init__(
        self,
        backbone: TimmBackbone,
        settings: FeatureSettings | None = None,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        batch_size: int = 16,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"the batch size must be 1 or more, not {batch_size}")
        self.settings = settings or FeatureSettings()
        if backbone.name in CT_HU and self.settings.windows_hu is not None:
            raise InputError(
                f"{backbone.name} was trained on CT in HU, so it takes no windows; leave windows_hu at null"
            )
        self.device = torch.device(device)
        self.dtype = resolve_precision(precision, self.device)
        self.batch_size = batch_size
        self.backbone = backbone.to(self.device).eval()
        self.backbone_sha256 = state_sha256(backbone)
        packs = self.device.type == "cpu" and self.dtype == torch.bfloat16 and can_pack(backbone)
        self._packed = PackedViT(backbone) if packs and isinstance(backbone, ViTBackbone) else None

    def describe(self) -> dict[str, Any]:
        """Everything that decides the embeddings beside the scan, for reports and cache keys."""
        return {
            "backbone": self.backbone.name,
            "backbone_sha256": self.backbone_sha256,
            "precision": str(self.dtype).removeprefix("torch."),
            "normalisation": [_plain(part) for part in CT_HU.get(self.backbone.name, (IMAGE_MEAN, IMAGE_STD))],
            **asdict(self.settings),
            "proportions": AS_STORED if self.settings.resize is None else KEPT_IN_MM,
            "windows_hu": [list(window) for window in self.settings.windows_hu or [(LOW_HU, HIGH_HU)] * 3],
        }

    @property
    def slice_features(self) -> str:
        """What a slice's embedding is made of, one of `FEATURES`."""
        return self.settings.pool if self.settings.pool in FEATURES else "cls"

    def extract(self, path: str | os.PathLike[str]) -> Features:
        """Embed a scan, or a picture where the name is one's.

        Raises:
            InputError: If the file cannot be read.
        """
        if not str(path).lower().endswith(IMAGE_SUFFIXES):
            try:
                volume = read_volume(path)
            except VolumeError as error:
                raise VolumeError(without_frames(str(error))) from error
            return self.extract_volume(volume.array, volume.affine)
        picture = (torch.from_numpy(read_image(path)) - _channels(IMAGE_MEAN)) / _channels(IMAGE_STD)
        row = self.embed(picture[None])
        return Features(row, np.zeros(1, np.int64), pool_slices(row, self.settings.pool), -1)

    def extract_volume(self, array_hu: Array, affine: npt.NDArray[np.float64]) -> Features:
        """Embed a CT.

        Args:
            array_hu: (X, Y, Z) in HU.
            affine: (4, 4) voxel to RAS+ millimetres.

        Raises:
            VolumeError: If values are not finite, or the affine cannot be inverted.
        """
        x, y, z = array_hu.shape
        grid = plan_network_grid((x, y, z), affine, None)
        view = grid.canonical_view(array_hu)
        count = view.shape[2]
        chosen = choose_slices(count, self.settings.stride, self.settings.max_slices)
        parts = [chosen[first : first + self.batch_size] for first in range(0, len(chosen), self.batch_size)]
        sizes_mm = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
        pixel_mm = float(sizes_mm[grid.axes[1]]), float(sizes_mm[grid.axes[0]])
        rows = np.concatenate([self.embed(self.seen_slices(view[:, :, part], pixel_mm)) for part in parts])
        native = [count - 1 - index if grid.flips[2] else index for index in chosen]
        return Features(rows, np.array(native, np.int64), pool_slices(rows, self.settings.pool), grid.axes[2])

    def slice_batch(self, slabs_hu: Array) -> Tensor:
        """Turn slices (X, Y, n) in HU, in canonical order, into what the backbone sees, (n, 3, Y, X).

        Raises:
            VolumeError: If a value is not finite.
        """
        slabs = torch.from_numpy(np.ascontiguousarray(slabs_hu))
        if not bool(torch.isfinite(slabs).all()):
            raise VolumeError("the scan holds values that are no numbers or infinite; repair or export it again")
        upright = slices_along(slabs, 2)[:, None]
        if self.backbone.name in CT_HU:
            mean, std = CT_HU[self.backbone.name]
            return ((upright.clamp(LOW_HU, HIGH_HU) - mean) / std).expand(-1, 3, -1, -1)
        if self.settings.windows_hu is None:
            shown = window_hu(upright, LOW_HU, HIGH_HU)
        else:
            shown = torch.cat([window_hu(upright, low, high) for low, high in self.settings.windows_hu], dim=1)
        return (shown - _channels(IMAGE_MEAN)) / _channels(IMAGE_STD)

    @property
    def air(self) -> Tensor:
        """A pixel of air as the backbone sees it, (1, 3, 1, 1)."""
        return self.slice_batch(np.full((1, 1, 1), LOW_HU, np.float32))

    def seen_slices(self, slabs_hu: Array, pixel_mm: tuple[float, float]) -> Tensor:
        """Turn slices (X, Y, n) in HU, in canonical order, into what the backbone sees, resized, on its device.

        Args:
            slabs_hu: The slices.
            pixel_mm: Height and width of their pixels.

        Returns:
            (n, 3, side, side), where `slice_box` says, and air around; without resizing (n, 3, Y, X).

        Raises:
            VolumeError: If a value is not finite.
        """
        batch = self.slice_batch(slabs_hu).to(self.device)
        box = self.slice_box((batch.shape[-2], batch.shape[-1]), pixel_mm)
        batch = _stretched(batch, box.size)
        side = self.settings.resize
        if side is None or box.size == (side, side):
            return batch
        square = self.air.to(batch).repeat(len(batch), 1, side, side)
        square[:, :, box.top : box.top + box.height, box.left : box.left + box.width] = batch
        return square

    def slice_box(self, shape: tuple[int, int], pixel_mm: tuple[float, float]) -> SliceBox:
        """Say where a slice lies in what the backbone sees of it.

        Args:
            shape: Its rows and columns.
            pixel_mm: Height and width of its pixels.
        """
        side = self.settings.resize
        return SliceBox(0, 0, *shape) if side is None else square_box(shape, pixel_mm, side)

    def resized(self, batch: Tensor) -> Tensor:
        """Stretch normalised pictures (n, 3, H, W) as the settings say, on the backbone's device."""
        side = self.settings.resize
        batch = batch.to(self.device)
        return batch if side is None else _stretched(batch, (side, side))

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> Array:
        """Embed normalised pictures, or slices of `seen_slices`, (n, 3, H, W): (n, C), as the settings' pool says."""
        batch = self.resized(batch)
        # On a CPU several parts side by side are faster than all threads on each product in turn.
        threads = torch.get_num_threads()
        workers = max(1, min(threads, len(batch) // _PART)) if self.device.type == "cpu" else 1
        autocast = torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self._packed is None and self.dtype != torch.float32
        )
        with autocast, Workers(workers, threads, autocast) as pool:
            parts = list(pool.map(self._pooled, batch.chunk(workers)))
        embedded: Array = torch.cat(parts).cpu().numpy()
        return embedded

    @torch.inference_mode()
    def _pooled(self, batch: Tensor) -> Tensor:
        tokens = (self._packed or self.backbone).forward_last(batch)
        tokens = LayerTokens(tokens.patch_map.float(), tokens.class_token.float(), tokens.storage_tokens)
        return join_features(tokens, self.slice_features)


def windows_for(backbone: str) -> tuple[tuple[float, float], ...] | None:
    """Windows for the head CT of a backbone by its name: three in HU; None for one that was trained on CT in HU."""
    return None if backbone in CT_HU else HEAD_WINDOWS_HU


def choose_slices(count: int, stride: int = 1, max_slices: int | None = None) -> list[int]:
    """Choose slices of a scan: every `stride`-th, thinned evenly from end to end to at most `max_slices`.

    A single slice is the middle one.
    """
    chosen = list(range(0, count, stride))
    if max_slices is None or len(chosen) <= max_slices:
        return chosen
    if max_slices == 1:
        return [chosen[len(chosen) // 2]]
    places = np.linspace(0, len(chosen) - 1, max_slices).round().astype(int)
    return [chosen[place] for place in places]


def pool_slices(slices: Array, pool: str) -> Array:
    """Embedding of a scan from those of its slices, (N, C) to (C,) or (2 * C,), as `FeatureSettings.pool` says."""
    mean: Array = slices.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.concatenate([mean, slices.max(axis=0)]) if pool == "meanmax" else mean


def state_sha256(network: nn.Module) -> str:
    """Checksum of a network's parameters and buffers: names, types, shapes and values; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stretched(batch: Tensor, size: tuple[int, int]) -> Tensor:
    if batch.shape[-2:] == size:
        return batch
    return F.interpolate(batch, size=size, mode="bilinear", antialias=True, align_corners=False)


def _plain(value: float | Sequence[float]) -> float | list[float]:
    return value if isinstance(value, float) else list(value)


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)
