"""CT series as bags of slice embeddings: each is embedded once, then everything is learnt from memory.

Nothing of the backbone is trained, so its answers are as good in the last epoch as in the first one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform
from torch import Tensor, distributed
from torch.utils.data import Dataset

from dinomed.data.feature_cache import FeatureCache
from dinomed.data.features import FeatureExtractor, Features
from dinomed.errors import InputError, OutputError

logger = logging.getLogger(__name__)

NAMES = ("case", "study", "patient", "image_path")
LISTED = 20
PADDED_INDEX = -1
LOG_EVERY_S = 30.0


class EmbedSeriesd(MapTransform):
    """Turn the path of a CT into the bag of its slices' embeddings.

    The item gets "slice_indices" (N,) int64, the slices' places along the file's own voxel axis "slice_axis", and the
    "image_path".

    Args:
        keys: Keys of paths; what is added speaks of the last one.
        extractor: Embeds slices.
        cache_dir: Folder of embeddings that are kept from run to run; None keeps none.

    Raises:
        OutputError: If the folder cannot be written to.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        extractor: FeatureExtractor,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(keys)
        self.extractor = extractor
        self.cache = None if cache_dir is None else FeatureCache(cache_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by a bag (N, C) float32, in the order of the slices from the feet up.

        Raises:
            InputError: If a file cannot be read.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            path = str(item[key])
            features = self.features(path)
            item[key] = torch.from_numpy(features.slices)
            item["slice_indices"] = torch.from_numpy(features.indices)
            item["slice_axis"] = features.axis
            item["image_path"] = path
        return item

    def features(self, path: str) -> Features:
        """Embed one CT, or find its embeddings.

        Raises:
            InputError: If the file cannot be read.
        """
        return self.extractor.extract(path) if self.cache is None else self.cache.features(self.extractor, path)


class EmbeddedSeries(Dataset[dict[str, Any]]):
    """Bags of series in memory, embedded at the start.

    Several processes that share a cache embed a part each.

    Args:
        items: Each with the path "image", and with "label", "case", "study" and "patient" as they are
            wanted.
        embed: Embeds them.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        items: With bags in the place of paths; "label" is a tensor (K,) float32.

    Raises:
        InputError: If there is no series, or some cannot be embedded; all of them are named.
    """

    def __init__(
        self, items: Sequence[Mapping[str, Any]], embed: EmbedSeriesd, rank: int = 0, world_size: int = 1
    ) -> None:
        if not items:
            raise InputError("there are no series to embed; check the table and the part that is asked for")
        if world_size > 1 and embed.cache is not None:
            _embed_all(items[rank::world_size], embed)
            distributed.barrier()
        self.items, broken = _embed_all(items, embed)
        if broken:
            more = f"; and {len(broken) - LISTED} more" if len(broken) > LISTED else ""
            raise InputError(
                f"{len(broken)} of {len(items)} series cannot be embedded: {'; '.join(broken[:LISTED])}{more}; repair "
                "them or take them out of the table"
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give an item as it is kept."""
        return self.items[index]

    def labels(self) -> Tensor:
        """Labels of all series, (S, K) float32."""
        return torch.stack([item["label"] for item in self.items])


def _embed_all(items: Sequence[Mapping[str, Any]], embed: EmbedSeriesd) -> tuple[list[dict[str, Any]], list[str]]:
    """Embed series; those that break are told with their case and the reason."""
    found, broken = [], []
    last = time.monotonic()
    for number, item in enumerate(items, start=1):
        try:
            embedded = embed({"image": item["image"]})
        except OutputError:  # the cache's fault, not the series'
            raise
        except InputError as error:
            broken.append(f"{item.get('case', item['image'])} ({error})")
            continue
        label = {"label": torch.as_tensor(item["label"], dtype=torch.float32)} if "label" in item else {}
        found.append({**item, **{str(key): value for key, value in embedded.items()}, **label})
        if time.monotonic() - last > LOG_EVERY_S:
            last = time.monotonic()
            logger.info("embedded %d of %d series", number, len(items))
    return found, broken


def collate_bags(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join bags of different lengths: the shorter ones are filled with zeros that "valid" does not count.

    Returns:
        "image" (B, N, C) float32, "valid" (B, N) bool, and of what the items have: "label" (B, K), "slice_indices"
        (B, N) filled with -1, "slice_axis" (B,), and "case", "study", "patient" and "image_path" as lists.
    """
    bags = [item["image"] for item in items]
    longest = max(len(bag) for bag in bags)
    image = bags[0].new_zeros(len(bags), longest, bags[0].shape[1])
    valid = torch.zeros(len(bags), longest, dtype=torch.bool)
    indices = torch.full((len(bags), longest), PADDED_INDEX, dtype=torch.int64)
    for row, (bag, item) in enumerate(zip(bags, items, strict=True)):
        image[row, : len(bag)] = bag
        valid[row, : len(bag)] = True
        if "slice_indices" in item:
            indices[row, : len(bag)] = item["slice_indices"]
    batch: dict[str, Any] = {"image": image, "valid": valid}
    if all("slice_indices" in item for item in items):
        batch["slice_indices"] = indices
        batch["slice_axis"] = torch.tensor([int(item["slice_axis"]) for item in items])
    if all("label" in item for item in items):
        batch["label"] = torch.stack([torch.as_tensor(item["label"], dtype=torch.float32) for item in items])
    for key in NAMES:
        if all(key in item for item in items):
            batch[key] = [str(item[key]) for item in items]
    return batch
