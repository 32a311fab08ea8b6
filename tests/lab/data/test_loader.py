from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from waiting import NoWaiting

from lowland.core.errors import ArgumentError
from lowland.lab.data.images import Augmentation, ImageSet
from lowland.lab.data.loader import Loader
from lowland.lab.tasks.digits import Digits


def task(count: int, augmentation: Augmentation | None = None) -> dict[str, Any]:
    """Image i is filled with the value i, and its label is i % 3."""
    images = torch.arange(count).reshape(-1, 1, 1, 1).expand(-1, 2, 4, 4).to(torch.uint8).contiguous()
    targets = torch.arange(count) % 3
    return ImageSet(
        name="tiny",
        train_inputs=images,
        train_targets=targets,
        clean_targets=targets,
        test_inputs=images[:5] + 100,
        test_targets=targets[:5],
        classes=3,
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
        augmentation=augmentation,
    ).parts()


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_epoch_shows_every_example_once() -> None:
    loader = Loader(task(20), 6, seed=0)
    batches = list(loader.batches(0))
    assert len(batches) == len(loader) == 4
    assert [len(index) for _, _, index in batches] == [6, 6, 6, 2]
    assert sorted(torch.cat([index for _, _, index in batches]).tolist()) == list(range(20))
    for inputs, targets, index in batches:
        assert inputs.dtype == torch.float32
        assert torch.equal(inputs[:, 0, 0, 0].long(), index)
        assert torch.equal(targets, index % 3)


@pytest.mark.parametrize(
    ("count", "batch_size", "drop_last", "sizes"),
    [
        (20, 6, True, [6, 6, 6]),
        (19, 6, False, [6, 6, 6]),  # one example is left: BatchNorm cannot train on it
        (18, 6, False, [6, 6, 6]),
        (4, 10, False, [4]),
        (3, 1, False, [1, 1, 1]),
        (1, 10, False, [1]),
    ],
)
def test_the_last_batch(count: int, batch_size: int, drop_last: bool, sizes: list[int]) -> None:
    loader = Loader(task(count), batch_size, seed=0, drop_last=drop_last)
    assert [len(index) for _, _, index in loader.batches(0)] == sizes
    assert len(loader) == len(sizes)


def test_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batches = Loader(task(20), 6, seed=seed).batches(epoch)
        return tuple(torch.cat([index for _, _, index in batches]).tolist())

    orders = {(s, e): order(s, e) for s, e in itertools.product(range(3), range(3))}
    assert len(set(orders.values())) == 9
    assert orders[1, 2] == order(1, 2)


def test_resume_in_the_middle_of_an_epoch_is_bit_equal() -> None:
    made = task(50, Augmentation(padding=2))
    whole = [list(Loader(made, 8, seed=5).batches(epoch)) for epoch in range(3)]
    torch.manual_seed(123)
    for epoch, start in ((0, 0), (1, 3), (2, 6), (2, 7)):
        resumed = list(Loader(made, 8, seed=5).batches(epoch, start=start))
        assert len(resumed) == 7 - start
        assert all(same(a, b) for a, b in zip(resumed, whole[epoch][start:], strict=True))


def test_augmentation_is_another_one_each_step_and_seed() -> None:
    flip = Augmentation(padding=1)
    made = task(8, flip)
    images = {
        (seed, epoch): next(iter(Loader(made, 8, seed=seed).batches(epoch)))[0].sum((1, 2, 3)).sort().values
        for seed, epoch in itertools.product(range(2), range(3))
    }
    # Sorted sums of the crops: independent of the order, so a difference is the augmentation's.
    assert len({tuple(v.tolist()) for v in images.values()}) == 6


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    made = task(16, Augmentation())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(Loader(made, 4, seed=0).batches(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(same(a, b) for a, b in zip(first, Loader(made, 4, seed=0).batches(0), strict=True))


@pytest.mark.parametrize(("part", "count", "first"), [("test", 5, 100), ("train", 20, 0)])
def test_evaluation_is_in_stored_order_and_not_augmented(part: str, count: int, first: int) -> None:
    loader = Loader(task(20, Augmentation()), 6, seed=0)
    batches = list(loader.evaluation(3, part=part))
    index = torch.cat([index for _, _, index in batches])
    inputs = torch.cat([inputs for inputs, _, _ in batches])
    assert index.tolist() == list(range(count))
    assert (inputs == (index + first).reshape(-1, 1, 1, 1)).all()
    assert max(len(index) for _, _, index in batches) == 3


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_layout(channels_last: bool) -> None:
    loader = Loader(task(20, Augmentation()), 6, seed=0, channels_last=channels_last)
    for batches in (loader.batches(0), loader.evaluation()):
        inputs, _, _ = next(batches)
        assert inputs.is_contiguous(memory_format=torch.channels_last) == channels_last
    plain = Loader(task(20, Augmentation()), 6, seed=0)
    assert same(next(loader.batches(1)), next(plain.batches(1)))


def test_noisy_labels_are_trained_on_and_clean_ones_tested() -> None:
    loader = Loader(Digits(noise=0.5).datasets(None), 64, seed=0)
    _, targets, index = next(loader.batches(0))
    clean = Digits().images(None)
    assert 0.3 < float((targets != clean.train_targets[index]).float().mean()) < 0.7
    _, targets, index = next(loader.evaluation())
    assert torch.equal(targets, clean.test_targets[index])


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_bad_batch_size(batch_size: object) -> None:
    with pytest.raises(ArgumentError, match="batch_size must be an integer >= 1"):
        Loader(task(20), batch_size, seed=0)  # type: ignore[arg-type]


def test_drop_last_that_leaves_nothing() -> None:
    with pytest.raises(ArgumentError, match="batch_size must be <= 20"):
        Loader(task(20), 21, seed=0, drop_last=True)


def test_bad_position() -> None:
    loader = Loader(task(20), 6, seed=0)
    with pytest.raises(ArgumentError, match="epoch must be an integer >= 0"):
        next(loader.batches(-1))
    with pytest.raises(ArgumentError, match="start must be an integer >= 0"):
        next(loader.batches(0, start=-1))
    with pytest.raises(ArgumentError, match="part must be one of"):
        next(loader.evaluation(part="validation"))  # type: ignore[arg-type]


class Pairs(torch.utils.data.Dataset[Any]):
    """Examples that a loader stacks and moves itself."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((2, 3, 3), float(index)), index


def test_batches_go_to_a_gpu_without_a_wait() -> None:
    """The device "meta" stands for the GPU."""
    loader = Loader({"train": Pairs(), "test": Pairs()}, 4, seed=0, device="meta")
    with NoWaiting() as guard:
        batches = list(loader.batches(0))
    assert {t.device.type for batch in batches for t in batch} == {"meta"}
    assert guard.copies >= 4  # of inputs and targets
