from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn import metrics as sk
from torch import Tensor
from two_processes import run_together

from dinomed.errors import InputError
from dinomed.metrics import MacroAUROC, Top1


def multi_hot(count: int = 40) -> tuple[Tensor, Tensor]:
    """Logits (N, 4) and labels: label 2 has no positive case."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(count, 4, generator=generator) < 0.4).float()
    labels[:, 2] = 0
    return torch.randn(count, 4, generator=generator) + labels, labels


def classes(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (count,), generator=generator)
    logits = 3 * torch.randn(count, 3, generator=generator)
    return logits + torch.nn.functional.one_hot(labels, 3), labels


def in_batches(metric: Any, scores: Tensor, labels: Tensor, size: int = 7) -> Any:
    for given, wanted in zip(scores.split(size), labels.split(size), strict=True):
        metric.update((given, wanted))
    return metric


def wanted_area(scores: Tensor, labels: Tensor, columns: tuple[int, ...]) -> float:
    return float(np.mean([sk.roc_auc_score(labels[:, k].numpy(), scores[:, k].numpy()) for k in columns]))


def test_area_is_the_mean_over_labels_with_both_kinds_over_the_whole_epoch() -> None:
    scores, labels = multi_hot()
    metric = in_batches(MacroAUROC(), scores, labels)
    assert metric.compute() == pytest.approx(wanted_area(scores, labels, (0, 1, 3)), abs=1e-12)
    assert [area is None for area in metric.by_label] == [False, False, True, False]
    metric.reset()
    assert in_batches(metric, scores.sigmoid().double(), labels.bool()).compute() == pytest.approx(
        wanted_area(scores, labels, (0, 1, 3)), abs=1e-12
    )


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_class_numbers_stand_one_against_the_rest(shape: tuple[int, ...]) -> None:
    logits, labels = classes()
    probs = logits.double().softmax(1)
    wanted = sk.roc_auc_score(labels.numpy(), probs.numpy(), multi_class="ovr")
    for metric, scores in ((MacroAUROC(), probs), (MacroAUROC(from_logits=True), logits)):
        assert in_batches(metric, scores, labels.reshape(shape)).compute() == pytest.approx(wanted, abs=1e-12)


def test_lists_of_cases_are_as_good_as_batches() -> None:
    scores, labels = multi_hot()
    metric = MacroAUROC()
    metric.update((list(scores), list(labels)))
    assert metric.compute() == in_batches(MacroAUROC(), scores, labels).compute()
    logits, numbers = classes()
    top = Top1()
    top.update((list(logits), numbers.tolist()))
    assert top.compute() == in_batches(Top1(), logits, numbers).compute()


def test_one_label_alone_is_multi_hot() -> None:
    metric = MacroAUROC()
    metric.update((torch.tensor([[0.1], [0.4], [0.3]]), torch.tensor([[0], [1], [1]])))
    assert metric.compute() == 1.0


def test_top1_is_the_accuracy() -> None:
    logits, labels = classes()
    wanted = sk.accuracy_score(labels, logits.argmax(1))
    assert in_batches(Top1(), logits, labels).compute() == pytest.approx(wanted, abs=1e-12)
    tied = Top1()
    tied.update((torch.zeros(3, 3), torch.tensor([0, 1, 2])))
    assert tied.compute() == pytest.approx(1 / 3)


def test_an_engine_fills_them_from_its_output() -> None:
    logits, labels = classes()
    engine = Engine(lambda engine, batch: [{"pred": logits[k], "label": labels[k]} for k in batch])
    from monai.handlers import from_engine

    MacroAUROC(from_engine(["pred", "label"]), from_logits=True).attach(engine, "auroc")
    Top1(from_engine(["pred", "label"])).attach(engine, "top1")
    for _ in range(2):
        state = engine.run([range(0, 25), range(25, 40)])
    assert state.metrics["top1"] == in_batches(Top1(), logits, labels).compute()
    assert state.metrics["auroc"] == in_batches(MacroAUROC(from_logits=True), logits, labels).compute()


def test_no_label_with_both_kinds_is_an_error_and_no_other_score() -> None:
    metric = MacroAUROC(label_names=["any", "epidural"])
    metric.update((torch.rand(3, 2), torch.tensor([[1, 0], [1, 0], [1, 0]])))
    with pytest.raises(InputError, match="any: no negative case; epidural: no positive case"):
        metric.compute()
    for empty in (MacroAUROC(), Top1()):
        with pytest.raises(InputError, match="no case was scored"):
            empty.compute()


def test_scores_that_are_no_numbers_are_named() -> None:
    scores, labels = multi_hot()
    scores[11, 2] = math.nan
    with pytest.raises(InputError, match=r"case 12 of 40 .* diverged"):
        in_batches(MacroAUROC(), scores, labels).compute()
    with pytest.raises(InputError, match="1 of 40 validation cases are no numbers"):
        in_batches(Top1(), scores, labels.argmax(1)).compute()


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 scores need as many labels"):
        MacroAUROC().update((torch.rand(2, 4), torch.zeros(2, 3)))
    for metric in (MacroAUROC(), Top1()):
        with pytest.raises(ValueError, match="number of a class, 0 to 3"):
            metric.update((torch.rand(1, 4), torch.tensor([4])))


def scores_of_process(count: int) -> list[float]:
    """Even cases in one process, odd ones in the other, and all of the last metric's in the first process."""
    rank, found = torch.distributed.get_rank(), []
    for (scores, labels), metrics in (
        (multi_hot(count), (MacroAUROC(),)),
        (classes(count), (MacroAUROC(from_logits=True), Top1())),
    ):
        for metric in metrics:
            metric.update((scores[rank::2], labels[rank::2]))
            found += [metric.compute(), metric.compute()]
    last = Top1()
    if rank == 0:
        last.update(classes(count))
    return [*found, last.compute()]


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    one = [in_batches(MacroAUROC(), *multi_hot(41)).compute()] * 2
    one += [in_batches(MacroAUROC(from_logits=True), *classes(41)).compute()] * 2
    one += [in_batches(Top1(), *classes(41)).compute()] * 3
    assert run_together(scores_of_process, tmp_path, 41) == [one, one]
