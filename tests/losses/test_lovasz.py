from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torchmetrics.functional.classification import multiclass_jaccard_index

from dinomed.losses import LovaszSoftmaxLoss
from dinomed.losses.lovasz import lovasz_extension_of_jaccard_loss


def jaccard_loss(wrong: set[int], wanted: set[int]) -> float:
    """One minus the IoU of a class whose pixels are `wanted` when the pixels in `wrong` are misclassified."""
    predicted = wanted ^ wrong
    return 1 - len(predicted & wanted) / len(predicted | wanted)


def extension_by_definition(errors: list[float], wanted: list[bool]) -> float:
    """Sum over pixels, the largest error first, of the error times what the set function gains by the pixel."""
    pixels = {k for k, inside in enumerate(wanted) if inside}
    total, seen = 0.0, set[int]()
    for k in sorted(range(len(errors)), key=lambda k: -errors[k]):
        total += errors[k] * (jaccard_loss(seen | {k}, pixels) - jaccard_loss(seen, pixels))
        seen.add(k)
    return total


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12))
def test_extension_is_that_of_the_definition(pixels: list[tuple[float, bool]]) -> None:
    errors, wanted = [error for error, _ in pixels], [inside for _, inside in pixels]
    wanted[0] = True
    got = lovasz_extension_of_jaccard_loss(torch.tensor(errors, dtype=torch.float64), torch.tensor(wanted))
    assert float(got) == pytest.approx(extension_by_definition(errors, wanted), abs=1e-12)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(2, 8),
    shape=st.sampled_from([(1, 2, 3), (2, 7, 5), (2, 3, 4, 5)]),
)
def test_hard_predictions_cost_one_minus_the_iou_of_the_classes_shown(
    seed: int, classes: int, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, target = (torch.randint(classes, (shape[0], 1, *shape[1:]), generator=generator) for _ in range(2))
    logits = 200.0 * torch.nn.functional.one_hot(predicted[:, 0], classes).movedim(-1, 1).double()
    shown = target.unique().tolist()
    iou = jaccard_score(target.flatten(), predicted.flatten(), labels=shown, average=None, zero_division=0)
    loss = float(LovaszSoftmaxLoss()(logits, target))
    assert loss == pytest.approx(1 - iou.mean(), abs=1e-9)
    by_class = multiclass_jaccard_index(predicted, target, classes, average="none")[shown]
    assert loss == pytest.approx(1 - float(by_class.double().mean()), abs=1e-6)
    weights = 0.5 + np.arange(classes, dtype=np.float64)
    weighted = float(LovaszSoftmaxLoss(weights.tolist())(logits, target))
    assert weighted == pytest.approx(1 - np.average(iou, weights=weights[shown]), abs=1e-9)


def test_soft_loss_is_the_mean_of_the_extensions_of_the_classes_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (2, 1, 5, 3), generator=generator)  # class 3 is not shown
    probs = logits.softmax(1)
    expected = []
    for index in range(3):
        wanted = (target[:, 0] == index).flatten()
        errors = (wanted.double() - probs[:, index].flatten()).abs()
        expected.append(extension_by_definition(errors.tolist(), wanted.tolist()))
    assert float(LovaszSoftmaxLoss()(logits, target)) == pytest.approx(np.mean(expected), abs=1e-12)
    foreground = LovaszSoftmaxLoss(include_background=False)
    assert float(foreground(logits, target)) == pytest.approx(np.mean(expected[1:]), abs=1e-12)


def test_descent_reaches_the_labels() -> None:
    target = torch.randint(3, (1, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    for _ in range(80):
        optimiser.zero_grad()
        LovaszSoftmaxLoss()(logits, target).backward()
        optimiser.step()
    assert torch.equal(logits.argmax(1, keepdim=True), target)
