"""The loss of classified pictures: hard and soft labels, several labels, several tasks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinomed.losses.classification import ClassificationLoss, class_loss, label_loss


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_one_class_a_picture_is_the_cross_entropy(logits: torch.Tensor) -> None:
    label = torch.tensor([0, 3, 1, 1, 2])
    wanted = -logits.log_softmax(1)[torch.arange(5), label].mean()
    torch.testing.assert_close(ClassificationLoss()(logits, label), wanted)
    one_hot = nn.functional.one_hot(label, 4).float()
    torch.testing.assert_close(ClassificationLoss()(logits, one_hot), wanted)


def test_soft_labels_are_weighted(logits: torch.Tensor) -> None:
    first, second = torch.tensor([0, 3, 1, 1, 2]), torch.tensor([1, 1, 0, 2, 2])
    soft = 0.3 * nn.functional.one_hot(first, 4) + 0.7 * nn.functional.one_hot(second, 4)
    wanted = 0.3 * class_loss(logits, first) + 0.7 * class_loss(logits, second)
    torch.testing.assert_close(class_loss(logits, soft), wanted)


def test_smoothing_spreads_a_share_over_all_classes(logits: torch.Tensor) -> None:
    label = torch.tensor([0, 3, 1, 1, 2])
    soft = 0.8 * nn.functional.one_hot(label, 4) + 0.2 / 4
    torch.testing.assert_close(ClassificationLoss(label_smoothing=0.2)(logits, label), class_loss(logits, soft))


def test_several_labels_are_the_binary_cross_entropy(logits: torch.Tensor) -> None:
    label = (torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    weights = torch.tensor([1.0, 2.0, 0.5, 7.0])
    p = logits.sigmoid()
    wanted = -(weights * label * p.log() + (1 - label) * (1 - p).log()).mean()
    loss = ClassificationLoss("multilabel", positive_weights=weights.tolist())
    torch.testing.assert_close(loss(logits, label), wanted)
    torch.testing.assert_close(label_loss(logits, label.long()), label_loss(logits, label))
    torch.testing.assert_close(
        label_loss(logits, label, label_smoothing=0.2), label_loss(logits, 0.8 * label + 0.2 * 0.5)
    )


def test_losses_of_tasks_are_summed(logits: torch.Tensor) -> None:
    given = {"a": logits, "b": logits[:, :2]}
    label = {"a": torch.tensor([0, 3, 1, 1, 2]), "b": torch.tensor([0, 1, 1, 0, 0])}
    parts = [class_loss(given[task], label[task]) for task in given]
    torch.testing.assert_close(ClassificationLoss("multitask")(given, label), parts[0] + parts[1])
    weighted = ClassificationLoss("multitask", task_weights={"b": 0.25})
    torch.testing.assert_close(weighted(given, label), parts[0] + 0.25 * parts[1])


def test_settings_can_be_told_apart_by_their_text() -> None:
    texts = {
        repr(loss)
        for loss in (
            ClassificationLoss(),
            ClassificationLoss("multilabel"),
            ClassificationLoss("multilabel", positive_weights=[2.0, 3.0]),
            ClassificationLoss(label_smoothing=0.1),
            ClassificationLoss("multitask", task_weights={"a": 2.0}),
        )
    }
    assert len(texts) == 5


def test_what_does_not_fit_is_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"need labels \(B,\) or \(B, K\), not \(5, 3\) for \(5, 4\); is task right"):
        ClassificationLoss()(logits, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"need labels \(B, K\), not \(5,\)"):
        ClassificationLoss("multilabel")(logits, torch.zeros(5))
    with pytest.raises(ValueError, match="must have the same tasks, not Tensor and"):
        ClassificationLoss("multitask")(logits, {"a": torch.zeros(5)})
    with pytest.raises(ValueError, match="choose from multiclass"):
        ClassificationLoss("binary")
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\)"):
        ClassificationLoss(label_smoothing=1.0)
    with pytest.raises(ValueError, match="positive_weights belong to multilabel"):
        ClassificationLoss(positive_weights=[1.0])
    with pytest.raises(ValueError, match="must not be negative"):
        ClassificationLoss("multitask", task_weights={"a": -1.0})
