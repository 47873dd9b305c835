from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss

from dinomed.losses.dice import DiceCrossEntropyLoss, dice_of_present_classes


def random_batch(num_classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_classes, 9, 7, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (2, 1, 9, 7), generator=generator)


def test_loss_agrees_with_monai_and_torch_where_every_class_is_shown() -> None:
    logits, target = random_batch()
    dice = DiceLoss(softmax=True, to_onehot_y=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logits, target)
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
    expected = torch.nn.functional.cross_entropy(logits.float(), target[:, 0], torch.tensor(weights))
    torch.testing.assert_close(loss(logits, target), expected)
