"""Batches: size, parts and copies. A :class:`lowland.core.cutting.Cutter` takes examples from a batch."""

from __future__ import annotations

import copy as copying
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core.cutting import EMPTY, Cutter, Slices, rebuilt
from lowland.core.errors import ArgumentError, BatchError, StateError


class Parts(Sequence[Any]):
    """One step's batch in parts that cannot be concatenated because they are ragged or padded differently.

    ``engine.backward(Parts([first, second]))`` is one step of the method on all examples: the parts run one
    after the other, and share one perturbation and one step of schedules and cycles. One ``engine.backward`` per part
    would perturb each part by its own gradient. The loss function must return one loss per example, or a ``Loss``.

    Args:
        parts: The parts, at least one; each is a batch as the loss function takes it, of any size.

    Raises:
        BatchError: There is no part, or a part is itself a ``Parts``.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        if isinstance(parts, str | Tensor) or not isinstance(parts, Iterable):
            raise BatchError(
                f"Parts must hold batches, but was given a {type(parts).__name__}; pass a list: Parts([first, second])"
            )
        self._parts = tuple(parts)
        if not self._parts or any(isinstance(part, Parts) for part in self._parts):
            raise BatchError(
                f"Parts must hold at least one batch, and no Parts, but holds {len(self._parts)} entries of types "
                f"{sorted({type(part).__name__ for part in self._parts})}; pass a flat list of batches"
            )

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts)

    def __getitem__(self, index: Any) -> Any:
        return self._parts[index]

    def __repr__(self) -> str:
        return f"Parts({list(self._parts)!r})"


pytree.register_pytree_node(
    Parts, lambda p: (list(p), None), lambda parts, _: Parts(parts), serialized_type_name="lowland.Parts"
)


class Batches:
    """Operations on batches for the methods and executors of one engine.

    Args:
        cutter: An object that gives the size of a batch and takes examples from it.

    Raises:
        ArgumentError: ``cutter`` lacks one of the two methods.
    """

    def __init__(self, cutter: Cutter | None = None) -> None:
        if cutter is not None and (isinstance(cutter, type) or not isinstance(cutter, Cutter)):
            raise ArgumentError(
                f"cut must have the methods size(batch) and take(batch, index), but is {cutter!r}; pass an object such "
                "as Slices(dim=1)"
            )
        self.cutter = cutter or Slices()

    def size(self, batch: Any) -> int:
        """The number of examples, at least one.

        Raises:
            BatchError: The batch is empty, or the cutter does not support it.
        """
        if isinstance(batch, Parts):
            return sum(map(self.size, batch))
        size = self.cutter.size(batch)
        if type(size) is not int:
            raise ArgumentError(
                f"size(batch) of cut must return the number of examples, an int, but returned {size!r}; return "
                "len(batch), or int(…) of a number of another kind"
            )
        if size < 1:
            raise BatchError(f"{EMPTY}, but has {size}; skip empty batches")
        return size

    def known_size(self, batch: Any) -> int | None:
        """The number of examples, or None if the cutter does not support the batch.

        Raises:
            BatchError: The batch is certainly empty.
        """
        try:
            return self.size(batch)
        except BatchError as error:
            if str(error).startswith(EMPTY):
                raise
            return None  # also if one of its tensors is empty, such as the boxes of images without any

    def take(self, batch: Any, index: Tensor | slice) -> Any:
        """The examples at the positions ``index``, in the same order.

        Raises:
            BatchError: The cutter cannot take these examples, or the batch is a ``Parts``.
        """
        if isinstance(batch, Parts):
            raise BatchError(
                "methods that choose examples by their index need one batch, but were given Parts, which may be padded "
                "differently; pass one batch, or use a method that takes all examples"
            )
        return self.cutter.take(batch, index)

    def head(self, batch: Any, count: int) -> Any:
        """The first ``count`` examples."""
        return batch if count >= self.size(batch) else self._runs(batch, [0, count])[0]

    def chunk(self, batch: Any, count: int) -> list[Any]:
        """Cut a batch into ``min(count, B)`` runs of consecutive examples whose sizes differ by at most one.

        ``torch.chunk`` would cut 9 examples into 3 parts when asked for 4. A cut may divide one of the ``Parts``.
        """
        size = self.size(batch)
        count = min(count, size)
        if count == 1:
            return [batch]
        return self._runs(batch, [size // count * i + min(i, size % count) for i in range(count + 1)])

    def split(self, batch: Any, most: int | None) -> list[Any]:
        """Cut a batch into micro-batches of at most ``most`` examples, none across two parts of ``Parts``."""
        if isinstance(batch, Parts):
            return [piece for part in batch for piece in self.split(part, most)]
        if most is None or self.in_one(batch, most):
            return [batch]
        size = self.size(batch)
        return self._runs(batch, [*range(0, size, most), size])

    def in_one(self, batch: Any, most: int | None) -> bool:
        """Whether :meth:`split` leaves the batch as one micro-batch."""
        return not isinstance(batch, Parts) and (most is None or self.size(batch) <= most)

    def copy(self, batch: Any) -> Any:
        """A copy of the batch that shares no memory with it.

        Raises:
            BatchError: An object in it cannot be copied.
        """
        if isinstance(batch, Parts):
            return Parts(map(self.copy, batch))
        return _copy(batch)

    def _runs(self, batch: Any, ends: Sequence[int]) -> list[Any]:
        """Cut a batch into the runs of examples between consecutive ``ends``."""
        if not isinstance(batch, Parts):
            runs = [self.cutter.take(batch, slice(start, end)) for start, end in pairwise(ends)]
            if not isinstance(self.cutter, Slices):
                self._check_taken(runs, ends)
            return runs
        bounds = [0, *accumulate(map(self.size, batch))]
        parts = list(zip(batch, bounds, bounds[1:], strict=False))
        runs = []
        for start, end in pairwise(ends):
            run = [
                part if start <= a and b <= end else self.cutter.take(part, slice(max(start - a, 0), min(end, b) - a))
                for part, a, b in parts
                if a < end and start < b
            ]
            runs.append(run[0] if len(run) == 1 else Parts(run))
        return runs

    def _check_taken(self, runs: list[Any], ends: Sequence[int]) -> None:
        for run, (start, end) in zip(runs, pairwise(ends), strict=True):
            if self.cutter.size(run) != end - start:
                raise BatchError(
                    f"take(batch, index) of cut must return the examples of index, but for slice({start}, {end}) "
                    f"returned a batch of {self.cutter.size(run)}; return these {end - start}, as size(batch) counts"
                )


def rejoined(batches: Sequence[Any], number: int, count: int) -> Any:
    """Concatenate the batches of all ranks, and return part ``number`` of ``count``.

    Raises:
        StateError: A batch has an entry that is not a tensor with a dimension for the examples.
    """

    def divided(*leaves: Any) -> Any:
        """Concatenate one entry of the batches, and return the part of it."""
        if all(leaf is None for leaf in leaves):
            return None
        if not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
            raise StateError(
                f"a kept batch must be made of tensors to be cut anew for {count} ranks, but one of {len(batches)} "
                f"ranks holds a {type(leaves[0]).__name__}; resume on {len(batches)} ranks"
            )
        return torch.cat(leaves).tensor_split(count)[number]

    return pytree.tree_map(divided, *batches)


def _copy(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return _copy_of(batch.detach())
    if batch is None or isinstance(batch, str | bytes | int | float | complex):
        return batch
    if isinstance(batch, tuple | list):
        return rebuilt(batch, [_copy(entry) for entry in batch])
    if isinstance(batch, dict):
        return rebuilt(batch, [_copy(entry) for entry in batch.values()])
    try:
        return copying.deepcopy(batch)
    except Exception as error:
        raise BatchError(
            f"a batch that is kept for the next step must be copied, but a {type(batch).__name__} in it fails "
            f"({error}); give it __deepcopy__, or pass tensors in tuples, lists or dicts"
        ) from error


def _copy_of(t: Tensor) -> Tensor:
    """A copy; in pinned memory if ``t`` is there, because an upload from other memory waits for the GPU."""
    if t.layout is torch.strided and t.is_cpu and t.is_pinned():
        return torch.empty_like(t, pin_memory=True).copy_(t)
    return t.clone()


_default = Batches()
size, take, copy, chunk, split = _default.size, _default.take, _default.copy, _default.chunk, _default.split


def part(fraction: float, count: int) -> int:
    """The number of examples in a fraction in (0, 1] of ``count``: rounded down, at least one.

    Example:
        >>> part(0.5, 7), part(0.1, 3), part(0.29, 100)
        (3, 1, 29)
    """
    return max(1, math.floor(fraction * count + 1e-9))  # 0.29 * 100 is 28.999…


def indices(batch: Any, user: str) -> Tensor:
    """The positions of the examples in the training set, shape ``(B,)``.

    Args:
        batch: ``(inputs, targets, index)``, or a dict with the key ``"index"``.
        user: The name of the method, for the error message.

    Raises:
        BatchError: The batch holds no positions.
    """
    index = None
    if isinstance(batch, dict):
        index = batch.get("index")
    elif isinstance(batch, tuple | list) and len(batch) >= 3:
        index = batch[2]
    integer = isinstance(index, Tensor) and not (index.is_floating_point() or index.is_complex())
    if not isinstance(index, Tensor) or not integer or index.dtype == torch.bool or index.dim() != 1:
        shown = f"a {index.dtype} tensor of shape {tuple(index.shape)}" if isinstance(index, Tensor) else repr(index)
        raise BatchError(
            f"{user} keeps a score for every training example, so the batch must carry their positions, integers of "
            f'shape (B,), as (inputs, targets, index) or under the key "index", but there it has {shown}; let the '
            "data set return them: def __getitem__(self, i): return inputs[i], targets[i], i"
        )
    return index.long()  # torch reads uint8 indices as a mask


def stack(batches: Sequence[Any]) -> Any:
    """Stack batches of equal shapes in a new dimension 0.

    Raises:
        ArgumentError: ``batches`` is empty, or the shapes differ.
    """
    shapes = [[None if t is None else tuple(t.shape) for t in pytree.tree_leaves(b)] for b in batches]
    if not shapes or any(s != shapes[0] for s in shapes):
        raise ArgumentError(f"batches must have equal shapes to be stacked, but are {shapes}; run them apart")
    return pytree.tree_map(lambda *ts: None if ts[0] is None else torch.stack(ts), *batches)
