"""Scores of volumes, case by case: Dice, HD95 and surface Dice, with their means over the cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from dinomed.metrics.overlap import confusion_matrix, dice_scores
from dinomed.metrics.surface import class_tolerances, hausdorff_distances, surface_dice

KINDS = ("dice", "hd95_mm", "nsd")


def volume_scores(
    predicted: Tensor,
    reference: Tensor,
    num_classes: int,
    spacing_mm: Sequence[float],
    tolerance_mm: float | Sequence[float],
    ignore_index: int | None = None,
    missed_mm: float = math.inf,
    include_background: bool = False,
) -> dict[str, Tensor]:
    """Dice, HD95 and surface Dice of each class of one case.

    A class that neither map has is NaN in all three. One that only one map has, whichever, has Dice 0, surface Dice 0
    and the distance `missed_mm`.

    Args:
        predicted: label map (X, Y) or (X, Y, Z).
        reference: label map of the same shape.
        num_classes: number of labels, background included.
        spacing_mm: of the voxels, one for each axis.
        tolerance_mm: of the surface Dice; one number, or one for each class, background included.
        ignore_index: voxels with this reference label count nowhere; None for no such label.
        missed_mm: HD95 of a class that only one map has, such as the longest distance in the volume.
        include_background: whether class 0 is scored too; it is NaN otherwise.

    Returns:
        "dice", "hd95_mm" and "nsd", each (num_classes,) float64.

    Raises:
        ValueError: if shapes, labels, spacing or tolerances do not fit.
    """
    maps = (predicted.as_subclass(Tensor).cpu(), reference.as_subclass(Tensor).cpu())
    options: dict[str, Any] = {"ignore_index": ignore_index, "include_background": include_background}
    hd95_mm = hausdorff_distances(*maps, num_classes, spacing_mm, **options)
    nsd = surface_dice(*maps, num_classes, spacing_mm, tolerance_mm, **options)
    dice = dice_scores(confusion_matrix(*maps, num_classes, ignore_index))
    for index in {ignore_index, None if include_background else 0} & set(range(num_classes)):
        dice[index] = math.nan
    return {"dice": dice, "hd95_mm": torch.where(torch.isinf(hd95_mm), missed_mm, hd95_mm), "nsd": nsd}


def spacing_of(labels: Any) -> list[float]:
    """Voxel spacing in mm of a MONAI MetaTensor (1, X, Y, Z), from its affine.

    Raises:
        ValueError: if it has no affine.
    """
    affine = getattr(labels, "affine", None)
    if affine is None:
        raise ValueError("the label map has no affine; give spacing_mm, or label maps as MetaTensor")
    spacing: list[float] = torch.as_tensor(affine, dtype=torch.float64)[:3, :3].norm(dim=0).tolist()
    return spacing


class VolumeScores(Metric):
    """Dice, HD95 and surface Dice of volumes: means over the cases, by class and over the foreground; an Ignite metric.

    A case without a class has no part in this class's means, and a class that no case has none in those over classes.
    Sums and numbers of cases are all that is kept; in a distributed run those of all processes are pooled.

    Args:
        num_classes: number of labels, background included.
        tolerance_mm: of the surface Dice; one number, or one for each class, background included.
        spacing_mm: of all cases; None takes each reference's own, which then must be a MetaTensor.
        class_names: one for each class; its number where None.
        output_transform: from the engine's output to a pair (predicted, reference) of label maps (1, X, Y, Z), or of
            lists of them.
        ignore_index: voxels with this reference label count nowhere; None for no such label.
        missed_mm: HD95 of a class that only one map has; while it is infinite, one such case makes the mean infinite.

    Raises:
        ValueError: if there is not one tolerance and one name for each class.
    """

    def __init__(
        self,
        num_classes: int,
        tolerance_mm: float | Sequence[float],
        spacing_mm: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        output_transform: Callable[..., Any] = lambda output: output,
        ignore_index: int | None = None,
        missed_mm: float = math.inf,
    ) -> None:
        self.num_classes = num_classes
        self.tolerance_mm = class_tolerances(tolerance_mm, num_classes)
        self.spacing_mm = spacing_mm
        self.class_names = [str(k) for k in range(num_classes)] if class_names is None else list(class_names)
        if len(set(self.class_names)) != num_classes:
            raise ValueError(f"class_names must hold {num_classes} different names, not {self.class_names}")
        self.ignore_index = ignore_index
        self.missed_mm = missed_mm
        super().__init__(output_transform=output_transform, device=torch.device("cpu"))

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def reset(self) -> None:
        """Forget everything seen."""
        self._sums = torch.zeros(len(KINDS), self.num_classes, dtype=torch.float64)
        self._cases = torch.zeros(len(KINDS), self.num_classes, dtype=torch.int64)

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def update(self, output: tuple[Any, Any]) -> None:
        """Add cases: label maps (1, X, Y, Z), a batch (B, 1, X, Y, Z) of them, or lists of them."""
        predicted, reference = output
        if isinstance(predicted, Tensor) and predicted.ndim == 4:
            predicted, reference = [predicted], [reference]
        for one, other in zip(predicted, reference, strict=True):
            scores = volume_scores(
                torch.as_tensor(one)[0],
                torch.as_tensor(other)[0],
                self.num_classes,
                spacing_of(other) if self.spacing_mm is None else self.spacing_mm,
                self.tolerance_mm,
                self.ignore_index,
                self.missed_mm,
            )
            table = torch.stack([scores[kind] for kind in KINDS])
            self._sums += table.nan_to_num(nan=0.0, posinf=math.inf)
            self._cases += ~table.isnan()

    @sync_all_reduce("_sums", "_cases")  # type: ignore[untyped-decorator]
    def compute(self) -> dict[str, float]:
        """Return "mean_KIND" over the foreground classes and "KIND/NAME", for dice, hd95_mm and nsd."""
        means = self._sums / self._cases
        scores = {f"mean_{kind}": float(row[1:].nanmean()) for kind, row in zip(KINDS, means, strict=True)}
        for kind, row in zip(KINDS, means.tolist(), strict=True):
            scores |= {f"{kind}/{name}": score for name, score in zip(self.class_names, row, strict=True)}
        return {name: score for name, score in scores.items() if not math.isnan(score)}
