from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from dinomed.bundle.program import run_program
from dinomed.errors import BundleError, DinomedError, InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bundle(tmp_path)


def build(root: Path, tmp_path: Path, component: str) -> None:
    (tmp_path / "more.yaml").write_text(f"part: {component}\ninitialize: ['$@part']\nrun: ['$0']\n")
    run_program(root, ["train"], "run", overlays=[str(tmp_path / "more.yaml")])


def test_bug_in_our_code_is_not_told_as_a_wrong_setting(root: Path, tmp_path: Path) -> None:
    """An attribute that is absent within a constructor of ours."""
    with pytest.raises(
        DinomedError, match=r"AttributeError: .*, in averaging.py:\d+\).* report this as a fault"
    ) as caught:
        build(root, tmp_path, "{_target_: dinomed.handlers.averaging.WeightAverage, network: 5, decay: 0.5}")
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("component", "words"),
    [
        ("{_target_: dinomed.handlers.stopping.EarlyStopping, patience: 0}", "ValueError: patience must be a number"),
        ("{_target_: dinomed.handlers.stopping.EarlyStopping, patiance: 3}", "unexpected keyword argument 'patiance'"),
        ("{_target_: dinomed.handlers.stopping.Early}", "Cannot locate"),
        ("'$[][3]'", "IndexError"),
        ("{_target_: torch.optim.SGD, params: 5}", "TypeError"),
    ],
)
def test_wrong_settings_are_the_users(root: Path, tmp_path: Path, component: str, words: str) -> None:
    with pytest.raises(BundleError, match="correct what --set or the config says") as caught:
        build(root, tmp_path, component)
    assert words in str(caught.value)
