from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest
from monai.data import Dataset
from monai.transforms import Compose
from torch.utils.data import DataLoader

from dinomed.bundle.causes import explain, own_error, show_causes
from dinomed.errors import InputError, VolumeError


@pytest.fixture(autouse=True)
def hook() -> Iterator[None]:
    before = sys.excepthook
    sys.excepthook = sys.__excepthook__
    yield
    sys.excepthook = before


def wrapped(inner: Exception) -> BaseException:
    """An error as MONAI wraps it, twice."""

    def fail() -> NoReturn:
        try:
            try:
                raise inner
            except type(inner) as error:
                raise RuntimeError("Failed to instantiate component 'x'") from error
        except RuntimeError as error:
            raise RuntimeError("Failed to evaluate ConfigExpression") from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    return caught.value


def shown(error: BaseException, capsys: pytest.CaptureFixture[str]) -> list[str]:
    explain(type(error), error, error.__traceback__)
    return capsys.readouterr().err.splitlines()


def test_own_error_is_one_sentence_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(wrapped(InputError("maps/: no label maps here")), capsys) == ["dinomed: maps/: no label maps here"]


class Broken:
    def __call__(self, path: str) -> NoReturn:
        raise VolumeError(f"{path} is cut off; copy it again")


def test_own_error_is_found_in_what_a_data_loaders_process_hands_over(capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(Dataset(["a.png"], Compose([Broken()])), num_workers=1)
    with pytest.raises(RuntimeError, match="DataLoader worker process") as caught:
        next(iter(loader))
    own = own_error(caught.value)
    assert type(own) is VolumeError
    assert str(own) == "a.png is cut off; copy it again"
    assert shown(caught.value, capsys) == ["dinomed: a.png is cut off; copy it again"]


def test_other_error_keeps_its_traceback_and_ends_with_the_cause(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(wrapped(ZeroDivisionError("by zero")), capsys)
    assert lines[-1] == "The cause: ZeroDivisionError: by zero"
    assert any(line.startswith("Traceback") for line in lines)


def test_error_without_cause_is_shown_as_always(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(KeyError("x"), capsys)[-1] == "KeyError: 'x'"


def test_circle_of_causes_ends(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert shown(one, capsys)[-1] == "The cause: ValueError: other"


def test_hook_is_set_once_and_leaves_others_alone() -> None:
    show_causes()
    assert sys.excepthook is explain
    show_causes()
    assert sys.excepthook is explain
    other = lambda *_: None  # noqa: E731
    sys.excepthook = other
    show_causes()
    assert sys.excepthook is other
