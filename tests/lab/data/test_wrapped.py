"""Torch's data sets and loaders as batches by position."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lowland.core.errors import ArgumentError
from lowland.lab.data.loader import Loader
from lowland.lab.data.wrapped import Items, dataset


class Augmented(Dataset[Any]):
    """Items that draw from all three kinds of global random numbers."""

    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[int, Tensor]:
        return i, torch.tensor([float(torch.rand(())), random.random(), np.random.rand()], dtype=torch.float64)


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield 1


def batches(workers: int, epoch: int = 0, seed: int = 3, start: int = 0) -> list[Any]:
    data = DataLoader(Augmented(), num_workers=workers)
    return list(Loader({"train": data, "test": data}, 6, seed).batches(epoch, start))


def equal(one: list[Any], other: list[Any]) -> bool:
    same = (torch.equal(p, q) for a, b in zip(one, other, strict=True) for p, q in zip(a, b, strict=True))
    return all(same)


def test_workers_change_nothing() -> None:
    alone = batches(0)
    assert [len(i) for i, _ in alone] == [6, 6, 6, 2]
    assert equal(batches(2), alone)
    assert equal(batches(2, start=2), alone[2:])


def test_workers_leave_the_global_random_numbers_alone() -> None:
    # Dropout draws from them: with other numbers, two workers would train otherwise than none, and a resume, too.
    for workers in (0, 2):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        batches(workers)
        after = float(torch.rand(())), random.random(), np.random.rand()
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        assert after == (float(torch.rand(())), random.random(), np.random.rand()), workers


def test_random_numbers_of_items_belong_to_their_place_in_training() -> None:
    torch.manual_seed(5)
    once = batches(0)
    torch.manual_seed(6)
    assert equal(batches(0), once)
    numbers = torch.cat([drawn for _, drawn in once])
    assert len(numbers.unique(dim=0)) == 20  # every item has its own
    assert all(len(column.unique()) == 20 for column in numbers.T)  # of each of the three kinds
    assert not torch.equal(torch.cat([drawn for _, drawn in batches(0, epoch=1)]), numbers)
    assert not torch.equal(torch.cat([drawn for _, drawn in batches(0, seed=4)]), numbers)


def test_in_evaluation_an_item_draws_the_same_in_any_batch() -> None:
    loader = Loader({"train": Augmented(), "test": Augmented()}, 6, 0)
    whole = [torch.cat(column) for column in zip(*loader.evaluation(20), strict=True)]
    parts = [torch.cat(column) for column in zip(*loader.evaluation(7), strict=True)]
    assert equal([whole], [parts])
    assert whole[0].tolist() == list(range(20))
    assert len(whole[1].unique(dim=0)) == 20


def test_a_loader_s_collate_and_workers_are_used_and_its_order_is_not() -> None:
    given = DataLoader(Augmented(5), batch_size=2, shuffle=True, collate_fn=lambda items: [i for i, _ in items])
    made = dataset("train", given)
    assert len(made) == 5
    assert made.batch(torch.tensor([4, 0, 2]), None) == [4, 0, 2]
    assert dataset("train", DataLoader(Augmented(5), num_workers=2)).workers == 2


def test_a_torch_data_set_is_collated() -> None:
    x, y = torch.randn(4, 2), torch.arange(4)
    got = dataset("test", TensorDataset(x, y)).batch(torch.tensor([3, 1]), None)
    assert torch.equal(got[0], x[[3, 1]])
    assert torch.equal(got[1], y[[3, 1]])
    assert torch.equal(dataset("test", [1.0, 2.0]).batch(torch.tensor([1]), None), torch.tensor([2.0]))


def test_an_error_in_an_item_leaves_the_random_numbers_as_they_were() -> None:
    before = torch.get_rng_state()
    with pytest.raises(IndexError):
        Items([1]).batch(torch.tensor([7]), None)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_makes_whole_batches_is_left_as_it_is() -> None:
    class Own:
        def __len__(self) -> int:
            return 3

        def batch(self, index: Tensor, generator: torch.Generator | None) -> Any:
            return index

    own = Own()
    assert dataset("train", own) is own


@pytest.mark.parametrize(("part", "reason"), [
    (Endless(), "it has no positions: Endless"),
    (DataLoader(Endless()), "an iterable data set has no positions: DataLoader"),
    ((i for i in range(3)), "it has no positions: generator"),
    ({1, 2}, "it has no positions: set"),
    ([], "it is empty: list"),
    (DataLoader(TensorDataset(torch.zeros(0))), "it is empty: DataLoader"),
])  # fmt: skip
def test_refused(part: Any, reason: str) -> None:
    with pytest.raises(ArgumentError, match=rf"datasets\(\)\['train'\] must be a torch Dataset.*, but {reason}"):
        dataset("train", part)
