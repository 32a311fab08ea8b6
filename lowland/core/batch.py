"""Batches: their size, parts of them, and copies; how one is cut is a :class:`lowland.core.cutting.Cutter`'s affair."""

from __future__ import annotations

import copy as copying
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core.cutting import Cutter, Slices, rebuilt
from lowland.core.errors import ArgumentError, BatchError, StateError


class Parts(Sequence[Any]):
    """One step's batch in parts that cannot be concatenated, because they are ragged or padded differently.

    ``engine.backward(Parts([first, second]))`` is the method on all examples together, run part after part: one
    perturbation, one step of schedules and cycles. Calling ``engine.backward`` once per part instead perturbs each part
    by its own gradient. The loss function must say what it sums: it returns one loss per example, or a ``Loss``.

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
    """What the methods and executors of one engine do with batches.

    Args:
        cutter: Knows the size of a batch and takes examples from it.

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
            BatchError: There are none, or the cutter does not know the batch.
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
            raise BatchError(f"a batch must hold at least one example, but has {size}; skip empty batches")
        return size

    def known_size(self, batch: Any) -> int | None:
        """The number of examples, or None where the cutter does not know the batch, which then cannot be cut.

        Raises:
            BatchError: The batch is certainly empty.
        """
        try:
            return self.size(batch)
        except BatchError as error:
            if "has 0" in str(error):
                raise
            return None

    def take(self, batch: Any, index: Tensor | slice) -> Any:
        """The examples that ``index`` names, in its order.

        Raises:
            BatchError: The batch cannot be cut so; a batch in parts has no common order of examples.
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
        """Exactly ``min(count, B)`` runs of examples whose sizes differ by at most one.

        ``torch.chunk`` would cut 9 examples into 3 parts when asked for 4. A cut may go through one of ``Parts``.
        """
        size = self.size(batch)
        count = min(count, size)
        if count == 1:
            return [batch]
        return self._runs(batch, [size // count * i + min(i, size % count) for i in range(count + 1)])

    def split(self, batch: Any, most: int | None) -> list[Any]:
        """What runs in one forward pass each: the parts of ``Parts``, none of more than ``most`` examples."""
        if isinstance(batch, Parts):
            return [piece for part in batch for piece in self.split(part, most)]
        if most is None or self.in_one(batch, most):
            return [batch]
        size = self.size(batch)
        return self._runs(batch, [*range(0, size, most), size])

    def in_one(self, batch: Any, most: int | None) -> bool:
        """Whether :meth:`split` leaves it as it is."""
        return not isinstance(batch, Parts) and (most is None or self.size(batch) <= most)

    def copy(self, batch: Any) -> Any:
        """A batch that shares no memory with this one.

        Raises:
            BatchError: An object in it cannot be copied.
        """
        if isinstance(batch, Parts):
            return Parts(map(self.copy, batch))
        return _copy(batch)

    def _runs(self, batch: Any, ends: Sequence[int]) -> list[Any]:
        """Runs of examples between consecutive ``ends``."""
        if not isinstance(batch, Parts):
            runs = [self.cutter.take(batch, slice(start, end)) for start, end in pairwise(ends)]
            if not isinstance(self.cutter, Slices):
                self._check_taken(runs, ends)
            return runs
        edges = [0, *accumulate(map(self.size, batch))]
        places = list(zip(batch, edges, edges[1:], strict=False))
        found = []
        for start, end in pairwise(ends):
            run = [
                part if start <= a and b <= end else self.cutter.take(part, slice(max(start - a, 0), min(end, b) - a))
                for part, a, b in places
                if a < end and start < b
            ]
            found.append(run[0] if len(run) == 1 else Parts(run))
        return found

    def _check_taken(self, runs: list[Any], ends: Sequence[int]) -> None:
        for run, (start, end) in zip(runs, pairwise(ends), strict=True):
            if self.cutter.size(run) != end - start:
                raise BatchError(
                    f"take(batch, index) of cut must return the examples of index, but for slice({start}, {end}) "
                    f"returned a batch of {self.cutter.size(run)}; return these {end - start}, as size(batch) counts"
                )


def rejoined(held: Sequence[Any], number: int, count: int) -> Any:
    """One of ``count`` ranks' part of batches that other ranks have held, put together and cut anew.

    Raises:
        StateError: They hold something else than tensors with a dimension for the examples.
    """

    def divided(*leaves: Any) -> Any:
        if all(leaf is None for leaf in leaves):
            return None
        if not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
            raise StateError(
                f"a held batch must be made of tensors to be cut anew for {count} ranks, but one of {len(held)} ranks "
                f"holds a {type(leaves[0]).__name__}; resume on {len(held)} ranks"
            )
        return torch.cat(leaves).tensor_split(count)[number]

    return pytree.tree_map(divided, *held)


def _copy(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.detach().clone()
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


_default = Batches()
size, take, copy, chunk, split = _default.size, _default.take, _default.copy, _default.chunk, _default.split


def part(share: float, count: int) -> int:
    """How many of ``count`` examples a share in (0, 1] is: rounded down, at least one.

    Example:
        >>> part(0.5, 7), part(0.1, 3), part(0.29, 100)
        (3, 1, 29)
    """
    return max(1, math.floor(share * count + 1e-9))  # 0.29 * 100 is 28.999…


def indices(batch: Any, user: str) -> Tensor:
    """Where the examples stand in the training set, shape ``(B,)``: the third entry, or the key ``"index"``.

    Args:
        batch: ``(inputs, targets, index)``, or a dict with ``"index"``.
        user: Who needs them, for the message.

    Raises:
        BatchError: There are none.
    """
    found = None
    if isinstance(batch, dict):
        found = batch.get("index")
    elif isinstance(batch, tuple | list) and len(batch) >= 3:
        found = batch[2]
    whole = isinstance(found, Tensor) and not (found.is_floating_point() or found.is_complex())
    if not isinstance(found, Tensor) or not whole or found.dtype == torch.bool or found.dim() != 1:
        shown = f"a {found.dtype} tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise BatchError(
            f"{user} keeps a score for every training example, so the batch must carry their positions, integers of "
            f'shape (B,), as (inputs, targets, index) or under the key "index", but there it has {shown}; let the '
            "data set return them: def __getitem__(self, i): return inputs[i], targets[i], i"
        )
    return found.long()  # bytes would be taken for a mask


def stack(batches: Sequence[Any]) -> Any:
    """Batches of equal shapes under one new dimension 0.

    Raises:
        ArgumentError: There is nothing to stack, or the shapes differ.
    """
    shapes = [[None if t is None else tuple(t.shape) for t in pytree.tree_leaves(b)] for b in batches]
    if not shapes or any(s != shapes[0] for s in shapes):
        raise ArgumentError(f"batches must have equal shapes to be stacked, but are {shapes}; run them apart")
    return pytree.tree_map(lambda *ts: None if ts[0] is None else torch.stack(ts), *batches)
