"""A torch ``Dataset`` or ``DataLoader`` as batches by position, with random numbers that the position decides."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from lowland.core.errors import ArgumentError


class Items:
    """Items of a map-style data set, collated to batches; one in the order of a training, whoever loads it.

    An item's own random numbers, such as its augmentation's, are seeded before it is fetched: torch's, Python's and
    NumPy's. So they depend on the seed and the place in training, not on the number of workers.

    Args:
        data: With ``__len__`` and ``__getitem__``.
        collate: From a list of items to a batch.
        workers: Processes that fetch items, >= 0.
    """

    def __init__(self, data: Any, collate: Callable[[list[Any]], Any] = default_collate, workers: int = 0) -> None:
        self.items, self.collate, self.workers = data, collate, workers

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, index: Tensor, generator: torch.Generator | None) -> Any:
        """The items at these positions, collated."""
        return next(iter(self.stream([(index, generator)])))

    def stream(self, wanted: Iterable[tuple[Tensor, torch.Generator | None]]) -> Iterator[Any]:
        """Batches in this order, fetched ahead by the workers."""
        plan = (list(zip(index.tolist(), _seeds(g, index), strict=True)) for index, g in wanted)
        if not self.workers:
            fetch = _Seeded(self.items)
            yield from (self.collate([fetch[pair] for pair in pairs]) for pairs in plan)
            return
        fetching: Any = _Seeded(self.items)
        yield from DataLoader(
            fetching,
            batch_sampler=_Plan(plan),
            collate_fn=self.collate,
            num_workers=self.workers,
            generator=torch.Generator(),  # or it would draw from the global numbers, which dropout draws from
        )


class _Plan:
    """What a DataLoader takes for a sampler of batches."""

    def __init__(self, batches: Iterable[list[Any]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._batches)


class _Seeded:
    """A data set whose items are fetched with random numbers of their own; the global ones go on as they were."""

    def __init__(self, data: Any) -> None:
        self.items = data

    def __getitem__(self, pair: tuple[int, int]) -> Any:
        position, seed = pair
        numpy = sys.modules.get("numpy")
        before = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        try:
            return self.items[position]
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            if numpy is not None:
                numpy.random.set_state(before[2])


def _seeds(generator: torch.Generator | None, index: Tensor) -> list[int]:
    """A seed for each item; in evaluation its position, whatever batch it is in."""
    seeds = index if generator is None else torch.randint(2**62, index.shape, generator=generator)
    return [int(seed) for seed in seeds.tolist()]


def dataset(name: str, part: Any) -> Any:
    """A part of a task's data as a :class:`lowland.lab.task.Dataset`.

    Args:
        name: The part's name, for errors.
        part: A ``Dataset`` of lowland's, a torch ``Dataset``, a sequence of items, or a ``DataLoader``.

    Raises:
        ArgumentError: It is none of these, has no length, or is empty.
    """
    if callable(getattr(part, "batch", None)) and hasattr(part, "__len__"):
        found = part
    elif isinstance(part, DataLoader):
        if isinstance(part.dataset, IterableDataset):
            raise _unusable(name, part, "an iterable data set has no positions")
        found = Items(part.dataset, part.collate_fn, part.num_workers)
    elif isinstance(part, IterableDataset) or not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        raise _unusable(name, part, "it has no positions")
    else:
        found = Items(part)
    if len(found) == 0:
        raise _unusable(name, part, "it is empty")
    return found


def _unusable(name: str, part: Any, reason: str) -> ArgumentError:
    return ArgumentError(
        f"datasets()[{name!r}] must be a torch Dataset, a DataLoader of one, or an object with __len__ and "
        f"batch(index, generator), but {reason}: {type(part).__name__}; see lowland.lab.Dataset"
    )
