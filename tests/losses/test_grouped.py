from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from torch.nn import functional

from dinomed.losses.grouped import GroupedLoss, group_logits

GROUPS = [[0, 3], [1], [2, 4]]


def logits(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def target(seed: int = 0) -> torch.Tensor:
    return torch.randint(5, (2, 1, 4, 3), generator=torch.Generator().manual_seed(seed))


def test_softmax_of_grouped_logits_is_the_sum_of_the_softmax() -> None:
    values = logits()
    probs = values.softmax(1)
    sums = torch.stack([probs[:, 0] + probs[:, 3], probs[:, 1], probs[:, 2] + probs[:, 4]], 1)
    torch.testing.assert_close(group_logits(values, GROUPS).softmax(1), sums)


def test_gradient_is_right() -> None:
    values = logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: group_logits(x, GROUPS), (values,))


def test_large_logits_stay_finite() -> None:
    assert bool(group_logits(torch.full((1, 5, 2), 1e4), GROUPS).isfinite().all())


def test_loss_is_that_of_summed_probabilities_and_grouped_labels() -> None:
    values, labels = logits(), target()
    group_of = torch.tensor([0, 1, 2, 0, 2])
    probs = torch.stack([values.softmax(1)[:, group].sum(1) for group in GROUPS], 1)
    expected = functional.nll_loss(probs.log(), group_of[labels[:, 0]])
    loss = GroupedLoss(lambda x, y: functional.cross_entropy(x, y[:, 0]), GROUPS)
    torch.testing.assert_close(loss(values, labels), expected)
    torch.testing.assert_close(loss(values, labels.to(torch.uint8)), expected)


def test_confusion_within_a_group_costs_nothing() -> None:
    loss = GroupedLoss(lambda x, y: functional.cross_entropy(x, y[:, 0]), GROUPS)
    swapped = target()
    swapped = torch.where(swapped == 0, 3, torch.where(swapped == 3, 0, swapped))
    assert not torch.equal(swapped, target())
    assert torch.equal(loss(logits(), target()), loss(logits(), swapped))


def test_without_groups_it_is_the_loss_itself() -> None:
    inner = DiceCELoss(softmax=True, to_onehot_y=True)
    assert torch.equal(GroupedLoss(inner, None)(logits(), target()), inner(logits(), target()))


def test_groups_add_nothing_to_the_state_dict() -> None:
    assert not GroupedLoss(torch.nn.CrossEntropyLoss(), GROUPS).state_dict()


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[0, 1, 2, 3, 4, 5]], [[0, 0, 1], [2, 3, 4]]])
def test_logits_need_groups_of_exactly_their_classes(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="every class 0 to 4 belongs to one group"):
        group_logits(logits(), groups)


@pytest.mark.parametrize("groups", [[[0], [2]], [[0, 1], [1]], [[0], []], []])
def test_loss_refuses_groups_with_gaps_or_repetitions(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="class_groups must hold each class"):
        GroupedLoss(torch.nn.CrossEntropyLoss(), groups)


def test_ignored_label_is_handed_on_as_it_is() -> None:
    seen = []
    labels = target()
    labels[0, 0, 0] = 255
    GroupedLoss(lambda x, y: seen.append(y) or x.sum(), GROUPS, ignore_index=255)(logits(), labels)
    group_of = torch.tensor([0, 1, 2, 0, 2])
    assert torch.equal(seen[0], torch.where(labels == 255, 255, group_of[labels % 255]))


def test_labels_out_of_range_and_ignored_classes_are_refused() -> None:
    loss = GroupedLoss(torch.nn.CrossEntropyLoss(), GROUPS)
    for label in (-1, 5, 255):
        with pytest.raises(ValueError, match=r"not in 0\.\.4"):
            loss(logits(), target().fill_(label))
    with pytest.raises(ValueError, match="ignore_index 4 is a class"):
        GroupedLoss(torch.nn.CrossEntropyLoss(), GROUPS, ignore_index=4)
