"""Patch tokens of a volume's slices by a frozen backbone, each slice once and only when it is asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dinomed.inferers.planes import in_plane_axes, slice_inputs
from dinomed.inferers.precision import resolve_precision

PIXEL_MM = 0.5
"""Slices are enlarged until a pixel has this size: a patch of 16 pixels then covers 8 mm."""
LARGEST_SIDE = 640
COMPONENTS = 24
_BASIS_SLICES = 8
_BLOCK = 4


class SliceTokens:
    """Tokens of the slices along one axis, reduced to their principal components.

    The components come from slices spread over the volume, so that they do not depend on what is asked for.

    Args:
        volume: (X, Y, Z) floating point in RAS order, its intensities as the backbone's training had them.
        axis: That the slices follow: 0 sagittal, 1 coronal, 2 axial.
        spacing_mm: Voxel size along X, Y and Z.
        backbone: Has `forward_last`, see `dinomed.networks.backbones.TimmBackbone`; in eval mode, on any device.
        precision: "float32", "bfloat16" or "auto".
    """

    def __init__(
        self,
        volume: Tensor,
        axis: int,
        spacing_mm: tuple[float, float, float],
        backbone: nn.Module,
        precision: str = "auto",
    ) -> None:
        self.volume = volume
        self.axis = axis
        q, p = in_plane_axes(axis)
        longest = max(volume.shape[q] * spacing_mm[q], volume.shape[p] * spacing_mm[p])
        pixel_mm = max(PIXEL_MM, longest / LARGEST_SIDE)
        # Whole patches, so that the backbone pads nothing and its map covers the slice exactly.
        patch = int(getattr(backbone, "multiple", 16))
        self._size = [
            max(1, round(volume.shape[each] * spacing_mm[each] / pixel_mm / patch)) * patch for each in (q, p)
        ]
        self._backbone = backbone
        parameter = next(backbone.parameters())
        self._device = parameter.device
        self._dtype = resolve_precision(precision, self._device)
        self._kept: dict[int, Tensor] = {}
        self._mean: Tensor | None = None
        self._basis: Tensor | None = None

    def at(self, index: int, columns: Tensor, rows: Tensor) -> Tensor:
        """Look the tokens of a slice up between their places.

        Args:
            index: Of the slice.
            columns: (A,) places along the first in-plane axis of the volume, in voxels.
            rows: (B,) places along the second.

        Returns:
            (COMPONENTS or fewer, A, B) of unit length.
        """
        if index not in self._kept:
            first = index - index % _BLOCK
            block = [i for i in range(first, min(first + _BLOCK, self.volume.shape[self.axis])) if i not in self._kept]
            self._kept.update(zip(block, self._reduced(block), strict=True))
        tokens = self._kept[index].float()[None]
        q, p = in_plane_axes(self.axis)
        # The tokens' picture is upright: its rows run against the second axis.
        across = (columns + 0.5) / self.volume.shape[p] * 2 - 1
        down = 1 - (rows + 0.5) / self.volume.shape[q] * 2
        grid = torch.stack(torch.meshgrid(across, down, indexing="ij"), dim=-1)[None].to(tokens)
        found = F.grid_sample(tokens, grid, align_corners=False, padding_mode="border")[0]
        return F.normalize(found, dim=0)

    def _reduced(self, indices: list[int]) -> list[Tensor]:
        if self._basis is None:
            count = self.volume.shape[self.axis]
            spread = torch.linspace(0, count - 1, min(count, _BASIS_SLICES) + 2).round().long().unique()[1:-1].tolist()
            sample = self._units(spread or [0]).flatten(2).transpose(1, 2).flatten(0, 1)
            self._mean = sample.mean(0)
            spread_of = (sample - self._mean).double()
            values, vectors = torch.linalg.eigh(spread_of.T @ spread_of)
            keep = min(COMPONENTS, int((values > 1e-9 * values.max().clamp(min=1e-30)).sum()) or 1)
            self._basis = vectors[:, -keep:].flip(1).float()
        assert self._mean is not None
        units = self._units(indices) - self._mean[:, None, None]
        return list(torch.einsum("nchw,cd->ndhw", units, self._basis).half().to(self.volume.device))

    def _units(self, indices: list[int]) -> Tensor:
        """Tokens of unit length (n, channels, h, w) float32."""
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, self._dtype != torch.float32):
            pictures = slice_inputs(self.volume, self.axis, indices).to(self._device, torch.float32)
            pictures = F.interpolate(pictures, size=self._size, mode="bilinear", antialias=True)
            tokens = torch.cat([self._backbone.forward_last(each[None]).patch_map for each in pictures])  # type: ignore[operator]
        return F.normalize(tokens.float(), dim=1)
