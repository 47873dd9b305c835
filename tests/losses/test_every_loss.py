"""What all losses promise, for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch import Tensor

from dinomed.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GroupedLoss,
    LovaszSoftmaxLoss,
)

LOSSES: dict[str, Callable[..., torch.nn.Module]] = {
    "cross-entropy": CrossEntropyLoss,
    "smoothed": lambda **options: CrossEntropyLoss(label_smoothing=0.2, **options),
    "dice": DiceLoss,
    "dice foreground": lambda **options: DiceLoss(include_background=False, **options),
    "dice and cross-entropy": DiceCrossEntropyLoss,
    "dice and smoothed": lambda **options: DiceCrossEntropyLoss(label_smoothing=0.1, **options),
    "focal": FocalLoss,
    "focal below one": lambda **options: FocalLoss(gamma=0.5, **options),
    "dice and focal": lambda **options: DiceFocalLoss(dice_weight=3, focal_weight=10, **options),
    "lovasz": LovaszSoftmaxLoss,
    "lovasz foreground": lambda **options: LovaszSoftmaxLoss(include_background=False, **options),
}
every_loss = pytest.mark.parametrize("create", LOSSES.values(), ids=LOSSES)


def batch(
    seed: int = 0, classes: int = 4, shape: tuple[int, ...] = (2, 5, 7), ignored: float = 0.0, label: int = 255
) -> tuple[Tensor, Tensor]:
    """Random float64 logits (B, C, ...) and labels (B, 1, ...), a share of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    size, *rest = shape
    logits = 2 * torch.randn(size, classes, *rest, generator=generator, dtype=torch.float64)
    target = torch.randint(max(classes, 2), (size, 1, *rest), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = label
    return logits, target


def gradient(loss: torch.nn.Module, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def weights_of(classes: int) -> list[float]:
    return [0.5 + index for index in range(classes)]


@every_loss
@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    classes=st.sampled_from([1, 2, 3, 7]),
    shape=st.sampled_from([(1, 3), (2, 4, 5), (1, 1, 1), (2, 3, 4, 2), (3, 2, 2)]),
    label=st.sampled_from([255, -1, -100, 1]),
    weighted=st.booleans(),
)
def test_ignored_pixels_are_as_good_as_cut_out(
    create: Callable[..., torch.nn.Module],
    seed: int,
    classes: int,
    shape: tuple[int, ...],
    label: int,
    weighted: bool,
) -> None:
    logits, target = batch(seed, classes, shape, ignored=0.4, label=label)
    options: dict[str, Any] = {"class_weights": weights_of(max(classes, 2)) if weighted else None}
    counted = target[:, 0] != label
    cut_logits = logits.movedim(1, -1)[counted].T[None]
    cut_target = target[:, 0][counted][None, None]
    value, slope = gradient(create(ignore_index=label, **options), logits, target)
    expected, cut_slope = gradient(create(**options), cut_logits, cut_target)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope.movedim(1, -1)[counted].T[None], cut_slope)
    assert not slope.movedim(1, -1)[~counted].any()


@every_loss
def test_not_even_nan_reaches_the_loss_from_ignored_pixels(create: Callable[..., torch.nn.Module]) -> None:
    logits, target = batch(ignored=0.3)
    loss = create(ignore_index=255)
    value, slope = gradient(loss, logits, target)
    for bad in (float("nan"), float("inf")):
        spoiled = torch.where(target == 255, bad, logits)
        same_value, same_slope = gradient(loss, spoiled, target)
        torch.testing.assert_close(same_value, value, rtol=0, atol=0)
        torch.testing.assert_close(same_slope, slope, rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("classes", [1, 4, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_all_ignored_batch_gives_zero_loss_and_zero_gradient(
    create: Callable[..., torch.nn.Module], classes: int, weighted: bool
) -> None:
    logits, target = batch(classes=classes)
    weights = weights_of(max(classes, 2)) if weighted else None
    for bad in (0.0, float("nan")):
        loss = create(ignore_index=255, class_weights=weights)
        value, slope = gradient(loss, logits + bad, torch.full_like(target, 255))
        assert float(value) == 0.0
        assert slope.shape == logits.shape
        assert not slope.any()


@every_loss
def test_classes_without_weight_alone_give_zero(create: Callable[..., torch.nn.Module]) -> None:
    loss = create(class_weights=[0.0, 1.0, 1.0])
    if hasattr(loss, "dice_weight"):
        loss.dice_weight = 0.0  # its Dice has no weights
    logits, target = batch(classes=3)
    value, slope = gradient(loss, logits, torch.zeros_like(target))
    assert float(value) == 0.0
    assert not slope.any()


@every_loss
@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 3, 4, 5)])
def test_one_channel_is_two_classes_of_which_the_first_has_logit_zero(
    create: Callable[..., torch.nn.Module], shape: tuple[int, ...]
) -> None:
    logits, target = batch(classes=1, shape=shape, ignored=0.2)
    assert set(target.unique().tolist()) == {0, 1, 255}
    loss = create(ignore_index=255, class_weights=[1.0, 3.0])
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(loss(logits, target), loss(both, target))
    _, slope = gradient(loss, logits, target)
    assert slope.any()


@every_loss
@pytest.mark.parametrize("shape", [(2, 9, 8), (1, 4, 5, 6)])
def test_hundred_classes_give_a_finite_loss_that_teaches(
    create: Callable[..., torch.nn.Module], shape: tuple[int, ...]
) -> None:
    logits, target = batch(classes=100, shape=shape)
    value, slope = gradient(create(), logits, target)
    own = slope.gather(1, target)
    assert bool(value.isfinite())
    assert bool(slope.isfinite().all())
    foreground = own[target > 0]
    assert bool((foreground < 0).all())  # each pixel's own class is asked for more


@every_loss
def test_half_precision_is_computed_in_float32(create: Callable[..., torch.nn.Module]) -> None:
    logits, target = batch(ignored=0.1)
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype)
        value, slope = gradient(create(ignore_index=255), half, target)
        assert value.dtype == torch.float32
        assert slope.dtype == dtype
        torch.testing.assert_close(value, create(ignore_index=255)(half.float(), target), rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(create(ignore_index=255)(half, target), value, rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_that_of_finite_differences(
    create: Callable[..., torch.nn.Module], classes: int, weighted: bool
) -> None:
    logits, target = batch(3, classes=classes, shape=(2, 3, 2), ignored=0.3)
    loss = create(ignore_index=255, class_weights=weights_of(max(classes, 2)) if weighted else None)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits.requires_grad_(),))


@every_loss
def test_perfect_logits_cost_next_to_nothing_and_wrong_ones_more(create: Callable[..., torch.nn.Module]) -> None:
    _, target = batch()
    sure = 60 * torch.nn.functional.one_hot(target[:, 0], 4).movedim(-1, 1).double()
    loss = create()
    spread = 0.2 * 60 * 3 / 4 if getattr(loss, "label_smoothing", 0) else 0.0
    value, slope = gradient(loss, sure, target)
    assert float(value) <= spread + 1e-6
    assert bool(slope.isfinite().all())
    assert float(loss(sure.roll(1, 1), target)) > float(value) + 0.5
    assert bool(gradient(loss, 1e4 * sure.roll(1, 1), target)[1].isfinite().all())


@every_loss
def test_order_of_pixels_and_cases_is_of_no_account(create: Callable[..., torch.nn.Module]) -> None:
    logits, target = batch(shape=(3, 4, 6))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = [side.flip(0).flatten(2)[..., order].unflatten(2, (4, 6)) for side in (logits, target)]
    torch.testing.assert_close(create()(*shuffled), create()(logits, target))


@every_loss
def test_labels_may_come_as_any_whole_numbers(create: Callable[..., torch.nn.Module]) -> None:
    logits, target = batch(ignored=0.2)
    loss = create(ignore_index=255)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.float32):
        assert torch.equal(loss(logits, target.to(dtype)), loss(logits, target))


@every_loss
def test_meta_tensors_give_the_same_plain_number(create: Callable[..., torch.nn.Module]) -> None:
    logits, target = batch(shape=(1, 3, 4, 5))
    value = create()(MetaTensor(logits), MetaTensor(target))
    assert type(value) is Tensor
    assert torch.equal(value, create()(logits, target))


@every_loss
def test_wrong_shapes_are_refused(create: Callable[..., torch.nn.Module]) -> None:
    logits, target = batch()
    for wrong in (target[:, 0], target[:1], target[..., :-1], target.expand(-1, 4, -1, -1)):
        with pytest.raises(ValueError, match=r"target must have the shape \(B, 1, \.\.\.\)"):
            create()(logits, wrong)
    with pytest.raises(ValueError, match="with a channel for each class"):
        create()(logits[:, :0], target)


@every_loss
def test_labels_out_of_range_are_refused(create: Callable[..., torch.nn.Module]) -> None:
    logits, target = batch()
    for label in (-1, 4, 255, -100):
        wrong = target.clone()
        wrong[0, 0, 0, 0] = label
        with pytest.raises(ValueError, match=r"they must lie in 0\.\.3; name a label that shall not count"):
            create()(logits, wrong)
    with pytest.raises(ValueError, match=r"they must lie in 0\.\.3 or be 254"):
        create(ignore_index=254)(logits, wrong)
    with pytest.raises(ValueError, match="no labels"):
        create()(logits, target + 0.5)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        create()(logits[:, :1], target)


@every_loss
def test_weights_must_fit_the_classes(create: Callable[..., torch.nn.Module]) -> None:
    logits, target = batch()
    with pytest.raises(ValueError, match="one weight for each of 4 classes, not 3"):
        create(class_weights=[1, 1, 1])(logits, target)
    for wrong in ([1, -1, 1, 1], [1, float("nan"), 1, 1], [0, 0, 0, 0]):
        with pytest.raises(ValueError, match="finite, not negative and not all zero"):
            create(class_weights=wrong)


@pytest.mark.parametrize(
    ("create", "options", "message"),
    [
        (CrossEntropyLoss, {"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        (DiceCrossEntropyLoss, {"label_smoothing": -0.1}, "label_smoothing"),
        (FocalLoss, {"gamma": -1.0}, "gamma must be finite and not negative"),
        (DiceFocalLoss, {"gamma": float("nan")}, "gamma"),
        (DiceLoss, {"smooth": -1.0}, "smooth must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(
    create: Callable[..., torch.nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create(**options)


@pytest.mark.parametrize(
    "name",
    ["CrossEntropyLoss", "DiceLoss", "DiceCrossEntropyLoss", "FocalLoss", "DiceFocalLoss", "LovaszSoftmaxLoss"],
)
def test_config_names_a_loss(name: str) -> None:
    config = {
        "loss": {
            "_target_": "dinomed.losses.GroupedLoss",
            "loss": {"_target_": f"dinomed.losses.{name}", "ignore_index": 255, "class_weights": [1, 2.5]},
            "class_groups": [[0, 2], [1, 3]],
            "ignore_index": 255,
        }
    }
    loss = ConfigParser(config).get_parsed_content("loss")
    assert isinstance(loss, GroupedLoss)
    logits, target = batch(ignored=0.3)
    whole = torch.where(target == 255, 255, target % 2)
    expected = loss.loss(torch.stack([logits[:, [0, 2]].logsumexp(1), logits[:, [1, 3]].logsumexp(1)], 1), whole)
    torch.testing.assert_close(loss(logits, target), expected)
    assert not loss.state_dict()


@every_loss
def test_backward_fills_no_gradient_of_all_classes_for_each_class(create: Callable[..., torch.nn.Module]) -> None:
    """Its time would grow with the square of the number of classes: six seconds in place of one for 118 of them."""

    def selections(classes: int) -> int:
        logits = torch.randn(1, classes, 8, 8, requires_grad=True)
        nodes = [create()(logits, torch.arange(64).view(1, 1, 8, 8) % classes).grad_fn]
        seen = set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                nodes += [following for following, _ in node.next_functions]
        return sum(node.name() in ("SelectBackward0", "IndexBackward0", "SliceBackward0") for node in seen)

    assert selections(40) == selections(10)
