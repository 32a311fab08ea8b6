"""A batch is any pytree (nested tuples, lists, dicts) of tensors that share dimension 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.errors import ArgumentError, BatchError


def size(batch: Any) -> int:
    """The number of examples: the length of dimension 0 that all tensors share.

    Raises:
        BatchError: The batch is empty, holds something that is no tensor, or its tensors disagree.
    """
    sizes: dict[str, int] = {}
    for path, leaf in pytree.tree_flatten_with_path(batch)[0]:
        name = "batch" + pytree.keystr(path)
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor):
            raise BatchError(
                f"a batch must be tensors in tuples, lists or dicts, but {name} is a {type(leaf).__name__}; "
                "pass only tensors, such as dict(batch) or torch.as_tensor(value)"
            )
        if leaf.dim() == 0:
            raise BatchError(
                f"every tensor of a batch needs dimension 0 for the examples, but {name} has shape (); "
                "keep constants out of the batch"
            )
        sizes[name] = leaf.shape[0]
    if not sizes:
        raise BatchError(f"a batch must hold at least one tensor, but is {batch!r}; pass inputs and targets")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {n}" for name, n in sizes.items())
        raise BatchError(f"all tensors of a batch must share dimension 0, but {listed}; cut them alike")
    count = next(iter(sizes.values()))
    if count == 0:
        raise BatchError("a batch must hold at least one example, but has 0; skip empty batches")
    return count


def take(batch: Any, index: Tensor | slice) -> Any:
    """The examples that ``index`` names, in its order."""
    return pytree.tree_map(lambda t: None if t is None else t[index], batch)


def copy(batch: Any) -> Any:
    """A batch that shares no memory with this one."""
    return pytree.tree_map(lambda t: None if t is None else t.clone(), batch)


def chunk(batch: Any, count: int) -> list[Any]:
    """Exactly ``min(count, B)`` parts whose sizes differ by at most one.

    ``torch.chunk`` would cut 9 examples into 3 parts when asked for 4.
    """
    return _cut(batch, lambda t: torch.tensor_split(t, min(count, size(batch))))


def split(batch: Any, most: int) -> list[Any]:
    """Parts of at most ``most`` examples; only the last one may be smaller."""
    return _cut(batch, lambda t: torch.split(t, most))


def stack(batches: Sequence[Any]) -> Any:
    """Batches of equal shapes under one new dimension 0.

    Raises:
        ArgumentError: There is nothing to stack, or the shapes differ.
    """
    shapes = [[None if t is None else tuple(t.shape) for t in pytree.tree_leaves(b)] for b in batches]
    if not shapes or any(s != shapes[0] for s in shapes):
        raise ArgumentError(f"batches must have equal shapes to be stacked, but are {shapes}; run them apart")
    return pytree.tree_map(lambda *ts: None if ts[0] is None else torch.stack(ts), *batches)


def _cut(batch: Any, cut: Callable[[Tensor], Sequence[Tensor]]) -> list[Any]:
    size(batch)  # refuses ragged batches before they are cut into parts that do not belong together
    leaves, spec = pytree.tree_flatten(batch)
    parts = [None if leaf is None else cut(leaf) for leaf in leaves]
    count = next(len(p) for p in parts if p is not None)
    return [pytree.tree_unflatten([None if p is None else p[i] for p in parts], spec) for i in range(count)]
