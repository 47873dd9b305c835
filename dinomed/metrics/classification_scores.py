"""Ignite metrics of classified cases over an epoch, common to all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor, distributed

from dinomed.errors import InputError
from dinomed.metrics.ranking import Floats, auroc, macro_mean, why_undefined


class MacroAUROC(Metric):
    """Mean over labels of the area under the ROC curve, over everything seen; an Ignite metric.

    A label without positive or without negative cases has no part in the mean. Where no label has both there is no
    score, and that is an error: a best network must not be chosen by another kind of score than the others. In a
    distributed run the cases of all processes are taken together.

    Labels are multi-hot, (K,) a case, or class numbers, () or (1,) a case with K > 1; then each class stands against
    the rest.

    Args:
        output_transform: From the engine's output to a pair (scores, labels) of batches (B, K) and (B, K) or (B,), or
            of lists of cases.
        from_logits: Whether scores are logits: with class numbers they become probabilities first, which ranks cases
            otherwise; with multi-hot labels it makes no difference.
        label_names: One for each label, for errors; numbers where None.

    Attributes:
        by_label: After `compute`, the area of each label; None where it is undefined.
    """

    def __init__(
        self,
        output_transform: Callable[..., Any] = lambda output: output,
        from_logits: bool = False,
        label_names: list[str] | None = None,
    ) -> None:
        self.from_logits = from_logits
        self.label_names = label_names
        self.by_label: list[float | None] = []
        super().__init__(output_transform=output_transform, device=torch.device("cpu"))

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def reset(self) -> None:
        """Forget everything seen."""
        self._cases: list[tuple[Floats, Floats]] = []

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def update(self, output: tuple[Any, Any]) -> None:
        """Add cases: a batch or a list of cases for each side.

        Raises:
            ValueError: If labels do not fit their scores.
        """
        for scores, label in zip(*output, strict=True):
            given, wanted = (torch.as_tensor(each).as_subclass(Tensor).detach().cpu() for each in (scores, label))
            given = given.double().reshape(-1)
            if wanted.numel() == 1 and given.numel() > 1:
                wanted = _one_hot(wanted, given.numel())
                given = given.softmax(0) if self.from_logits else given
            if wanted.numel() != given.numel():
                raise ValueError(
                    f"{given.numel()} scores need as many labels or one class number, not {wanted.numel()} labels"
                )
            self._cases.append((given.numpy(), wanted.double().reshape(-1).numpy()))

    def compute(self) -> float:
        """Return the mean.

        Raises:
            InputError: If no label has positive and negative cases, or a score is no number.
        """
        cases = [case for part in _gathered(self._cases) for case in part]
        if not cases:
            raise InputError("no case was scored, so there is no AUROC; give the validation part some cases")
        scores, labels = (np.stack(parts) for parts in zip(*cases, strict=True))
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
            raise InputError(
                f"the scores of validation case {row + 1} of {len(scores)} are {scores[row].tolist()}, so there is no "
                "AUROC; the training has diverged, start again with a lower learning rate"
            )
        self.by_label = [auroc(scores[:, k], labels[:, k]) for k in range(scores.shape[1])]
        mean = macro_mean(self.by_label)
        if mean is None:
            names = self.label_names or [f"label {k}" for k in range(scores.shape[1])]
            reasons = "; ".join(f"{name}: {why_undefined(labels[:, k])}" for k, name in enumerate(names))
            raise InputError(
                f"no label has positive and negative cases among the {len(cases)} of validation ({reasons}), so there "
                "is no AUROC; give the validation part cases of both kinds"
            )
        return mean


class Top1(Metric):
    """Share of the cases whose most probable class is the right one (accuracy), over everything seen; an Ignite metric.

    Of equal scores the first class counts. In a distributed run the counts of all processes are pooled.

    Args:
        output_transform: From the engine's output to a pair (scores, labels) of batches (B, K) and (B,), or of lists of
            cases; scores may be logits or probabilities.
    """

    def __init__(self, output_transform: Callable[..., Any] = lambda output: output) -> None:
        super().__init__(output_transform=output_transform, device=torch.device("cpu"))

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def reset(self) -> None:
        """Forget everything seen."""
        self._right = torch.tensor(0)
        self._seen = torch.tensor(0)
        self._unscored = torch.tensor(0)

    @reinit__is_reduced  # type: ignore[untyped-decorator]
    def update(self, output: tuple[Any, Any]) -> None:
        """Add cases: a batch or a list of cases for each side.

        Raises:
            ValueError: If a label is no number of a class.
        """
        for scores, label in zip(*output, strict=True):
            given, wanted = (torch.as_tensor(each).as_subclass(Tensor).detach().cpu() for each in (scores, label))
            truth = int(_one_hot(wanted, given.numel()).argmax())
            self._right = self._right + int(int(np.argmax(given.reshape(-1).float().numpy())) == truth)
            self._seen = self._seen + 1
            self._unscored = self._unscored + int(not bool(given.isfinite().all()))

    @sync_all_reduce("_right", "_seen", "_unscored")  # type: ignore[untyped-decorator]
    def compute(self) -> float:
        """Return the share.

        Raises:
            InputError: If no case was seen, or a score is no number.
        """
        if int(self._unscored):
            raise InputError(
                f"the scores of {int(self._unscored)} of {int(self._seen)} validation cases are no numbers; the "
                "training has diverged, start again with a lower learning rate"
            )
        if not int(self._seen):
            raise InputError("no case was scored, so there is no accuracy; give the validation part some cases")
        return int(self._right) / int(self._seen)


def _one_hot(label: Tensor, classes: int) -> Tensor:
    """Return a class number as (classes,)."""
    if label.numel() != 1 or not 0 <= float(label) < classes or float(label) != int(label):
        raise ValueError(f"a label must be the number of a class, 0 to {classes - 1}, not {label.tolist()}")
    return torch.nn.functional.one_hot(label.long().reshape(()), classes)


def _gathered(cases: list[Any]) -> list[list[Any]]:
    """Collect the cases of all processes, in order of their ranks; each must call this."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return [cases]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, cases)
    return parts
