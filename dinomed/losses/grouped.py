"""A loss on groups of classes, for networks that know more classes than the task asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def group_logits(logits: Tensor, class_groups: Sequence[Sequence[int]]) -> Tensor:
    """Logits of groups of classes: softmax over them gives the summed probabilities of each group.

    Args:
        logits: (B, C, ...).
        class_groups: G groups of class numbers.

    Returns:
        (B, G, ...).

    Raises:
        ValueError: if the groups are no partition of the C classes.
    """
    members = sorted(number for group in class_groups for number in group)
    if members != list(range(logits.shape[1])):
        raise ValueError(f"class_groups hold {members}; every class 0 to {logits.shape[1] - 1} belongs to one group")
    return torch.stack([logits[:, list(group)].logsumexp(dim=1) for group in class_groups], dim=1)


class GroupedLoss(nn.Module):
    """Apply a loss to groups of classes; without groups it is the loss itself.

    Args:
        loss: called with logits (B, G, ...) and target (B, 1, ...).
        class_groups: G groups of class numbers, or None.
        ignore_index: label that is handed on as it is, for a loss that leaves it out; it must be no class of a group.

    Raises:
        ValueError: if the groups do not hold each of the classes 0, 1, ... once.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        class_groups: Sequence[Sequence[int]] | None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.class_groups = class_groups
        self.ignore_index = ignore_index
        if class_groups is not None:
            members = sorted(number for group in class_groups for number in group)
            if not members or members != list(range(len(members))) or not all(class_groups):
                raise ValueError(
                    f"class_groups must hold each class 0, 1, ... once, without empty groups, not {class_groups}"
                )
            if ignore_index is not None and 0 <= ignore_index < len(members):
                raise ValueError(f"ignore_index {ignore_index} is a class of class_groups; take a number beyond them")
            table = torch.zeros(len(members), dtype=torch.long)
            for index, group in enumerate(class_groups):
                table[list(group)] = index
            self.register_buffer("group_of", table, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, C, ...) against labels (B, 1, ...) of the C classes.

        Raises:
            ValueError: if a label is out of range.
        """
        if self.class_groups is None:
            return self.loss(logits, target)
        table: Tensor = self.get_buffer("group_of").to(target.device)
        labels = target.long()
        ignored = None if self.ignore_index is None else labels == self.ignore_index
        if ignored is not None:
            labels = labels.masked_fill(ignored, 0)
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < len(table)):
            raise ValueError(f"labels run from {int(labels.min())} to {int(labels.max())}, not in 0..{len(table) - 1}")
        groups = table[labels]
        if ignored is not None and self.ignore_index is not None:
            groups = groups.masked_fill(ignored, self.ignore_index)
        return self.loss(group_logits(logits, self.class_groups), groups)
