"""Batches in an order that depends on nothing but the seed and the place in training.

The loader keeps no position. The order of an epoch comes from (seed, epoch), the augmentation of a batch from
(seed, global step); so a run that stopped in the middle of an epoch goes on from its epoch and batch number
alone, and every method sees the same data in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.lab.data.streams import stream
from lowland.lab.task import Task

Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs (B, C, H, W) float32, targets (B,) int64, index (B,) int64 of the examples in their part."""


class Loader:
    """Batches of a task for training and for evaluation.

    A last batch that is not full is kept, unless it would hold a single example, on which BatchNorm cannot
    train.

    Args:
        task: Where the images are from; they are moved to ``device`` once, as they are stored.
        batch_size: Examples per training batch, >= 1.
        seed: Of order and augmentation.
        device: Where the batches lie.
        channels_last: Whether inputs are laid out pixel by pixel, which convolutions in bf16 like.
        drop_last: Leave out every last batch that is not full.
        share: Which part of every batch this rank gets, and into how many equal parts it is cut. Batches are made
            whole and then cut, so that several ranks see what one would.
    """

    def __init__(
        self,
        task: Task,
        batch_size: int,
        seed: int,
        *,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        checks.whole("batch_size", batch_size, 1, "take 64 or 128")
        count = len(task.train_targets)
        if batch_size % share[1]:
            raise ArgumentError(
                f"batch_size must be a multiple of {share[1]}, the ranks that divide a batch, but is {batch_size}; "
                f"take {batch_size // share[1] * share[1] or share[1]}"
            )
        if drop_last and count < batch_size:
            raise ArgumentError(
                f"batch_size must be <= {count}, the number of training examples, because only full batches "
                f"are used, but is {batch_size}; take a smaller one"
            )
        self.task = task
        self.batch_size = batch_size
        self.share = share
        self.seed = seed
        self.device = torch.device(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._train = (task.train_inputs.to(self.device), task.train_targets.to(self.device))
        self._test = (task.test_inputs.to(self.device), task.test_targets.to(self.device))
        full, rest = divmod(count, batch_size)
        self._steps = full if drop_last or (rest < 2 and full) else full + (rest > 0)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The training batches of ``epoch`` (counted from 0), from batch ``start`` on."""
        checks.whole("epoch", epoch, 0, "the first epoch is 0")
        checks.whole("start", start, 0, "0 is the first batch of the epoch")
        order = torch.randperm(len(self.task.train_targets), generator=stream(self.seed, "order", epoch))
        order = order.to(self.device)
        for batch in range(start, self._steps):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            whole = self._batch(self._train, index, augment=epoch * self._steps + batch)
            yield whole if self.share[1] == 1 else self._part(whole)

    def evaluation(self, batch_size: int = 1000, part: Literal["train", "test"] = "test") -> Iterator[Batch]:
        """All examples of a part once, in stored order, without augmentation."""
        checks.whole("batch_size", batch_size, 1, "take 1000")
        checks.one_of("part", part, ("train", "test"))
        source = self._train if part == "train" else self._test
        for index in torch.split(torch.arange(len(source[1]), device=self.device), batch_size):
            yield self._batch(source, index)

    def _part(self, whole: Batch) -> Batch:
        number, count = self.share
        inputs, targets, index = (t.tensor_split(count)[number] for t in whole)
        return inputs.clone(memory_format=torch.preserve_format), targets, index

    def _batch(self, source: tuple[Tensor, Tensor], index: Tensor, augment: int | None = None) -> Batch:
        inputs, targets = source[0][index], source[1][index]
        if augment is not None and self.task.augmentation is not None:
            inputs = self.task.augmentation(inputs, stream(self.seed, "augmentation", augment))
        return self.task.normalize(inputs, self._format), targets, index
