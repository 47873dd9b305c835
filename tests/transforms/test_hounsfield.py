"""Whether a CT's values can be Hounsfield units."""

from __future__ import annotations

import numpy as np
import pytest

from dinomed.transforms.hounsfield import NO_HU, hounsfield_doubt


def head_hu() -> np.ndarray:
    """A block of tissue with bone in air."""
    values = np.full((20, 20, 4), -1000.0, np.float32)
    values[4:-4, 4:-4] = 35.0
    values[4:6, 4:-4] = 900.0
    return values


def test_a_head_in_air_is_not_doubted_nor_one_that_is_cropped_or_holds_metal() -> None:
    values = head_hu()
    assert hounsfield_doubt(values) is None
    cropped = values[4:-4, 4:-4].copy()
    cropped[8, 8, 1] = -600.0  # a cell of the mastoid
    assert hounsfield_doubt(cropped) is None
    values[9, 9] = 30_000.0
    assert hounsfield_doubt(values) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.clip(head_hu() + 40, 0, 80) * 255 / 80, "as grey values of a picture do"),
        (np.clip((head_hu() + 1000) / 2000, 0, 1), "as grey values of a picture do"),
        (head_hu() + 1024, "before they are rescaled"),
        (np.where(head_hu() < -500, -50, head_hu()), "there is no air"),
        (np.full((4, 4, 4), -1000.0), "nothing but air"),
        (head_hu() * 100, "they run from -100000 to 90000"),
    ],
    ids=["windowed", "normalised", "stored", "masked", "empty", "huge"],
)
def test_other_values_are_doubted_with_a_reason(values: np.ndarray, words: str) -> None:
    said = hounsfield_doubt(values.astype(np.float32))
    assert said is not None
    assert said.startswith(NO_HU)
    assert words in said
