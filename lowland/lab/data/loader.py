"""Loads batches in an order that depends only on the seed and the position in training.

The loader has no state. The seed and the epoch determine the order of an epoch; the seed and the step determine the
augmentation of a batch. So a run resumes inside an epoch from its epoch and batch numbers, and every method gets the
same data in the same order.
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
from lowland.core.transfer import to_device
from lowland.lab.data.streams import stream
from lowland.lab.data.wrapped import dataset

Requests = Iterable[tuple[Tensor, torch.Generator | None]]  # positions (B,) and generator of each batch

# Examples of a batch in evaluation. On a core of an AMD EPYC, 10,000 images of CIFAR-10 take the convolutional network
# 2.3 s in batches of 128 or 256 (bf16), and 4.6 s in batches of 1,000, whose activations do not fit into the caches.
EVALUATED = {"cpu": 128, "accelerator": 1000}


class Loader:
    """Batches of a task for training and for evaluation.

    An incomplete last batch is kept, unless it has a single example, because BatchNorm cannot train on one example.

    Args:
        parts: "train", "test" and possibly "validation", as :meth:`lowland.lab.Task.datasets` returns them.
        batch_size: Examples per training batch, >= 1.
        seed: The seed of the order, the augmentation and the validation split.
        validation: The fraction of the training part that is held out for validation, in [0, 1), if the data has no
            validation part.
        device: The device of the batches. A part with a method ``to(device, memory_format)`` is moved once, as a whole.
        channels_last: Use the channels_last memory format for images.
        drop_last: Leave out an incomplete last batch.
        batch_part: The part of every training batch that this rank gets: its index and the number of equal parts. The
            loader makes the full batch and then cuts it, so that several ranks see the same examples as one.
        cut: The object that cuts batches; by default tensors are cut along dimension 0.

    Raises:
        ArgumentError: A part is missing, or a number does not fit the number of training examples or ranks.
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
        batch_part: tuple[int, int] = (0, 1),
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
        self.batch_size, self.batch_part, self.seed = batch_size, batch_part, seed
        self._batches = Batches(cut)
        self.index = {name: torch.arange(len(data)) for name, data in self.parts.items()}
        if validation and "validation" not in parts:
            self._hold_out(validation)
        self._steps = self._batches_per_epoch(len(self.index["train"]), drop_last)

    def _placed(self, data: Any) -> Any:
        return data.to(self.device, self._format) if callable(getattr(data, "to", None)) else data

    def _hold_out(self, fraction: float) -> None:
        """Hold out a fraction of the training part for validation; the seed alone decides which examples."""
        checks.at_least("validation", fraction, 0, "0.1 keeps a tenth of the training part")
        count = len(self.index["train"])
        kept = round(fraction * count)
        if not 1 <= kept < count:
            raise ArgumentError(
                f"validation must leave both parts an example, but {fraction!r} of {count} keeps {kept}; take 0.1"
            )
        order = torch.randperm(count, generator=stream(self.seed, "validation"))
        self.parts["validation"] = self.parts["train"]
        self.index["validation"], self.index["train"] = order[:kept].sort().values, order[kept:].sort().values

    def _batches_per_epoch(self, count: int, drop_last: bool) -> int:
        """The number of batches in an epoch of ``count`` examples."""
        _, parts = self.batch_part
        if self.batch_size % parts:
            raise ArgumentError(
                f"batch_size must be a multiple of {parts}, the ranks that divide a batch, but is "
                f"{self.batch_size}; take {self.batch_size // parts * parts or parts}"
            )
        if drop_last and count < self.batch_size:
            raise ArgumentError(
                f"batch_size must be <= {count}, the number of training examples, because only full batches "
                f"are used, but is {self.batch_size}; take a smaller one"
            )
        full, rest = divmod(count, self.batch_size)
        return full if drop_last or (rest < 2 and full) else full + (rest > 0)

    def __len__(self) -> int:
        """The number of training batches in an epoch."""
        return self._steps

    @property
    def local_batch_size(self) -> int:
        """The number of examples of a training batch on this rank."""
        return self.batch_size // self.batch_part[1]

    @property
    def examples(self) -> int:
        """The number of training examples, without those held out for validation."""
        return len(self.index["train"])

    @property
    def positions(self) -> int:
        """The number of positions of the training part, including those held out for validation."""
        return len(self.parts["train"])

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the training batches of ``epoch`` (counted from 0), beginning with batch ``start``."""
        checks.integer("epoch", epoch, 0, "the first epoch is 0")
        checks.integer("start", start, 0, "0 is the first batch of the epoch")
        order = torch.randperm(self.examples, generator=stream(self.seed, "order", epoch))
        order = self.index["train"][order]

        def requests() -> Iterator[tuple[Tensor, torch.Generator]]:
            for batch in range(start, self._steps):
                index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield index, stream(self.seed, "augmentation", epoch * self._steps + batch)

        for batch in self._load("train", requests()):
            yield batch if self.batch_part[1] == 1 else self._local(batch)

    def evaluation(self, batch_size: int | None = None, part: str = "test", most: int | None = None) -> Iterator[Any]:
        """Yield all examples of a part once, in stored order and without augmentation.

        Args:
            batch_size: Examples per batch, >= 1; None takes a size that suits the device, see :data:`EVALUATED`.
            part: The name of the part.
            most: Only the first ``most`` examples; None for all.
        """
        if batch_size is None:
            batch_size = EVALUATED["cpu" if self.device.type == "cpu" else "accelerator"]
        checks.integer("batch_size", batch_size, 1, "None suits the device")
        checks.one_of("part", part, tuple(self.parts))
        yield from self._load(part, ((index, None) for index in torch.split(self.index[part][:most], batch_size)))

    def _load(self, part: str, requests: Requests) -> Iterator[Any]:
        data = self.parts[part]
        streams = callable(getattr(data, "stream", None))
        for batch in data.stream(requests) if streams else (data.batch(*request) for request in requests):
            yield batch if callable(getattr(data, "to", None)) else pytree.tree_map(self._move, batch)

    def _move(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = to_device(leaf, self.device)
        return leaf.contiguous(memory_format=self._format) if leaf.ndim == 4 and leaf.is_floating_point() else leaf

    def _local(self, batch: Any) -> Any:
        """This rank's part of a batch; tensors keep their memory format."""
        index, count = self.batch_part
        part = self._batches.chunk(batch, count)[index]
        keep = torch.preserve_format
        return pytree.tree_map(lambda t: t.clone(memory_format=keep) if isinstance(t, Tensor) else t, part)
