from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import FocalLoss as MonaiFocalLoss
from sklearn.metrics import log_loss
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from dinomed.losses import CrossEntropyLoss, DiceFocalLoss, DiceLoss, FocalLoss


def batch(seed: int, classes: int, shape: tuple[int, ...] = (2, 5, 6)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], classes, *shape[1:], generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (shape[0], 1, *shape[1:]), generator=generator)


def weights_of(classes: int, seed: int) -> list[float]:
    return (0.1 + torch.rand(classes, generator=torch.Generator().manual_seed(seed)) * 3).tolist()


def table(logits: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Labels (pixels,) and probabilities (pixels, classes)."""
    probs = torch.softmax(logits, 1).movedim(1, -1).reshape(-1, logits.shape[1])
    return target.flatten().numpy(), probs.numpy()


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(2, 9),
    shape=st.sampled_from([(1, 2, 3), (2, 7, 5), (2, 3, 4, 5)]),
    smoothing=st.sampled_from([0.0, 0.1, 0.7]),
    weighted=st.booleans(),
    ignored=st.sampled_from([0.0, 0.5]),
)
def test_cross_entropy_agrees_with_torch(
    seed: int, classes: int, shape: tuple[int, ...], smoothing: float, weighted: bool, ignored: float
) -> None:
    logits, target = batch(seed, classes, shape)
    target[torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < ignored] = 255
    target.view(-1)[0] = 0  # torch has no answer where nothing counts
    weights = torch.tensor(weights_of(classes, seed)) if weighted else None
    expected = torch.nn.functional.cross_entropy(
        logits,
        target[:, 0],
        None if weights is None else weights.double(),
        ignore_index=255,
        label_smoothing=smoothing,
    )
    loss = CrossEntropyLoss(None if weights is None else weights.tolist(), smoothing, ignore_index=255)
    torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_agrees_with_scikit_learn(weighted: bool) -> None:
    logits, target = batch(0, 5)
    labels, probs = table(logits, target)
    weights = np.asarray(weights_of(5, 0), dtype=np.float32) if weighted else np.ones(5)
    expected = log_loss(labels, probs, labels=range(5), sample_weight=weights[labels])
    loss = CrossEntropyLoss(weights.tolist() if weighted else None)
    assert float(loss(logits, target)) == pytest.approx(expected, rel=1e-10)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(2, 9),
    shape=st.sampled_from([(1, 2, 3), (2, 7, 5), (2, 3, 4, 5)]),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
)
def test_focal_agrees_with_monai(seed: int, classes: int, shape: tuple[int, ...], gamma: float) -> None:
    logits, target = batch(seed, classes, shape)
    monai = MonaiFocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma)(logits, target)
    # MONAI's mean also runs over the classes that a pixel does not have, and computes in float32.
    torch.testing.assert_close(FocalLoss(gamma=gamma)(logits, target), classes * monai.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_focal_of_one_channel_agrees_with_torchvision(gamma: float) -> None:
    logits, target = batch(1, 1)
    target = torch.randint(2, target.shape, generator=torch.Generator().manual_seed(2))
    expected = sigmoid_focal_loss(logits, target.double(), alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(FocalLoss(gamma=gamma)(logits, target), expected)


def test_weights_of_focal_divide_out() -> None:
    logits, target = batch(2, 4)
    labels, probs = table(logits, target)
    weights = np.asarray(weights_of(4, 1), dtype=np.float32).astype(float)
    own = probs[np.arange(len(labels)), labels]
    expected = (weights[labels] * (1 - own) ** 2 * -np.log(own)).sum() / weights[labels].sum()
    assert float(FocalLoss(class_weights=weights.tolist())(logits, target)) == pytest.approx(expected, rel=1e-10)


def test_focal_without_gamma_is_cross_entropy() -> None:
    logits, target = batch(3, 4)
    weights = weights_of(4, 3)
    torch.testing.assert_close(
        FocalLoss(gamma=0.0, class_weights=weights)(logits, target), CrossEntropyLoss(weights)(logits, target)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_certainty_leaves_focal_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[1e5, -1e5], [0.0, 0.0]]).T[None].requires_grad_()
    FocalLoss(gamma=gamma)(logits, torch.tensor([[[0, 1]]])).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_dice_and_focal_is_their_weighted_sum() -> None:
    logits, target = batch(4, 4)
    weights = weights_of(4, 4)
    expected = 10 * FocalLoss(3.0, weights)(logits, target) + 3 * DiceLoss(0.5)(logits, target)
    both = DiceFocalLoss(smooth=0.5, dice_weight=3, focal_weight=10, gamma=3.0, class_weights=weights)
    torch.testing.assert_close(both(logits, target), expected)
