from __future__ import annotations

import io
import logging
import re

import pytest
import torch
from ignite.engine import Engine, Events

from dinomed.handlers.ending import when_ended
from dinomed.handlers.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(stream: io.StringIO, start: int = 0, fail_at: int = -1, rank: int = 0) -> Engine:
    """A run of two epochs of five steps each whose loss is the number of the step."""
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(float(engine.state.iteration))})
    engine.state.rank = rank
    Progress(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5), stream).attach(engine)

    @engine.on(Events.STARTED)
    def resume() -> None:
        engine.state.epoch, engine.state.iteration = start, 5 * start

    @engine.on(Events.ITERATION_COMPLETED)
    def stop() -> None:
        logging.getLogger("dinomed").warning("a line")
        if engine.state.iteration == fail_at:
            raise ZeroDivisionError

    engine.run(range(5), max_epochs=2)
    return engine


def test_bar_shows_epoch_loss_rate_and_the_time_left() -> None:
    terminal = Terminal()
    train(terminal)
    last = re.split(r"[\r\n]", terminal.getvalue().rstrip())[-1]
    assert last.startswith("training: 100%")
    assert "10/10" in last
    assert "<00:00" in last
    assert "epoch 2/2, loss 10.0000, rate 5.00e-01" in last


def test_bar_of_a_resumed_run_begins_where_it_goes_on() -> None:
    terminal = Terminal()
    train(terminal, start=1)
    assert "| 5/10 [" in terminal.getvalue().split("\r")[1]
    assert "10/10" in terminal.getvalue()


def test_there_is_no_bar_without_a_terminal_and_in_other_processes() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    train(pipe)
    train(terminal, rank=1)
    assert pipe.getvalue() == terminal.getvalue() == ""


def test_failing_run_gives_the_log_back_and_passes_the_error_on() -> None:
    before = list(logging.getLogger().handlers)
    with pytest.raises(ZeroDivisionError):
        train(Terminal(), fail_at=3)
    assert logging.getLogger().handlers == before


def test_everything_open_is_closed_when_a_run_fails() -> None:
    closed: list[str] = []
    engine = Engine(lambda engine, batch: 1 / 0)
    for name in ("one", "two"):
        when_ended(engine, lambda name=name: closed.append(name))
    with pytest.raises(ZeroDivisionError):
        engine.run([1])
    assert {"one", "two"} == set(closed)
