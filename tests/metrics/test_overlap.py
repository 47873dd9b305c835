from __future__ import annotations

import math

import pytest
import torch
from monai.metrics import DiceMetric, get_confusion_matrix
from monai.networks.utils import one_hot

from dinomed.metrics.overlap import LabelDice, confusion_matrix, dice_scores, group_confusion


def label_map(seed: int, classes: int = 5, shape: tuple[int, ...] = (1, 6, 7, 8)) -> torch.Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_confusion_matrix_counts_every_pair() -> None:
    predicted, reference = label_map(0), label_map(1)
    matrix = confusion_matrix(predicted, reference, 5)
    expected = [[int(((reference == r) & (predicted == p)).sum()) for p in range(5)] for r in range(5)]
    assert matrix.tolist() == expected
    assert matrix.dtype == torch.int64


def test_confusion_matrix_agrees_with_monai() -> None:
    predicted, reference = label_map(0)[None], label_map(1)[None]
    counts = get_confusion_matrix(one_hot(predicted, 5), one_hot(reference, 5))[0]  # true and false positives ...
    matrix = confusion_matrix(predicted, reference, 5)
    assert matrix.diagonal().tolist() == counts[:, 0].tolist()
    assert (matrix.sum(0) - matrix.diagonal()).tolist() == counts[:, 1].tolist()
    assert (matrix.sum(1) - matrix.diagonal()).tolist() == counts[:, 3].tolist()


def test_dice_agrees_with_monai() -> None:
    predicted, reference = label_map(0)[None], label_map(1)[None]
    expected = DiceMetric(reduction="none")(one_hot(predicted, 5), one_hot(reference, 5))[0]
    torch.testing.assert_close(dice_scores(confusion_matrix(predicted, reference, 5)).float(), expected)


def test_class_in_neither_map_is_nan_and_in_one_map_zero() -> None:
    predicted, reference = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 1, 1])
    scores = dice_scores(confusion_matrix(predicted, reference, 4))
    assert scores[:3].tolist() == [1.0, 0.8, 0.0]
    assert math.isnan(scores[3])


def test_empty_maps_count_nothing() -> None:
    assert not confusion_matrix(torch.zeros(0), torch.zeros(0), 3).any()


@pytest.mark.parametrize("strange", [torch.tensor([0, 5]), torch.tensor([-1, 0])])
def test_labels_out_of_range_are_refused(strange: torch.Tensor) -> None:
    fine = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"predicted labels run from .* must lie in 0\.\.4"):
        confusion_matrix(strange, fine, 5)
    with pytest.raises(ValueError, match="reference labels run from"):
        confusion_matrix(fine, strange, 5)


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(torch.zeros(2, 3), torch.zeros(3, 2), 2)


def test_grouped_confusion_is_that_of_grouped_labels() -> None:
    groups = [[0, 4], [1], [2, 3]]
    group_of = torch.tensor([0, 1, 2, 2, 0])
    predicted, reference = label_map(0), label_map(1)
    grouped = group_confusion(confusion_matrix(predicted, reference, 5), groups)
    assert torch.equal(grouped, confusion_matrix(group_of[predicted.int()], group_of[reference.int()], 3))


def test_large_counts_stay_exact() -> None:
    matrix = torch.tensor([[2**40 + 1, 0], [0, 1]])
    assert int(group_confusion(matrix, [[0], [1]])[0, 0]) == 2**40 + 1


def test_metric_pools_over_updates_and_leaves_absent_classes_out() -> None:
    metric = LabelDice(6)
    pairs = [(label_map(0), label_map(1)), (label_map(2), label_map(3))]
    for pair in pairs:
        metric.update(pair)
    both = tuple(torch.cat(side) for side in zip(*pairs, strict=True))
    scores = dice_scores(confusion_matrix(*both, 6))  # class 5 occurs nowhere
    assert metric.compute() == pytest.approx(float(scores[1:5].mean()))
    assert math.isnan(scores[5])


def test_metric_takes_lists_of_maps_of_different_sizes() -> None:
    predicted = [label_map(0), label_map(2, shape=(1, 3, 3))]
    reference = [label_map(1), label_map(3, shape=(1, 3, 3))]
    together, apart = LabelDice(5), LabelDice(5)
    together.update((predicted, reference))
    for pair in zip(predicted, reference, strict=True):
        apart.update(pair)
    assert together.compute() == apart.compute()


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        LabelDice(5).update(([label_map(0)], [label_map(0), label_map(1)]))


def test_metric_by_class_names_only_classes_that_occur() -> None:
    metric = LabelDice(4, reduction="none")
    metric.update((torch.tensor([0, 1, 1]), torch.tensor([0, 1, 3])))
    assert metric.compute() == {"0": 1.0, "1": pytest.approx(2 / 3), "3": 0.0}


def test_groups_count_as_one_class_with_the_first_as_background() -> None:
    metric = LabelDice(4, class_groups=[[0, 3], [1, 2]])
    metric.update((torch.tensor([0, 1, 2, 3]), torch.tensor([3, 2, 1, 1])))
    assert metric.compute() == pytest.approx(2 * 2 / (2 + 3))


def test_reset_forgets_and_background_alone_scores_zero() -> None:
    metric = LabelDice(3)
    metric.update((torch.ones(3).int(), torch.ones(3).int()))
    assert metric.compute() == 1.0
    metric.reset()
    assert metric.compute() == 0.0
    metric.update((torch.zeros(3).int(), torch.zeros(3).int()))
    assert metric.compute() == 0.0


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match='"mean" or "none", not \'sum\''):
        LabelDice(3, reduction="sum")
