"""Batches in an order that depends on nothing but the seed and the place in training.

The loader keeps no position. The order of an epoch comes from (seed, epoch), the augmentation of a batch from
(seed, global step); so a run that stopped in the middle of an epoch goes on from its epoch and batch number
alone, and every method sees the same data in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core import checks
from lowland.core.batch import Batches
from lowland.core.cutting import Cutter
from lowland.core.errors import ArgumentError
from lowland.lab.data.streams import stream
from lowland.lab.data.wrapped import dataset

Wanted = Iterable[tuple[Tensor, torch.Generator | None]]


class Loader:
    """Batches of a task for training and for evaluation.

    A last batch that is not full is kept, unless it would hold a single example, on which BatchNorm cannot
    train.

    Args:
        parts: "train", "test" and maybe "validation", as :meth:`lowland.lab.Task.datasets` gives them.
        batch_size: Examples per training batch, >= 1.
        seed: Of order and augmentation, and of what is cut off for validation.
        validation: Share of the training part that is kept for validation, in [0, 1), where the data has no such part.
        device: Where the batches lie; a part that has ``to(device, memory_format)`` is moved once, as it is stored.
        channels_last: Whether images are laid out pixel by pixel, which convolutions in bf16 like.
        drop_last: Leave out every last batch that is not full.
        share: Which part of every batch this rank gets, and into how many equal parts it is cut. Batches are made
            whole and then cut, so that several ranks see what one would.
        cut: How batches are cut; by default tensors along dimension 0.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        batch_size: int,
        seed: int,
        *,
        validation: float = 0.0,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
        cut: Cutter | None = None,
    ) -> None:
        checks.integer("batch_size", batch_size, 1, "take 64 or 128")
        missing = {"train", "test"} - set(parts)
        if missing:
            raise ArgumentError(
                f"datasets() must give the parts train and test, but has no {sorted(missing)[0]}; it has "
                f"{', '.join(parts) or 'none'}"
            )
        self.device = torch.device(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.parts = {name: self._placed(dataset(name, part)) for name, part in parts.items()}
        self.batch_size, self.share, self.seed = batch_size, share, seed
        self._batches = Batches(cut)
        self.index = {name: torch.arange(len(data)) for name, data in self.parts.items()}
        if validation and "validation" not in parts:
            self._cut_off(validation)
        self._steps = self._count(len(self.index["train"]), drop_last)

    def _placed(self, data: Any) -> Any:
        return data.to(self.device, self._format) if callable(getattr(data, "to", None)) else data

    def _cut_off(self, share: float) -> None:
        """Keep a share of the training part for validation, the same one whatever the method."""
        checks.at_least("validation", share, 0, "0.1 keeps a tenth of the training part")
        count = len(self.index["train"])
        kept = round(share * count)
        if not 1 <= kept < count:
            raise ArgumentError(
                f"validation must leave both parts an example, but {share!r} of {count} keeps {kept}; take 0.1"
            )
        order = torch.randperm(count, generator=stream(self.seed, "validation"))
        self.parts["validation"] = self.parts["train"]
        self.index["validation"], self.index["train"] = order[:kept].sort().values, order[kept:].sort().values

    def _count(self, count: int, drop_last: bool) -> int:
        """Batches in an epoch."""
        if self.batch_size % self.share[1]:
            raise ArgumentError(
                f"batch_size must be a multiple of {self.share[1]}, the ranks that divide a batch, but is "
                f"{self.batch_size}; take {self.batch_size // self.share[1] * self.share[1] or self.share[1]}"
            )
        if drop_last and count < self.batch_size:
            raise ArgumentError(
                f"batch_size must be <= {count}, the number of training examples, because only full batches "
                f"are used, but is {self.batch_size}; take a smaller one"
            )
        full, rest = divmod(count, self.batch_size)
        return full if drop_last or (rest < 2 and full) else full + (rest > 0)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._steps

    @property
    def here(self) -> int:
        """Examples of a training batch that this rank gets."""
        return self.batch_size // self.share[1]

    @property
    def examples(self) -> int:
        """Examples that training draws from."""
        return len(self.index["train"])

    @property
    def positions(self) -> int:
        """One more than the largest position that a training batch can hold."""
        return len(self.parts["train"])

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The training batches of ``epoch`` (counted from 0), from batch ``start`` on."""
        checks.integer("epoch", epoch, 0, "the first epoch is 0")
        checks.integer("start", start, 0, "0 is the first batch of the epoch")
        order = torch.randperm(self.examples, generator=stream(self.seed, "order", epoch))
        order = self.index["train"][order]

        def wanted() -> Iterator[tuple[Tensor, torch.Generator]]:
            for batch in range(start, self._steps):
                index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield index, stream(self.seed, "augmentation", epoch * self._steps + batch)

        for whole in self._made("train", wanted()):
            yield whole if self.share[1] == 1 else self._part(whole)

    def evaluation(self, batch_size: int = 1000, part: str = "test", most: int | None = None) -> Iterator[Any]:
        """All examples of a part once, in stored order, without augmentation; or the first of them."""
        checks.integer("batch_size", batch_size, 1, "take 1000")
        checks.one_of("part", part, tuple(self.parts))
        yield from self._made(part, ((index, None) for index in torch.split(self.index[part][:most], batch_size)))

    def _made(self, part: str, wanted: Wanted) -> Iterator[Any]:
        data = self.parts[part]
        made = data.stream(wanted) if callable(getattr(data, "stream", None)) else (data.batch(*w) for w in wanted)
        for batch in made:
            yield batch if callable(getattr(data, "to", None)) else pytree.tree_map(self._moved, batch)

    def _moved(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.to(self.device)
        return leaf.contiguous(memory_format=self._format) if leaf.ndim == 4 and leaf.is_floating_point() else leaf

    def _part(self, whole: Any) -> Any:
        """This rank's examples; images keep their layout."""
        number, count = self.share
        part = self._batches.chunk(whole, count)[number]
        keep = torch.preserve_format
        return pytree.tree_map(lambda t: t.clone(memory_format=keep) if isinstance(t, Tensor) else t, part)
