"""Maps over slices of a scan: what a head's answer for a slice hangs on, and how alike its patches are to one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dinomed.bundle.head_checkpoint import HeadAbout
from dinomed.data.features import FeatureExtractor
from dinomed.networks.attention_maps import attention_rollout, occlusion, patch_similarity, token_gradients
from dinomed.networks.backbones import LayerTokens
from dinomed.networks.bags import BagHead
from dinomed.networks.classifier import join_features
from dinomed.transforms.heat_maps import HeatMap
from dinomed.transforms.similarity_map import SimilarityMap, check_reference, choose_reference
from dinomed.transforms.slice_boxes import SliceBox

CELL_PX = 16
"""Side of what one value of a map stands for, in pixels of what the backbone sees."""
WINDOW_PX = 32
"""Side of the window that occlusion hides."""


class ScanMaps:
    """Makes maps of what a head says of single slices.

    Args:
        network: The head, filled.
        head: What its file says.
        extractor: That made the embeddings.
    """

    def __init__(self, network: BagHead, head: HeadAbout, extractor: FeatureExtractor) -> None:
        self.network = network
        self.head = head
        self.extractor = extractor

    def heat_map(
        self, kind: str, label: str, images: Tensor, box: SliceBox, slice_indices: npt.NDArray[np.int64]
    ) -> HeatMap:
        """Make a heat map.

        Args:
            kind: "rollout", "gradient" or "occlusion"; the first two need a transformer.
            label: Whose score the map explains; rollout belongs to no label.
            images: (n, 3, H, W), slices as `FeatureExtractor.seen_slices` gives them.
            box: Where in them the slices lie.
            slice_indices: The slices' places along the slice axis in the file's own voxels, (n,).
        """
        backbone = self.extractor.backbone
        size = (images.shape[-2], images.shape[-1])
        shared: dict[str, Any] = {"slice_indices": slice_indices, "image_size": size, "cell_px": CELL_PX, "box": box}
        if kind == "rollout":
            values = attention_rollout(backbone, images)
            return HeatMap(kind, None, values=_array(values), patch_px=CELL_PX, **shared)
        if kind == "gradient":
            values = token_gradients(backbone, lambda token, patches: self._logit(token, patches, label), images)
            return HeatMap(kind, label, values=_array(values), patch_px=CELL_PX, unit="logit", **shared)
        air = self.extractor.air.flatten().tolist()
        device = next(self.network.parameters()).device

        def score(hidden: Tensor) -> Tensor:
            return self._of_vectors(torch.from_numpy(self.extractor.embed(hidden)).to(device), label).cpu()

        values = occlusion(score, images.cpu(), WINDOW_PX, CELL_PX, fill=air, batch_size=4 * self.extractor.batch_size)
        return HeatMap(kind, label, values=_array(values), patch_px=WINDOW_PX, unit="logit", **shared)

    @torch.no_grad()
    def similarity(self, reference: str, image: Tensor, box: SliceBox, slice_index: int) -> SimilarityMap:
        """Compare all patches of a slice with one of them.

        Args:
            reference: That one, "center" or "ROW,COLUMN".
            image: (1, 3, H, W), the slice as `FeatureExtractor.seen_slices` gives it.
            box: Where in it the slice lies.
            slice_index: The slice's place along the slice axis in the file's own voxels.

        Raises:
            InputError: If the patch lies outside the slice.
        """
        patch_map = self.extractor.backbone.forward_last(image).patch_map
        row, column = choose_reference(reference, patch_map.shape[-2], patch_map.shape[-1])
        cell = math.ceil(image.shape[-1] / patch_map.shape[-1])
        check_reference(row, column, box, cell)
        values = patch_similarity(patch_map, row, column)[0]
        return SimilarityMap(row, column, slice_index, _array(values), (image.shape[-2], image.shape[-1]), cell, box)

    def _logit(self, class_token: Tensor, patch_map: Tensor, label: str) -> Tensor:
        """Logit of a label for slices by themselves, from the tokens of the last layer."""
        tokens = LayerTokens(patch_map.float(), class_token.float(), class_token[:, None, :0])
        vectors = join_features(tokens, self.extractor.slice_features)
        return self._of_vectors(vectors, label)

    def _of_vectors(self, vectors: Tensor, label: str) -> Tensor:
        return self.network.instance_logits(vectors[:, None])[:, 0, self.head.labels.index(label)]


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = values.detach().float().cpu().numpy()
    return array
