"""How a batch is cut into examples.

Most methods never cut a batch: they hand it to the loss function as it is, whatever it is. Methods that choose or
divide examples, and ``micro_batch``, ask a :class:`Cutter`. The default, :class:`Slices`, knows pytrees of tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from lowland.core.errors import ArgumentError, BatchError
from lowland.core.lagged import read

EMPTY = "a batch must hold at least one example"  # how the errors about empty batches begin
COLUMNS = 3  # a list of so many alike tensors is what a DataLoader makes of samples (x, y) or (x, y, index)


@runtime_checkable
class Cutter(Protocol):
    """What cuts batches of a kind of one's own: two methods, given to ``Engine(..., cut=…)``.

    Example:
        >>> class Graphs:  # a batch is a list of graphs that the loss function joins
        ...     def size(self, batch):
        ...         return len(batch)
        ...     def take(self, batch, index):
        ...         places = range(len(batch))[index] if isinstance(index, slice) else index.tolist()
        ...         return [batch[i] for i in places]
        >>> Graphs().take(["a", "b", "c"], slice(0, 2))
        ['a', 'b']
    """

    def size(self, batch: Any) -> int:
        """The number of examples in a batch."""
        ...

    def take(self, batch: Any, index: Tensor | slice) -> Any:
        """The examples that ``index`` names, in its order: a slice with both ends, or integers of shape ``(n,)``."""
        ...


@dataclass(frozen=True)
class Slices:
    """Cuts pytrees: nested tuples, lists, dicts and other mappings.

    Tensors are cut along one dimension, whose length all must share. A list with one entry per example is cut
    alongside. Strings, numbers, None and tensors of shape ``()`` belong to all examples and are carried along. A list
    that can be read in two ways, as tensors to cut or as one entry per example, is refused; so is any other object.

    Args:
        dim: The dimension of the examples: one number for all tensors, such as 1 for sequence-first data, or a tuple,
            list or dict of numbers in the form of the batch, such as ``dim=(1, 0)``. None carries an entry along.

    Raises:
        ArgumentError: ``dim`` is something else.
    """

    dim: Any = 0

    def __post_init__(self) -> None:
        for d in pytree.tree_leaves(self.dim):
            if d is not None and (type(d) is not int or d < 0):
                raise ArgumentError(
                    f"dim must be made of integers >= 0 and None, but has {d!r}; dim=1 cuts sequence-first data"
                )

    def size(self, batch: Any) -> int:
        """The number of examples.

        Raises:
            BatchError: There are none, or the batch cannot be cut in exactly one way.
        """
        if self.dim == 0 and type(batch) is tuple and batch and _has_rows(batch[0]):
            size: int = batch[0].shape[0]
            for t in batch:
                if not _has_rows(t) or t.shape[0] != size:
                    break
            else:
                if size:
                    return size  # by far the most frequent, so it is quick
        return _Reading(batch, self.dim).size

    def take(self, batch: Any, index: Tensor | slice) -> Any:
        """The examples that ``index`` names, in its order.

        Raises:
            BatchError: The batch cannot be cut, or its tensors and a tensor ``index`` are on different devices.
        """
        return _Reading(batch, self.dim).cut(lambda t, d: _select(t, d, index), lambda entries: _pick(entries, index))


def _has_rows(t: Any) -> bool:
    return isinstance(t, Tensor) and not t.is_nested and t.dim() > 0


class _Reading:
    """A batch as it is read for cutting: which tensors and lists have one entry per example, and how many there are."""

    def __init__(self, batch: Any, dim: Any) -> None:
        self.batch, self.dim = batch, dim
        self.tensors: dict[str, int] = {}  # lengths of the tensors that are certainly cut
        self.lists: dict[str, tuple[int, set[int]]] = {}  # entries of a list, and the lengths of tensors in it
        self._read(batch, dim, "batch")
        self.size = self._agreed()
        self.examples = {name for name in self.lists if self._per_example(name)}

    def _read(self, node: Any, dim: Any, name: str) -> None:
        if isinstance(node, Tensor):
            if (length := _length(node, dim, name)) is not None:
                self.tensors[name] = length
        elif type(node) is list and any(e is not None for e in node) and not (name == "batch" and _is_columns(node)):
            self.lists[name] = len(node), _lengths(node, dim) or set()
        elif isinstance(node, PackedSequence):
            raise BatchError(
                f"tensors of a batch that is cut must have one entry per example, but {name} is a PackedSequence; cut "
                "the padded sequences and pack them in loss_fn, or pass Parts([…])"
            )
        elif _is_branch(node):
            for key, entry, d in _entries(node, dim):
                self._read(entry, d, f"{name}[{key!r}]")
        elif not _is_constant(node):
            raise BatchError(
                f"a batch that is cut must be tensors in tuples, lists or dicts, but {name} is a "
                f"{type(node).__name__}; pass only tensors, such as dict(batch) or torch.as_tensor(value), or say how "
                "it is cut: Engine(…, cut=…) takes an object with size(batch) and take(batch, index)"
            )

    def _agreed(self) -> int:
        """The number of examples on which all tensors agree, or all lists where there are no tensors outside them."""
        sizes = set(self.tensors.values())
        if len(sizes) > 1:
            listed = ", ".join(f"{name} has {n}" for name, n in self.tensors.items())
            raise BatchError(
                f"all tensors of a batch that is cut must share dimension {self.dim}, but {listed}; cut them alike, "
                "or say how they are cut: Engine(…, cut=…) takes an object with size(batch) and take(batch, index)"
            )
        if not sizes and self.lists:
            sizes = set.intersection(*({count} | lengths for count, lengths in self.lists.values()))
            if len(sizes) != 1:
                raise _ambiguous(next(iter(self.lists)), "has several readings, or none that fits its other lists")
        if not sizes:
            raise BatchError(
                "a batch that is cut must hold at least one tensor with a dimension for the examples, but is a "
                f"{type(self.batch).__name__} without one; pass inputs and targets"
            )
        (size,) = sizes
        if size == 0:
            raise BatchError(f"{EMPTY}, but has 0; skip empty batches")
        return size

    def _per_example(self, name: str) -> bool:
        """Whether a list has one entry per example; otherwise the tensors in it are cut."""
        count, lengths = self.lists[name]
        each, columns = count == self.size, lengths == {self.size}
        if each == columns:
            what = "can be read in both ways" if each else f"has {count} entries for {self.size} examples"
            raise _ambiguous(name, what)
        return each

    def cut(self, tensor: Callable[[Tensor, int], Any], entries: Callable[[list[Any]], Any]) -> Any:
        """The batch with its tensors, and its lists of one entry per example, replaced."""
        return self._cut(self.batch, self.dim, "batch", tensor, entries)

    # A method, because a function that calls itself in a closure keeps itself, and the batch, alive.
    def _cut(self, node: Any, dim: Any, name: str, tensor: Callable[..., Any], entries: Callable[..., Any]) -> Any:
        if isinstance(node, Tensor):
            return node if node.dim() == 0 or dim is None else tensor(node, dim)
        if name in self.examples:
            return entries(node)
        if _is_branch(node):
            parts = [self._cut(e, d, f"{name}[{k!r}]", tensor, entries) for k, e, d in _entries(node, dim)]
            return rebuilt(node, parts)
        return node


def _ambiguous(name: str, what: str) -> BatchError:
    return BatchError(
        f"a list in a batch must have either one entry per example or tensors to cut, but {name} {what}; pass a tuple "
        "of tensors, which is always cut, or say how the batch is cut: Engine(…, cut=…)"
    )


def _length(tensor: Tensor, dim: Any, name: str) -> int | None:
    """The number of examples in a tensor; None where it is carried along."""
    if tensor.dim() == 0 or dim is None:
        return None
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise BatchError(
            f"tensors of a batch that is cut must be dense, but {name} is {kind}; say how it is cut: Engine(…, cut=…) "
            "takes an object with size(batch) and take(batch, index), or pass Parts([…])"
        )
    if type(dim) is not int or tensor.dim() <= dim:
        raise BatchError(
            f"every tensor of a batch that is cut needs dimension {dim} for the examples, but {name} has shape "
            f"{tuple(tensor.shape)}; give each tensor a number of its own, such as cut=Slices(dim=(1, 0))"
        )
    return tensor.shape[dim]


def _lengths(node: Any, dim: Any) -> set[int] | None:
    """The lengths of all tensors in an entry of a list, were they to be cut; None where it cannot be cut."""
    if isinstance(node, Tensor):
        if node.dim() == 0 or dim is None:
            return set()
        return {node.shape[dim]} if type(dim) is int and node.dim() > dim else None
    if _is_branch(node):
        lengths: set[int] = set()
        for _, entry, d in _entries(node, dim):
            inside = _lengths(entry, d)
            if inside is None:
                return None
            lengths |= inside
        return lengths
    return set() if _is_constant(node) else None


def _is_branch(node: Any) -> bool:
    return isinstance(node, tuple | list | Mapping)


def _is_constant(node: Any) -> bool:
    return node is None or isinstance(node, str | bytes | int | float | complex)


def _is_columns(node: list[Any]) -> bool:
    """Whether the outermost list is what a DataLoader makes of samples (x, y), so that its tensors are cut."""
    tensors = [entry for entry in node if isinstance(entry, Tensor)]
    alike = len({(t.dtype, t.dim()) for t in tensors}) == 1
    return bool(tensors) and (len(node) <= COLUMNS or len(tensors) < len(node) or not alike)


def _entries(node: Any, dim: Any) -> list[tuple[Any, Any, Any]]:
    """The entries of a branch with their keys, and each one's part of ``dim``."""
    items = list(node.items() if isinstance(node, Mapping) else enumerate(node))
    if not isinstance(dim, Mapping | tuple | list):
        return [(key, entry, dim) for key, entry in items]
    try:
        return [(key, entry, dim[key]) for key, entry in items]
    except (KeyError, IndexError, TypeError):
        raise BatchError(
            f"dim must be one number, or have the form of the batch, whose entries are {[key for key, _ in items]}, "
            f"but is {dim!r}; give one number for each"
        ) from None


def rebuilt(node: Any, entries: list[Any]) -> Any:
    """A tuple, list or mapping of the same kind with other entries, in their order."""
    if isinstance(node, Mapping):
        made: Any = {} if type(node) is dict else copy.copy(node)
        if not isinstance(made, MutableMapping):
            made = {}
        made.update(zip(node, entries, strict=True))
        return made
    return type(node)(*entries) if hasattr(node, "_fields") else type(node)(entries)


def _select(tensor: Tensor, dim: int, index: Tensor | slice) -> Tensor:
    if isinstance(index, slice):
        return tensor[(slice(None),) * dim + (index,)]
    if tensor.device != index.device:
        raise BatchError(
            f"a batch that is cut must be on the device of its losses, {index.device}, but is on {tensor.device}; "
            "move it there before engine.backward(batch), not inside loss_fn"
        )
    return tensor.index_select(dim, index)


def _pick(entries: list[Any], index: Tensor | slice) -> list[Any]:
    if isinstance(index, slice):
        return entries[index]
    if not index.is_cpu:
        raise BatchError(
            f"a list with one entry per example cannot be indexed from {index.device} without waiting for it; keep "
            "such lists out of batches for methods that choose examples by their losses"
        )
    return [entries[i] for i in read(index)]
