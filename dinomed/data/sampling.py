"""Which items a training sees in an epoch: the same for the same seed and epoch, shared out to the processes.

Nothing is remembered from one epoch to the next, so a resumed training needs only the number of its epoch.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dinomed.errors import DinomedError, InputError

APPLYING = re.compile(r"applying transform <([\w.]+)\.(\w+) object")
"""How MONAI's `Compose` names the transform in which an error arose."""


class Draw(int):
    """An item's index that knows how often the item was drawn before in its epoch.

    Attributes:
        repeat: 0 for the first time.
    """

    repeat: int

    def __new__(cls, index: int, repeat: int = 0) -> Draw:
        """Make an index."""
        draw = super().__new__(cls, index)
        draw.repeat = repeat
        return draw


class EpochSampler(Sampler[int]):
    """Give each process its part of an epoch's items, without overlap.

    With `samples_per_epoch` epochs need not be as long as the data: one goes on in the shuffled data where the last one
    stopped, and when all items have been seen they are shuffled anew. Process r of n takes the items r, r + n, ...: a
    batch of b items in each of n processes holds the same items as one batch of n * b in a single process.

    Give it to the data loader as its `sampler`, and to `dinomed.handlers.optimisation.EpochOfData`.

    Args:
        data: what has a length.
        samples_per_epoch: items of an epoch in all processes together; None takes the length of the data.
        shuffle: whether to shuffle.
        seed: of the order.
        rank: number of this process.
        world_size: number of processes; what is left over when they share an epoch is left out.

    Raises:
        InputError: if an epoch has no item for each process, or `samples_per_epoch` is no number of items.
    """

    def __init__(
        self,
        data: Sized,
        samples_per_epoch: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.count = len(data)
        self.total = self.count if samples_per_epoch is None else samples_per_epoch
        if samples_per_epoch is not None and (type(samples_per_epoch) is not int or samples_per_epoch < 1):
            raise InputError(
                f"samples_per_epoch is {samples_per_epoch!r}; give whole numbers from 1 on (in the bundles it is "
                "steps_per_epoch times pictures_per_batch and the like, times world_size)"
            )
        self.length = self.total // world_size
        if self.count < 1 or self.length < 1:
            raise InputError(
                f"{self.count} training items cannot be shared by {world_size} processes with "
                f"{self.total} items in an epoch; give more items or start fewer processes"
            )
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 1."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Items of this process in an epoch."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        """Give this process's items of the epoch, as `Draw`."""
        seen: Counter[int] = Counter()
        draws = []
        for item in self.items_of_epoch()[: self.length * self.world_size].tolist():
            draws.append(Draw(item, seen[item]))
            seen[item] += 1
        return iter(draws[self.rank :: self.world_size])

    def items_of_epoch(self) -> Tensor:
        """Return the items of all processes in the epoch, in order."""
        start = (self.epoch - 1) * self.total
        passes = range(start // self.count, -(-(start + self.total) // self.count))
        found = torch.cat([self._one_pass(number) for number in passes])
        offset = start - passes[0] * self.count
        return found[offset : offset + self.total]

    def _one_pass(self, number: int) -> Tensor:
        """Return all items once, in the order of this pass through the data."""
        if not self.shuffle:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=_generator(self.seed, number))


class ClassBalancedSampler(EpochSampler):
    """Draw items so that every class is seen about equally often: first a class, then one of the items that have it.

    Drawn with replacement. Items without any class are never drawn by class.

    Args:
        presence: (items, classes) bool, see `class_presence`.
        samples_per_epoch: items of an epoch in all processes together; None takes the number of items.
        balance: share of the items that are drawn by class; the others are drawn evenly from all.
        seed: of the draws.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        InputError: if no item has a class, or an epoch has no item for each process.
        ValueError: if the share is no share.
    """

    def __init__(
        self,
        presence: Tensor,
        samples_per_epoch: int | None = None,
        balance: float = 1.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(presence, samples_per_epoch, True, seed, rank, world_size)
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must lie in [0, 1], not {balance!r}")
        if not bool(presence.any()):
            raise InputError("no training item has a class; check the label maps and num_classes")
        items_with = presence.double().sum(0)
        by_class = (presence.double() / items_with.clamp(min=1)).sum(1) / int((items_with > 0).sum())
        self.probabilities = balance * by_class + (1 - balance) / len(presence)

    def items_of_epoch(self) -> Tensor:
        """Return the items of all processes in the epoch, in order."""
        generator = _generator(self.seed, self.epoch)
        # Unlike torch.multinomial this takes any number of items.
        draws = torch.rand(self.total, generator=generator, dtype=torch.float64)
        found = torch.searchsorted(self.probabilities.cumsum(0), draws, right=True)
        last = int(self.probabilities.nonzero().max())  # the sum may be a little less than one
        return found.clamp(max=last)


class ShareSampler(Sampler[int]):
    """Give each process its part of all items, every item once: for validation, whose counts the processes then pool.

    The parts may differ in length by one item, so a network that needs all processes in each forward pass (sharded
    weights) must not be validated so; let each process see all items there, which gives the same scores.

    Args:
        data: what has a length.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        InputError: if there are fewer items than processes.
    """

    def __init__(self, data: Sized, rank: int = 0, world_size: int = 1) -> None:
        if len(data) < world_size:
            raise InputError(
                f"{len(data)} validation items cannot be shared by {world_size} processes; give more items or start "
                "fewer processes"
            )
        self.items = range(rank, len(data), world_size)

    def __len__(self) -> int:
        """Items of this process."""
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        """Give this process's items."""
        return iter(self.items)


def class_presence(
    label_map: Callable[[int], Any],
    count: int,
    num_classes: int,
    min_pixels: int = 1,
    ignored_classes: Sequence[int] = (),
) -> Tensor:
    """Look through label maps for the classes that they show.

    Args:
        label_map: gives the label map of an item, integers of any shape; `ImageDataset.label_map` is one.
        count: number of items.
        num_classes: labels from here on, such as that of ignored pixels, are no classes.
        min_pixels: pixels that a class must have to count as shown.
        ignored_classes: classes that are not balanced, such as the background.

    Returns:
        (count, num_classes) bool.
    """
    presence = torch.zeros(count, num_classes, dtype=torch.bool)
    for index in range(count):
        labels, pixels = np.unique(np.asarray(label_map(index)), return_counts=True)
        shown = labels[(pixels >= min_pixels) & (labels >= 0) & (labels < num_classes)]
        presence[index, torch.from_numpy(shown.astype(np.int64))] = True
    presence[:, list(ignored_classes)] = False
    return presence


class SeededDataset(Dataset[Any]):
    """Items whose random transforms depend on seed, epoch and index alone.

    They come out the same however many processes and workers draw them, in whatever order, and after a resume. An item
    that one of the samplers here draws several times in an epoch comes out differently each time. Give the data set
    to `dinomed.handlers.optimisation.EpochOfData`; workers that live longer than an epoch learn of it too.

    Args:
        data: items by index.
        transform: of an item; MONAI's random transforms in a `Compose`, and all that draw from the global generators of
            Python, NumPy and PyTorch.
        seed: of everything drawn.
    """

    def __init__(self, data: Any, transform: Callable[[Any], Any], seed: int = 0) -> None:
        self.data = data
        self.transform = transform
        self.seed = seed
        self._epoch = torch.ones(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        """Draw one item; the global generators are afterwards as they were.

        Raises:
            InputError: if a transform refuses the values that it was given.
        """
        seed = _entropy(self.seed, int(self._epoch), index, getattr(index, "repeat", 0))
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed % 2**32)
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            try:
                return self.transform(self.data[index])
            except RuntimeError as error:
                refusal = _refusal(error)
                if refusal is None:
                    raise
                raise refusal from error
            finally:
                random.setstate(python)
                np.random.set_state(numpy)


def _refusal(error: RuntimeError) -> InputError | None:
    """Tell values that a transform cannot use, which shows only when it is called, from faults of ours.

    Everyone refuses values with a ValueError. A TypeError in MONAI's transforms comes from values too.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    found = APPLYING.search(str(error))
    if found is None or isinstance(cause, DinomedError):
        return None
    module, name = found.groups()
    if isinstance(cause, ValueError) or (isinstance(cause, TypeError) and module.startswith("monai.")):
        said = " ".join(str(cause).split()).rstrip(".")
        return InputError(f"{name} cannot be applied ({said}); correct the values that the config gives it")
    return None


def _entropy(*numbers: int) -> int:
    """Mix whole numbers into one seed, below 2^63."""
    mixed = np.random.SeedSequence([abs(number) for number in numbers]).generate_state(1, np.uint64)[0]
    return int(mixed) >> 1  # of NumPy 1 an unsigned number cannot be shifted by a plain one


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(_entropy(*numbers))
