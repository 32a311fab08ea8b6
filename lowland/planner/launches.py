"""Counts operator calls and bytes of what runs in a context, except forward and backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that launch nothing: views, memory without values, and a question about memory.
_FREE = (
    "alias as_strided detach empty empty_like empty_strided expand new_empty new_empty_strided permute reshape select "
    "slice split split_with_sizes squeeze t transpose unbind unsqueeze view _unsafe_view _reshape_alias lift_fresh "
    "is_pinned"
)
FREE = frozenset(_FREE.split())
LIST = "_foreach"  # begins the names of operations on lists
OVERWRITES = frozenset(("copy_", "zero_", "fill_"))  # do not read what they write, neither on lists
TENSORS, JOINED = 110, 128  # the most tensors that torch gives to one kernel: of a list operation, and of torch.cat
# Whether forward runs, which is not counted. The executor restores the Python state that a loss function can reach, so
# a counter within its reach would lose what it counted in a displaced pass.
_forward = ContextVar("forward", default=False)


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations in its context, except those of forward and backward.

    Attributes:
        launches: Operator calls. A call on a list counts once for every 110 of its tensors, which is the most that
            torch gives to one kernel. It counts once for every tensor where torch has no kernel for the list: where
            the tensors of a second list have other shapes, such as ``()``.
        bytes: Bytes that the operations read and write.
        calls: The launches of each operation, by name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.calls: Counter[str] = Counter()

    @property
    def launches(self) -> int:
        """See the class."""
        return sum(self.calls.values())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count it."""
        out = func(*args, **(kwargs or {}))
        schema: Any = func._schema  # type: ignore[attr-defined]
        name = schema.name.removeprefix("aten::")
        if not _forward.get() and name not in FREE and torch._C._current_graph_task_id() == -1:
            self.calls[name] += _kernels(name, args)
            self.bytes += _moved(name, schema, args, kwargs or {}, out)
        return out


def _kernels(name: str, args: Sequence[Any]) -> int:
    """How many kernels a GPU runs for an operation."""
    if name == "cat":
        return -(-len(args[0]) // JOINED)
    if not name.startswith(LIST):
        return 1
    first = args[0]
    lists = [a for a in args[1:] if isinstance(a, list | tuple) and len(a) == len(first) and isinstance(a[0], Tensor)]
    fits = all(x.shape == y.shape for other in lists for x, y in zip(other, first, strict=True))
    return -(-len(first) // TENSORS) if fits else len(first)


def _moved(name: str, schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """The bytes that an operation reads and writes."""
    overwrites = name.removeprefix(f"{LIST}_") in OVERWRITES
    given = dict(zip([a.name for a in schema.arguments], args, strict=False)) | dict(kwargs)
    total = 0
    seen: set[int] = set()
    for argument in schema.arguments:
        size = _size(given.get(argument.name), seen)
        written = argument.alias_info is not None and argument.alias_info.is_write
        read = not written or not (overwrites or argument.kwarg_only)
        total += size * (int(written) + int(read))
    return total + _size(out, seen)


def _size(value: Any, seen: set[int]) -> int:
    """The bytes of all tensors in a value, each once."""
    total = 0
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            total += leaf.numel() * leaf.element_size()
    return total


def uncounted(compute: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The same function, whose operations are not counted."""

    def computed(first: Any, batch: Any) -> Tensor:
        before = _forward.set(True)
        try:
            return compute(first, batch)
        finally:
            _forward.reset(before)

    return computed
