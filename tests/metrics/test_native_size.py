from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dinomed.metrics import labels_at_size

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
length = st.integers(1, 9)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    sizes=st.lists(st.tuples(length, length), min_size=1, max_size=3),
    classes=st.integers(2, 6),
    strip_numbers=st.sampled_from([1, 40, 1 << 24]),
    seed=st.integers(0, 999),
)
def test_labels_are_those_of_the_logits_resized_at_once(
    sizes: list[tuple[int, int]], classes: int, strip_numbers: int, seed: int
) -> None:
    given, wanted = zip(*sizes, strict=True)
    logits = torch.randn(classes, *given, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = functional.interpolate(logits[None], wanted, mode=MODES[len(given)], align_corners=False)[0].argmax(0)
    labels = labels_at_size(logits, wanted, classes, strip_numbers)
    assert labels.shape == (1, *wanted)
    assert torch.equal(labels[0], expected)


def test_strips_hold_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    resize = functional.interpolate

    def watched(*args: object, **options: object) -> torch.Tensor:
        held.append(resize(*args, **options))
        return held[-1]

    monkeypatch.setattr(functional, "interpolate", watched)
    labels_at_size(torch.zeros(10, 8, 8), (64, 32), strip_numbers=10 * 32 * 5)
    assert len(held) == 13
    assert max(strip.numel() for strip in held) == 10 * 32 * 5


def test_half_precision_is_resized_in_float32() -> None:
    logits = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(labels_at_size(logits, (17, 13)), labels_at_size(logits.float(), (17, 13)))


def test_labels_of_logits_at_that_size_are_their_argmax() -> None:
    logits = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(labels_at_size(logits, (5, 6)), logits.argmax(0, keepdim=True))


def test_one_channel_is_decided_at_zero() -> None:
    logits = torch.tensor([[[-0.1, 0.0, 0.1]]])
    assert labels_at_size(logits, (1, 3)).tolist() == [[[0, 0, 1]]]
    assert labels_at_size(logits, (1, 3), num_classes=1).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize(("shape", "size"), [((3, 4, 4), (8,)), ((3,), ()), ((3, 0, 4), (8, 8)), ((3, 4, 4), (0, 8))])
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="with the axes of"):
        labels_at_size(torch.zeros(shape), size)
