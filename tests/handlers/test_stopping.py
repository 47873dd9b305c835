from __future__ import annotations

from typing import Any

import pytest
from ignite.engine import Engine, Events

from dinomed.handlers.shared import SharedHandler
from dinomed.handlers.stopping import EarlyStopping


def train(handler: EarlyStopping, scores: list[float]) -> int:
    """Validate after each epoch with these scores; return the epoch at which the training ended."""
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    shared = SharedHandler(handler)
    shared.attach(evaluator)
    shared.follow(trainer)
    evaluator.state.key_metric_name = "dice"

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        evaluator.add_event_handler(
            Events.EPOCH_COMPLETED(once=1), lambda: evaluator.state.metrics.update(dice=scores[trainer.state.epoch - 1])
        )
        evaluator.run([0])

    trainer.run([0], max_epochs=len(scores))
    return trainer.state.epoch


def test_training_ends_when_patience_is_used_up() -> None:
    assert train(EarlyStopping(2), [0.1, 0.3, 0.2, 0.3, 0.4, 0.5]) == 4
    assert train(EarlyStopping(3), [0.1, 0.3, 0.2, 0.3, 0.4, 0.5]) == 6


def test_small_progress_is_none() -> None:
    assert train(EarlyStopping(2, min_delta=0.05), [0.1, 0.2, 0.22, 0.24, 0.26, 0.3]) == 4
    assert train(EarlyStopping(2, min_delta=0.05), [0.1, 0.2, 0.22, 0.26, 0.27, 0.4]) == 6


def test_score_that_is_no_number_is_no_progress() -> None:
    assert train(EarlyStopping(1), [0.1, float("nan"), 0.5]) == 2
    assert train(EarlyStopping(2), [float("nan"), float("nan"), 0.5]) == 2


def test_without_patience_nothing_ends() -> None:
    assert train(EarlyStopping(None), [0.5, 0.1, 0.1, 0.1]) == 4


def test_state_brings_the_count_back() -> None:
    first, second = EarlyStopping(3), EarlyStopping(3)
    train(first, [0.4, 0.3, 0.3])
    second.load_state_dict(first.state_dict())
    assert train(second, [0.4, 0.5]) == 1


@pytest.mark.parametrize("patience", [0, -1, 1.5, "3", True])
def test_senseless_patience_is_refused(patience: Any) -> None:
    with pytest.raises(ValueError, match="patience must be a number of validations"):
        EarlyStopping(patience)
