from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, NormalizeIntensity, RandGaussianNoise, Transform
from torch.utils.data import DataLoader

from dinomed.data.sampling import ClassBalancedSampler, EpochSampler, SeededDataset, ShareSampler, class_presence
from dinomed.errors import InputError


def epochs(sampler: EpochSampler, count: int, start: int = 1) -> list[list[int]]:
    found = []
    for epoch in range(start, start + count):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


def test_epoch_sees_every_item_once_in_an_order_of_its_own() -> None:
    first, second = epochs(EpochSampler(range(20)), 2)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))
    assert epochs(EpochSampler(range(20), seed=1), 1) != [first]


def test_unshuffled_epoch_is_in_order() -> None:
    assert epochs(EpochSampler(range(4), shuffle=False), 2) == [[0, 1, 2, 3]] * 2


def test_short_epochs_go_on_where_the_last_one_stopped() -> None:
    seen = [item for epoch in epochs(EpochSampler(range(10), samples_per_epoch=4), 5) for item in epoch]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] == epochs(EpochSampler(range(10)), 1)[0]


def test_long_epochs_go_through_the_items_again() -> None:
    (seen,) = epochs(EpochSampler(range(3), samples_per_epoch=8), 1)
    assert sorted(seen[:3]) == sorted(seen[3:6]) == [0, 1, 2]
    assert len(set(seen[6:])) == 2


@pytest.mark.parametrize("count", [12, 13])
def test_processes_share_an_epoch_without_overlap_in_the_batches_of_one_process(count: int) -> None:
    alone = epochs(EpochSampler(range(count), seed=4), 3)
    shared = [epochs(EpochSampler(range(count), seed=4, rank=rank, world_size=2), 3) for rank in (0, 1)]
    for whole, one, other in zip(alone, *shared, strict=True):
        assert len(one) == len(other) == 6
        for step in range(3):  # batches of two in each process, of four in one
            assert set(one[2 * step : 2 * step + 2] + other[2 * step : 2 * step + 2]) == set(whole[4 * step :][:4])
    balanced = [
        epochs(ClassBalancedSampler(torch.eye(4, dtype=torch.bool), 9, seed=4, rank=rank, world_size=world), 1)[0]
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    assert balanced[1] == balanced[0][:8][::2]
    assert balanced[2] == balanced[0][:8][1::2]


def test_epoch_alone_decides_what_a_resumed_run_sees() -> None:
    presence = torch.rand(30, 5, generator=torch.Generator().manual_seed(0)) > 0.7
    for build in (lambda: EpochSampler(range(7), 5), lambda: ClassBalancedSampler(presence)):
        assert epochs(build(), 5)[3:] == epochs(build(), 2, start=4)


def test_too_few_items_for_the_processes_are_refused() -> None:
    with pytest.raises(InputError, match="1 training items cannot be shared by 2 processes"):
        EpochSampler(range(1), world_size=2)
    with pytest.raises(InputError, match="2 processes with 1 items in an epoch"):
        EpochSampler(range(4), samples_per_epoch=1, world_size=2)
    for wrong in (0, -2, 1.5, "aa"):
        with pytest.raises(InputError, match=f"samples_per_epoch is {wrong!r}; give whole numbers"):
            EpochSampler(range(4), samples_per_epoch=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 training items"):
        EpochSampler([])
    with pytest.raises(InputError, match="1 validation items cannot be shared by 2 processes"):
        ShareSampler(range(1), world_size=2)


def test_validation_items_are_shared_out_once_each() -> None:
    parts = [ShareSampler(range(5), rank, 2) for rank in (0, 1)]
    assert [list(part) for part in parts] == [[0, 2, 4], [1, 3]]
    assert [len(part) for part in parts] == [3, 2]


def test_rare_classes_are_seen_as_often_as_common_ones() -> None:
    presence = torch.zeros(100, 3, dtype=torch.bool)
    presence[:90, 0] = presence[90:98, 1] = presence[98:, 2] = True
    (seen,) = epochs(ClassBalancedSampler(presence, 6000), 1)
    counts = Counter(0 if item < 90 else 1 if item < 98 else 2 for item in seen)
    assert all(abs(counts[label] - 2000) < 150 for label in range(3))
    assert len(set(seen)) == 100


def test_share_without_balance_is_drawn_evenly() -> None:
    presence = torch.zeros(10, 2, dtype=torch.bool)
    presence[0, 1] = presence[1:9, 0] = True
    (by_class,) = epochs(ClassBalancedSampler(presence, 4000), 1)
    assert 9 not in by_class  # shows no class
    assert abs(by_class.count(0) - 2000) < 150
    (half,) = epochs(ClassBalancedSampler(presence, 4000, balance=0.5), 1)
    assert abs(half.count(0) - 1200) < 150
    assert abs(half.count(9) - 200) < 80
    (evenly,) = epochs(ClassBalancedSampler(presence, 4000, balance=0.0), 1)
    assert abs(evenly.count(0) - 400) < 100


def test_wrong_balance_and_absent_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"balance must lie in \[0, 1\]"):
        ClassBalancedSampler(torch.ones(2, 2, dtype=torch.bool), balance=2.0)
    with pytest.raises(InputError, match="no training item has a class"):
        ClassBalancedSampler(torch.zeros(2, 2, dtype=torch.bool))


def test_presence_counts_pixels_and_leaves_out_what_is_no_class() -> None:
    maps = [np.array([[0, 1, 1], [255, 0, 0]]), np.array([[2, 1, 255]])]
    assert class_presence(maps.__getitem__, 2, 3).tolist() == [[True, True, False], [False, True, True]]
    assert class_presence(maps.__getitem__, 2, 3, min_pixels=2).tolist() == [[True, True, False], [False] * 3]
    without = class_presence(maps.__getitem__, 2, 3, ignored_classes=[0])
    assert without.tolist() == [[False, True, False], [False, True, True]]


def noisy(value: torch.Tensor) -> torch.Tensor:
    return value + float(torch.rand(())) + float(np.random.rand()) + random.random()


def dataset(seed: int = 0) -> SeededDataset:
    return SeededDataset([torch.zeros(2)] * 6, Compose([RandGaussianNoise(prob=1.0), noisy]), seed)


def drawn(epoch: int, order: Any = range(6), **options: Any) -> torch.Tensor:
    data = dataset()
    data.set_epoch(epoch)
    batches = DataLoader(data, batch_size=2, sampler=list(order), **options)
    found = torch.cat([torch.as_tensor(batch) for batch in batches])
    return found[torch.argsort(torch.tensor(list(order)))]


def test_items_depend_on_seed_epoch_and_index_alone() -> None:
    first = drawn(1)
    assert len({float(value) for value in first.flatten()}) == 12
    torch.rand(3)
    assert torch.equal(drawn(1, order=[5, 3, 1, 0, 2, 4]), first)
    assert torch.equal(drawn(1, num_workers=2), first)
    assert not torch.isclose(drawn(2), first).any()
    assert not torch.equal(dataset(1)[0], dataset(0)[0])


def test_item_that_comes_again_in_an_epoch_is_drawn_anew() -> None:
    """However many processes share the epoch, and in workers too."""

    def batches(rank: int, world_size: int, workers: int = 0) -> list[torch.Tensor]:
        data = dataset()
        sampler = EpochSampler(data, samples_per_epoch=18, seed=2, rank=rank, world_size=world_size)
        loader = DataLoader(data, batch_size=1, sampler=sampler, num_workers=workers)
        return [torch.as_tensor(batch) for batch in loader]

    alone = batches(0, 1)
    assert len({float(value) for batch in alone for value in batch.flatten()}) == 36
    assert torch.equal(torch.cat(alone), torch.cat(batches(0, 1, workers=2)))
    shared = [value for both in zip(batches(0, 2), batches(1, 2), strict=True) for value in both]
    assert torch.equal(torch.cat(alone), torch.cat(shared))


def test_workers_that_live_on_learn_of_the_epoch() -> None:
    data = dataset()
    loader = DataLoader(data, batch_size=6, num_workers=1, persistent_workers=True)
    for epoch in (1, 2):
        data.set_epoch(epoch)
        assert torch.equal(next(iter(loader)), drawn(epoch))


def test_drawing_an_item_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    def state() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = state()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    dataset()[2]
    assert state() == expected


def test_values_that_a_transform_refuses_are_told_apart_from_faults_in_it() -> None:
    wrong = Compose([NormalizeIntensity(subtrahend=[0.5], divisor=[1.0], channel_wise=True)])
    with pytest.raises(InputError, match=r"NormalizeIntensity cannot be applied \(img has 3 channels"):
        SeededDataset([torch.zeros(3, 2, 2)], wrong)[0]

    class Faulty(Transform):
        def __call__(self, data: Any) -> Any:
            raise TypeError("a fault")

    class Refusing(Transform):
        def __call__(self, data: Any) -> Any:
            raise InputError("a.png is empty")

    for transform in (Faulty(), Refusing()):
        with pytest.raises(RuntimeError, match="applying transform"):
            SeededDataset([torch.zeros(3, 2, 2)], Compose([transform]))[0]
