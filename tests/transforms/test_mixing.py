"""MixUp and CutMix of batches: pictures and labels in one proportion, drawn anew and the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from dinomed.transforms.mixing import MixedBatch, plain_batch, soft_labels

NAMES = ["a", "b", "c"]


def batch(label: torch.Tensor | dict[str, torch.Tensor], count: int = 4) -> dict[str, object]:
    """Picture k is k everywhere, so that its grey tells the proportions."""
    image = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 3, 8, 8).clone()
    return {"image": MetaTensor(image), "label": label}


@pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0)])
def test_labels_are_mixed_in_the_proportion_of_the_pictures(alphas: tuple[float, float]) -> None:
    torch.manual_seed(3)
    label = torch.tensor([0, 1, 2, 1])
    image, mixed = MixedBatch(NAMES, *alphas)(batch(label))
    assert mixed.shape == (4, 3)
    torch.testing.assert_close(mixed.sum(1), torch.ones(4))
    own = soft_labels(label, 3)
    for k in range(4):
        before = (k - 1) % 4
        share = (image[k].mean() - before) / (k - before)  # of picture k itself, from its grey
        torch.testing.assert_close(mixed[k], share * own[k] + (1 - share) * own[before])
    values = image[1].unique()
    if alphas[1]:
        assert set(values.tolist()) <= {0.0, 1.0}, "CutMix pastes"
    else:
        assert len(values) == 1, "MixUp blends"


def test_both_ways_are_drawn_and_the_seed_decides() -> None:
    mixing = MixedBatch(NAMES, 1.0, 1.0)

    def kinds(seed: int) -> list[bool]:
        torch.manual_seed(seed)
        return [len(mixing(batch(torch.tensor([0, 1, 2, 1])))[0][1].unique()) == 1 for _ in range(20)]

    assert 3 < sum(kinds(0)) < 18
    assert kinds(0) == kinds(0) != kinds(1)


def test_several_labels_are_mixed_too() -> None:
    torch.manual_seed(0)
    label = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    image, mixed = MixedBatch(NAMES, 1.0)(batch(label, 2))
    share = 1 - image[0].mean()  # of picture 0 itself
    torch.testing.assert_close(mixed[0], share * label[0])
    torch.testing.assert_close(mixed[1], (1 - image[1].mean()) * label[0])


def test_all_tasks_are_mixed_in_one_proportion() -> None:
    torch.manual_seed(0)
    names = {"colour": ["r", "g"], "shape": ["x", "y", "z"]}
    label = {"colour": torch.tensor([0, 1]), "shape": torch.tensor([2, 0])}
    image, mixed = MixedBatch(names, 0.0, 1.0)(batch(label, 2))
    assert {task: tuple(each.shape) for task, each in mixed.items()} == {"colour": (2, 2), "shape": (2, 3)}
    share = 1 - image[0].mean()
    torch.testing.assert_close(mixed["colour"][0], torch.tensor([share, 1 - share]))
    torch.testing.assert_close(mixed["shape"][0], torch.tensor([1 - share, 0, share]))


def test_nothing_is_mixed_without_alphas_by_chance_or_alone() -> None:
    label = torch.tensor([0, 1, 2, 1])
    for mixing in (MixedBatch(NAMES), MixedBatch(NAMES, 1.0, 1.0, probability=0.0)):
        image, same = mixing(batch(label))
        assert same is label or torch.equal(same, label)
        assert torch.equal(image, plain_batch(batch(label))[0])
    assert MixedBatch(NAMES, 1.0)(batch(label[:1], 1))[1].tolist() == [0]


def test_probability_is_the_share_of_mixed_batches() -> None:
    torch.manual_seed(0)
    mixing = MixedBatch(NAMES, 1.0, probability=0.3)
    mixed = sum(mixing(batch(torch.tensor([0, 1, 2, 1])))[1].ndim == 2 for _ in range(200))
    assert 40 < mixed < 80


def test_batches_keep_what_the_data_loader_gave() -> None:
    given = batch(torch.tensor([0, 1, 2, 1]))
    before = given["image"].clone()
    torch.manual_seed(0)
    MixedBatch(NAMES, 1.0, 1.0)(given)
    assert torch.equal(given["image"], before)
    image, label = plain_batch(given, "cpu")
    assert type(image) is type(label) is torch.Tensor
    assert plain_batch(batch({"t": torch.tensor([1])}, 1))[1] == {"t": torch.tensor([1])}


def test_wrong_settings_and_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="mixup_alpha must be a number from 0 on, not -1"):
        MixedBatch(NAMES, -1)
    with pytest.raises(ValueError, match=r"the probability of mixing must be a number from 0 to 1, not 1\.5"):
        MixedBatch(NAMES, probability=1.5)
    with pytest.raises(ValueError, match=r"must be class numbers \(B,\) or \(B, 3\), not \(4, 2\)"):
        MixedBatch(NAMES, 1.0)(batch(torch.zeros(4, 2)))
