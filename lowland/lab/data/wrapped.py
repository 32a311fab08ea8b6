"""Adapts a torch ``Dataset`` or ``DataLoader`` to lowland's ``Dataset``, with reproducible random numbers."""

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
    """Batches of a map-style data set, the same for every number of workers.

    The global random numbers of torch, Python and NumPy are seeded before each item is loaded. So an item's
    augmentation depends on the seed and the position in training, not on the number of workers.

    Args:
        data: An object with ``__len__`` and ``__getitem__``.
        collate: A function from a list of items to a batch.
        workers: The number of processes that load items, >= 0.
    """

    def __init__(self, data: Any, collate: Callable[[list[Any]], Any] = default_collate, workers: int = 0) -> None:
        self.items, self.collate, self.workers = data, collate, workers

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, index: Tensor, generator: torch.Generator | None) -> Any:
        """The items at these positions, collated."""
        return next(iter(self.stream([(index, generator)])))

    def stream(self, wanted: Iterable[tuple[Tensor, torch.Generator | None]]) -> Iterator[Any]:
        """The batches in this order; workers load items in advance.

        Args:
            wanted: For each batch, positions of shape ``(B,)`` and a generator, as :meth:`batch` takes them.
        """
        plan = (list(zip(index.tolist(), _seeds(g, index), strict=True)) for index, g in wanted)
        items: Any = _Seeded(self.items)
        if not self.workers:
            yield from (self.collate(items.__getitems__(pairs)) for pairs in plan)
            return
        yield from DataLoader(
            items,
            batch_sampler=_BatchSampler(plan),
            collate_fn=self.collate,
            num_workers=self.workers,
            generator=torch.Generator(),  # keeps the DataLoader from drawing global random numbers, as dropout does
        )


class _BatchSampler:
    """A batch sampler for a DataLoader: batches of pairs of position and seed."""

    def __init__(self, batches: Iterable[list[Any]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._batches)


class _Seeded:
    """A data set for pairs of position and seed; it seeds the global random numbers and then restores them."""

    def __init__(self, data: Any) -> None:
        self.items = data

    def __getitems__(self, pairs: list[tuple[int, int]]) -> list[Any]:
        """The items of a batch, as a DataLoader asks for them. Saving the states is slow, so it is done once."""
        numpy = sys.modules.get("numpy")
        before = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
        try:
            return [self._item(position, seed, numpy) for position, seed in pairs]
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            if numpy is not None:
                numpy.random.set_state(before[2])

    def _item(self, position: int, seed: int, numpy: Any) -> Any:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        return self.items[position]


def _seeds(generator: torch.Generator | None, index: Tensor) -> list[int]:
    """A seed for each item; in evaluation the item's position, so that the seed does not depend on the batch."""
    seeds = index if generator is None else torch.randint(2**62, index.shape, generator=generator)
    return [int(seed) for seed in seeds.tolist()]


def dataset(name: str, part: Any) -> Any:
    """A part of a task's data as a :class:`lowland.lab.task.Dataset`.

    Args:
        name: The name of the part, for error messages.
        part: A lowland ``Dataset``, a torch ``Dataset``, a sequence of items, or a ``DataLoader``.

    Raises:
        ArgumentError: The part has another type, has no length, or is empty.
    """
    if callable(getattr(part, "batch", None)) and hasattr(part, "__len__"):
        data = part
    elif isinstance(part, DataLoader):
        if isinstance(part.dataset, IterableDataset):
            raise _unusable(name, part, "an iterable data set has no positions")
        data = Items(part.dataset, part.collate_fn, part.num_workers)
    elif isinstance(part, IterableDataset) or not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        raise _unusable(name, part, "it has no positions")
    else:
        data = Items(part)
    if len(data) == 0:
        raise _unusable(name, part, "it is empty")
    return data


def _unusable(name: str, part: Any, reason: str) -> ArgumentError:
    return ArgumentError(
        f"datasets()[{name!r}] must be a torch Dataset, a DataLoader of one, or an object with __len__ and "
        f"batch(index, generator), but {reason}: {type(part).__name__}; see lowland.lab.Dataset"
    )
