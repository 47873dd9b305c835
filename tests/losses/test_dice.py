from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss as MonaiDiceLoss
from torchmetrics.functional.segmentation import dice_score

from dinomed.losses import CrossEntropyLoss, DiceCrossEntropyLoss, DiceLoss
from dinomed.losses.dice import dice_of_present_classes


def random_batch(num_classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_classes, 9, 7, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (2, 1, 9, 7), generator=generator)


def test_loss_agrees_with_monai_and_torch_where_every_class_is_shown() -> None:
    logits, target = random_batch()
    dice = MonaiDiceLoss(softmax=True, to_onehot_y=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logits, target)
    expected = dice + torch.nn.functional.cross_entropy(logits, target[:, 0])
    torch.testing.assert_close(DiceCrossEntropyLoss()(logits, target).double(), expected, rtol=1e-5, atol=1e-6)


def test_absent_class_is_left_out_of_dice() -> None:
    logits, target = random_batch()
    target[target == 2] = 1
    scores = dice_of_present_classes(logits.softmax(1), target)
    assert scores.shape == (3,)


def test_absent_class_gets_no_gradient_from_dice_beyond_the_softmax_coupling() -> None:
    probs = torch.full((1, 3, 4, 4), 1 / 3, requires_grad=True)
    target = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    dice_of_present_classes(probs, target).sum().backward()
    assert probs.grad is not None
    assert not probs.grad[:, 1:].any()
    assert (probs.grad[:, 0] > 0).all()


def test_perfect_logits_have_almost_no_loss() -> None:
    _, target = random_batch()
    logits = 50 * torch.nn.functional.one_hot(target[:, 0], 4).movedim(-1, 1).double()
    assert float(DiceCrossEntropyLoss()(logits, target)) < 1e-6


def test_gradient_is_that_of_finite_differences() -> None:
    logits, target = random_batch(3)
    probs = logits.softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: dice_of_present_classes(p, target), (probs,))


def test_target_of_another_shape_is_refused() -> None:
    logits, target = random_batch()
    with pytest.raises(ValueError, match="must have the shape"):
        dice_of_present_classes(logits.softmax(1), target[:, 0])


def test_class_weights_are_those_of_the_cross_entropy() -> None:
    logits, target = random_batch()
    weights = [0.5, 1.0, 2.0, 4.0]
    loss = DiceCrossEntropyLoss(dice_weight=0.0, class_weights=weights)
    expected = torch.nn.functional.cross_entropy(logits, target[:, 0], torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(loss(logits, target), expected)


def test_without_new_settings_every_bit_is_that_of_the_plain_formula() -> None:
    for seed, weights in ((0, None), (1, torch.tensor([0.5, 1.0, 2.0, 0.3]))):
        logits, target = random_batch(seed=seed)
        logits = logits.float().requires_grad_()
        log_probs = logits.log_softmax(1)
        probs, scores = log_probs.exp(), []
        for index in range(4):
            wanted = target[:, 0] == index
            overlap = (probs[:, index] * wanted).sum()
            scores.append((2 * overlap + 1.0) / (probs[:, index].sum() + wanted.sum() + 1.0))
        cross_entropy = torch.nn.functional.nll_loss(log_probs, target[:, 0], weights)
        expected = 1.0 * (1 - torch.stack(scores).mean()) + 1.0 * cross_entropy
        given = DiceCrossEntropyLoss(class_weights=None if weights is None else weights.tolist())(logits, target)
        assert torch.equal(given, expected)
        slopes = [torch.autograd.grad(value, logits)[0] for value in (given, expected)]
        assert torch.equal(*slopes)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 999),
    shape=st.sampled_from([(1, 20), (2, 9, 7), (2, 4, 5, 3)]),
    smooth=st.sampled_from([1e-5, 1.0, 10.0]),
    ignored=st.sampled_from([0.0, 0.4]),
)
def test_dice_agrees_with_monai_with_and_without_ignored_pixels(
    seed: int, shape: tuple[int, ...], smooth: float, ignored: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], 4, *shape[1:], generator=generator, dtype=torch.float64)
    target = torch.randint(4, (shape[0], 1, *shape[1:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    target.view(-1)[:4] = torch.arange(4)  # MONAI scores a class that is not shown, so all are
    options = {"softmax": True, "to_onehot_y": True, "batch": True, "smooth_nr": smooth, "smooth_dr": smooth}
    expected = MonaiDiceLoss(ignore_index=255, **options)(logits, target)
    torch.testing.assert_close(DiceLoss(smooth, ignore_index=255)(logits, target), expected)
    foreground = MonaiDiceLoss(ignore_index=255, include_background=False, **options)(logits, target)
    given = DiceLoss(smooth, ignore_index=255, include_background=False)(logits, target)
    torch.testing.assert_close(given, foreground)


def test_dice_of_one_channel_without_background_is_monais_of_the_sigmoid() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(2, (2, 1, 6, 5), generator=generator)
    expected = MonaiDiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logits, target.double())
    torch.testing.assert_close(DiceLoss(include_background=False)(logits, target), expected)


def test_dice_of_hard_predictions_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(1)
    predicted, target = (torch.randint(4, (1, 1, 8, 9), generator=generator) for _ in range(2))
    logits = 200.0 * torch.nn.functional.one_hot(predicted[:, 0], 4).movedim(-1, 1).double()
    expected = dice_score(predicted[:, 0], target[:, 0], num_classes=4, average="none", input_format="index")[0]
    weights = [1.0, 2.0, 3.0, 4.0]
    torch.testing.assert_close(DiceLoss(0.0)(logits, target), 1 - expected.double().mean(), rtol=1e-6, atol=1e-6)
    weighted = (expected * torch.tensor(weights)).sum() / 10
    torch.testing.assert_close(DiceLoss(0.0, weights)(logits, target), 1 - weighted.double(), rtol=1e-6, atol=1e-6)


def test_batch_without_foreground_costs_no_dice_of_the_foreground() -> None:
    logits, target = random_batch()
    assert float(DiceLoss(include_background=False)(logits, torch.zeros_like(target))) == 0.0


def test_dice_of_present_classes_leaves_ignored_pixels_out() -> None:
    logits, target = random_batch()
    probs = logits.softmax(1)
    target[:, :, :4] = 9
    expected = dice_of_present_classes(probs[:, :, 4:], target[:, :, 4:])
    torch.testing.assert_close(dice_of_present_classes(probs, target, ignore_index=9), expected)
    assert dice_of_present_classes(probs, torch.full_like(target, 9), ignore_index=9).shape == (0,)


def test_dice_and_cross_entropy_is_their_weighted_sum() -> None:
    logits, target = random_batch()
    weights = [0.5, 1.0, 2.0, 4.0]
    expected = 2 * DiceLoss(3.0)(logits, target) + 0.5 * CrossEntropyLoss(weights, 0.1)(logits, target)
    both = DiceCrossEntropyLoss(3.0, 2, 0.5, weights, label_smoothing=0.1)
    torch.testing.assert_close(both(logits, target), expected)
