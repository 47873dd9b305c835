"""What is refused before the server starts, and weights put in use by a training that is cut short."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="MONAI Label has an environment of its own: make test-label-app")

from dinomed.label_app.__main__ import main
from dinomed.label_app.training import FineTune


def refused(capsys: pytest.CaptureFixture[str], studies: Path, *arguments: str) -> str:
    assert main(["--studies", str(studies), *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_an_address_that_cannot_be_listened_at_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "port 99999" in refused(capsys, tmp_path, "--port", "99999")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in refused(capsys, tmp_path, "--port", str(taken.getsockname()[1]))


def test_an_unknown_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "device 'foo' is unknown" in refused(capsys, tmp_path, "--device", "foo")


@pytest.mark.parametrize("content", ["", '{"name": "new-dataset", "objects": {"head0": {"im', "[]"])
def test_a_broken_table_of_scans_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    table = tmp_path / "datastore_v2.json"
    table.write_text(content)
    assert f"{table} is no table of scans" in refused(capsys, tmp_path)
    assert table.read_text() == content


@pytest.fixture
def ended(tmp_path: Path) -> Any:
    """A training that has ended, and the weights before it."""
    model = SimpleNamespace(name="model", folder=tmp_path, fine_tuned=tmp_path / "model.pt")
    training = FineTune(model, SimpleNamespace(forget_others=lambda _: None))
    contents = {"model.pt": "second", "previous.pt": "first", "run/best.pt": "third", "run/checkpoint.pt": "state"}
    for name, content in {**contents, "last_run/stats.json": "{}", "run/stats.json": '{"epoch": 3}'}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return training


def weights(training: FineTune) -> tuple[str, str]:
    return tuple((training.model.folder / name).read_text() for name in ("model.pt", "previous.pt"))


def test_weights_are_put_in_use_and_those_before_kept(ended: FineTune) -> None:
    ended._publish()
    assert weights(ended) == ("third", "second")
    assert [path.name for path in ended.last_run.iterdir()] == ["stats.json"]
    assert ended.stats() == {"epoch": 3}


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_training_that_is_cut_short_as_it_ends_loses_no_weights(
    ended: FineTune, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    left = iter(range(moves))

    def cut(method: Any) -> Any:
        def moved(path: Path, target: Path) -> Path:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return method(path, target)

        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut(Path.rename))
        patch.setattr(Path, "replace", cut(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            ended._publish()
    assert weights(ended) == (("second", "first") if moves < 2 else ("third", "first"))
    ended._publish() if ended.run.exists() else ended._put_in_use()
    assert weights(ended) == ("third", "second")
