"""A batch is any pytree (nested tuples, lists, dicts) of tensors that share dimension 0."""

from __future__ import annotations

import math
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
    leaves = [t for t in pytree.tree_leaves(batch) if t is not None]
    if leaves and all(isinstance(t, Tensor) and t.dim() and len(t) == len(leaves[0]) != 0 for t in leaves):
        return len(leaves[0])  # by far the most frequent, so it is quick
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
    raise BatchError("a batch must hold at least one example, but has 0; skip empty batches")


def part(share: float, count: int) -> int:
    """How many of ``count`` examples a share in (0, 1] is: rounded down, at least one.

    Example:
        >>> part(0.5, 7), part(0.1, 3), part(0.29, 100)
        (3, 1, 29)
    """
    return max(1, math.floor(share * count + 1e-9))  # 0.29 * 100 is 28.999…


def take(batch: Any, index: Tensor | slice) -> Any:
    """The examples that ``index`` names, in its order.

    Raises:
        BatchError: The examples and a tensor ``index`` are on different devices: one would wait for the other.
    """
    for t in pytree.tree_leaves(batch):
        if t is not None and isinstance(index, Tensor) and t.device != index.device:
            raise BatchError(
                f"a batch that is cut must be on the device of its losses, {index.device}, but is on {t.device}; "
                "move it there before engine.backward(batch), not inside loss_fn"
            )
    return pytree.tree_map(lambda t: None if t is None else t[index], batch)


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
