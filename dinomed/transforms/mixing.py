"""MixUp and CutMix of whole batches, for trainers: their place is `prepare_batch`, where a batch goes to its device.

Validation takes `plain_batch`, which mixes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2


def plain_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **options: Any
) -> tuple[Tensor, Any]:
    """Give pictures and labels of a batch on the device, as MONAI's engines ask for them.

    Args:
        batch: "image" (B, C, H, W) and "label", a tensor or a dictionary of tensors by task.
        device: Where to.
        non_blocking: As for `Tensor.to`.
        options: As for `Tensor.to`.

    Returns:
        Plain tensors: the pictures, and the labels in the form that they had.
    """

    def moved(tensor: Tensor) -> Tensor:
        return torch.as_tensor(tensor).as_subclass(Tensor).to(device=device, non_blocking=non_blocking, **options)

    label = batch["label"]
    labels = {task: moved(each) for task, each in label.items()} if isinstance(label, Mapping) else moved(label)
    return moved(batch["image"]), labels


class MixedBatch:
    """Prepare a batch as `plain_batch` does and mix its pictures, and their labels in the same proportion.

    Each picture is mixed with the one before it in the batch, which must be shuffled. With both alphas one of the two
    ways is drawn for each batch. Labels become probabilities (B, classes), of several tasks those of each; a batch that
    is not mixed keeps its labels as they were. Draws are PyTorch's global ones.

    Args:
        label_names: Names of the classes, or those of each task, which say how many there are.
        mixup_alpha: Of the Beta distribution of the proportion in MixUp; 0 for no MixUp.
        cutmix_alpha: The same for the area in CutMix.
        probability: Of a batch being mixed.

    Raises:
        ValueError: If an alpha is negative or the probability is none.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019; by
        torchvision.transforms.v2.
    """

    def __init__(
        self,
        label_names: Sequence[str] | Mapping[str, Sequence[str]],
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        probability: float = 1.0,
    ) -> None:
        for name, value, high in (
            ("mixup_alpha", mixup_alpha, float("inf")),
            ("cutmix_alpha", cutmix_alpha, float("inf")),
            ("the probability of mixing", probability, 1.0),
        ):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 <= value <= high and value < float("inf")):
                limit = "0 to 1" if high == 1.0 else "0 on"
                raise ValueError(f"{name} must be a number from {limit}, not {value!r}")
        self.num_classes = (
            {task: len(names) for task, names in label_names.items()}
            if isinstance(label_names, Mapping)
            else len(label_names)
        )
        ways: list[Any] = []
        if mixup_alpha > 0:
            ways.append(v2.MixUp(alpha=mixup_alpha))
        if cutmix_alpha > 0:
            ways.append(v2.CutMix(alpha=cutmix_alpha))
        self.ways = ways
        self.probability = probability

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Any]:
        """Give pictures and labels on the device, mixed.

        Raises:
            ValueError: If the labels are not those of the classes.
        """
        image, label = plain_batch(batch, device, non_blocking, **options)
        if not self.ways or len(image) < 2 or float(torch.rand(())) >= self.probability:
            return image, label
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        if not isinstance(self.num_classes, dict):
            return way(image, soft_labels(label, self.num_classes))
        # All tasks of a picture are mixed in one proportion, so they go through one call side by side.
        parts = [soft_labels(label[task], count) for task, count in self.num_classes.items()]
        image, mixed = way(image, torch.cat(parts, dim=1))
        split = mixed.split(list(self.num_classes.values()), dim=1)
        return image, dict(zip(self.num_classes, split, strict=True))


def soft_labels(label: Tensor, num_classes: int) -> Tensor:
    """Turn class numbers (B,) into probabilities (B, num_classes) float32; labels of that shape stay.

    Raises:
        ValueError: If the labels have another shape.
    """
    if label.ndim == 1 and not label.is_floating_point():
        return functional.one_hot(label.long(), num_classes).float()
    if label.ndim == 2 and label.shape[1] == num_classes:
        return label.float()
    raise ValueError(f"labels must be class numbers (B,) or (B, {num_classes}), not {tuple(label.shape)} {label.dtype}")
