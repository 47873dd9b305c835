from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from sklearn import metrics as sk
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from dinomed.metrics import (
    LabelDice,
    SegmentationScores,
    class_accuracies,
    confusion_matrix,
    dice_scores,
    iou_scores,
    pixel_accuracy,
    segmentation_scores,
)


def maps(
    seed: int, classes: int, shape: tuple[int, ...] = (1, 6, 9), ignored: float = 0.0, label: int = 255
) -> tuple[Tensor, Tensor]:
    """A predicted and a reference label map that agree in about half of their pixels."""
    generator = torch.Generator().manual_seed(seed)
    predicted, reference = (torch.randint(classes, shape, generator=generator) for _ in range(2))
    predicted = torch.where(torch.rand(shape, generator=generator) < 0.4, reference, predicted)
    reference[torch.rand(shape, generator=generator) < ignored] = label
    return predicted, reference


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 999),
    classes=st.sampled_from([1, 2, 5, 100]),
    shape=st.sampled_from([(1, 1, 1), (1, 6, 9), (1, 4, 5, 3), (60,)]),
    ignored=st.sampled_from([0.0, 0.5]),
)
def test_scores_agree_with_scikit_learn(seed: int, classes: int, shape: tuple[int, ...], ignored: float) -> None:
    predicted, reference = maps(seed, classes, shape, ignored)
    reference.view(-1)[0] = classes - 1
    matrix = confusion_matrix(predicted, reference, classes, ignore_index=255)
    counted = reference != 255
    y, p = reference[counted].numpy(), predicted[counted].numpy()
    assert matrix.tolist() == sk.confusion_matrix(y, p, labels=range(classes)).tolist()
    options = {"labels": range(classes), "average": None, "zero_division": math.nan}
    numbers = {**options, "zero_division": 0}  # its IoU knows no NaN
    for scores, expected in (
        (iou_scores(matrix), sk.jaccard_score(y, p, **numbers)),
        (dice_scores(matrix), sk.f1_score(y, p, **options)),
        (class_accuracies(matrix), sk.recall_score(y, p, **options)),
    ):
        occurs = matrix.sum(0) + matrix.sum(1) > 0
        wanted = torch.as_tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(scores[occurs], wanted[occurs], equal_nan=True)
        assert bool(scores[~occurs].isnan().all())
    assert pixel_accuracy(matrix) == pytest.approx(sk.accuracy_score(y, p))
    found = segmentation_scores(matrix)
    occurring = sorted({*y.tolist(), *p.tolist()})
    assert found["mean_iou"] == pytest.approx(sk.jaccard_score(y, p, labels=occurring, average="macro"))
    assert found["mean_dice"] == pytest.approx(sk.f1_score(y, p, labels=occurring, average="macro"))
    assert found["mean_accuracy"] == pytest.approx(sk.recall_score(y, p, labels=sorted(set(y)), average="macro"))


@pytest.mark.parametrize("ignore_index", [None, 255, 0, 2])
def test_means_agree_with_torchmetrics(ignore_index: int | None) -> None:
    predicted, reference = maps(1, 6, ignored=0.0 if ignore_index is None else 0.3, label=ignore_index or 0)
    predicted[predicted == 4], reference[reference == 4] = 3, 3  # class 4 is in neither map
    metric = SegmentationScores(6, ignore_index=ignore_index)
    metric.update((predicted, reference))
    scores = metric.compute()
    options = {"num_classes": 6, "ignore_index": ignore_index}
    jaccard = multiclass_jaccard_index(predicted, reference, average="macro", **options)
    assert scores["mean_iou"] == pytest.approx(float(jaccard), rel=1e-5)
    micro = multiclass_accuracy(predicted, reference, average="micro", **options)
    assert scores["pixel_accuracy"] == pytest.approx(float(micro), rel=1e-5)
    assert "iou/4" not in scores
    assert f"iou/{ignore_index}" not in scores


def test_class_predicted_where_it_never_is_scores_zero_but_has_no_accuracy() -> None:
    metric = SegmentationScores(4)
    metric.update((torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 1, 1])))
    scores = metric.compute()
    assert (scores["iou/2"], scores["dice/2"]) == (0.0, 0.0)
    assert "accuracy/2" not in scores
    assert not [name for name in scores if name.endswith("/3")]
    assert scores["mean_iou"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["mean_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["pixel_accuracy"] == 0.75


def test_ignored_pixels_may_hold_any_prediction() -> None:
    predicted, reference = maps(2, 3, ignored=0.5)
    spoiled = torch.where(reference == 255, 77, predicted)
    assert torch.equal(
        confusion_matrix(spoiled, reference, 3, ignore_index=255), confusion_matrix(predicted, reference, 3, 255)
    )
    with pytest.raises(ValueError, match="predicted labels run from 0 to 77"):
        confusion_matrix(spoiled, torch.zeros_like(reference), 3, ignore_index=255)


def test_nothing_counted_gives_no_scores() -> None:
    predicted, reference = maps(3, 3)
    metric, single = SegmentationScores(3, ignore_index=255), SegmentationScores(3, "mean_iou", ignore_index=255)
    for each in (metric, single):
        each.update((predicted, torch.full_like(reference, 255)))
    assert metric.compute() == {}
    assert math.isnan(single.compute())


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seed=st.integers(0, 999), parts=st.integers(1, 6))
def test_pieces_pool_to_the_whole(seed: int, parts: int) -> None:
    predicted, reference = maps(seed, 5, (60,), ignored=0.2)
    whole, pieces, listed = (SegmentationScores(5, ignore_index=255) for _ in range(3))
    whole.update((predicted, reference))
    split = list(zip(predicted.tensor_split(parts), reference.tensor_split(parts), strict=True))
    for pair in split:
        pieces.update(pair)
    listed.update(tuple(map(list, zip(*split, strict=True))))
    assert whole.compute() == pieces.compute() == listed.compute()


def test_logits_are_decided_at_the_size_of_each_label_map() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = [torch.randn(3, 5, 6, generator=generator), torch.randn(3, 4, 4, generator=generator)]
    reference = [torch.randint(3, (1, *size), generator=generator) for size in ((11, 13), (4, 4))]
    metric = SegmentationScores(3, from_logits=True)
    metric.update((logits, reference))
    expected = SegmentationScores(3)
    for one, other in zip(logits, reference, strict=True):
        resized = torch.nn.functional.interpolate(one[None], other.shape[1:], mode="bilinear")[0]
        expected.update((resized.argmax(0, keepdim=True), other))
    assert metric.compute() == expected.compute()


def test_batches_of_logits_count_case_by_case() -> None:
    logits = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(5))
    reference = maps(6, 3, (2, 1, 10, 12))[1]
    together, apart = SegmentationScores(3, from_logits=True), SegmentationScores(3, from_logits=True)
    together.update((logits, reference))
    apart.update((list(logits), list(reference)))
    assert together.compute() == apart.compute()
    dice = LabelDice(3, from_logits=True)
    dice.update((logits, reference))
    scores = together.compute()
    assert dice.compute() == pytest.approx((scores["dice/1"] + scores["dice/2"]) / 2)


def test_one_channel_counts_as_two_classes() -> None:
    logits = torch.tensor([[[-1.0, 2.0], [0.5, -3.0]]])
    reference = torch.tensor([[[0, 1], [0, 0]]])
    metric = SegmentationScores(2, from_logits=True)
    metric.update(([logits], [reference]))
    assert metric.compute()["pixel_accuracy"] == 0.75
    assert metric.compute()["iou/1"] == 0.5


def test_label_dice_leaves_ignored_pixels_out() -> None:
    predicted, reference = maps(7, 4, ignored=0.4)
    counted = reference != 255
    metric, expected = LabelDice(4, ignore_index=255), LabelDice(4)
    metric.update((predicted, reference))
    expected.update((predicted[counted], reference[counted]))
    assert metric.compute() == expected.compute()


def test_groups_are_scored_by_name() -> None:
    metric = SegmentationScores(4, class_names=["rest", "thing"], class_groups=[[0, 3], [1, 2]])
    metric.update((torch.tensor([0, 1, 2, 3]), torch.tensor([3, 2, 1, 1])))
    assert metric.compute()["iou/thing"] == pytest.approx(2 / 3)
    assert metric.compute()["iou/rest"] == pytest.approx(1 / 2)


def test_engine_shows_every_score_beside_its_other_metrics() -> None:
    pairs = [maps(8, 3), maps(9, 3)]
    engine = Engine(lambda _, pair: pair)
    SegmentationScores(3, class_names=["a", "b", "c"]).attach(engine, "segmentation")
    SegmentationScores(3, score="mean_iou").attach(engine, "key")
    engine.run(pairs)
    assert engine.state.metrics["mean_iou"] == engine.state.metrics["key"]
    assert engine.state.metrics["iou/b"] == engine.state.metrics["segmentation"]["iou/b"]


def test_meta_tensors_are_counted_as_plain_ones() -> None:
    predicted, reference = maps(10, 4, (1, 4, 5, 3), ignored=0.3)
    plain, meta = SegmentationScores(4, ignore_index=255), SegmentationScores(4, ignore_index=255)
    plain.update((predicted, reference))
    meta.update(([MetaTensor(predicted)], [MetaTensor(reference)]))
    assert meta.compute() == plain.compute()
    assert type(meta.confusion()) is Tensor


def test_config_names_the_metric() -> None:
    config = {"metric": {"_target_": "dinomed.metrics.SegmentationScores", "num_classes": 3, "score": "mean_iou"}}
    assert isinstance(ConfigParser(config).get_parsed_content("metric"), SegmentationScores)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        SegmentationScores(0)
    with pytest.raises(ValueError, match="'miou' is none of mean_iou, mean_dice"):
        SegmentationScores(3, "miou")
    with pytest.raises(ValueError, match="3 different names"):
        SegmentationScores(3, class_names=["a", "b"])
    with pytest.raises(ValueError, match="3 different names"):
        SegmentationScores(3, class_names=["a", "b", "b"])
    metric = SegmentationScores(3, from_logits=True)
    with pytest.raises(ValueError, match="logits have 2 channels; 3 classes need 3"):
        metric.update(([torch.zeros(2, 4, 4)], [torch.zeros(1, 4, 4)]))
