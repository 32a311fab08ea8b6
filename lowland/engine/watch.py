"""Checks that a plan does not write weights, change memory in place, or return tensors that are in use."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lowland.core import shards, vec
from lowland.core.errors import UsageError
from lowland.core.precision import of_vectors
from lowland.core.vec import Vec
from lowland.executors.base import Work
from lowland.executors.displacement import put_back
from lowland.executors.still import Mark
from lowland.methods.base import Method

Place: TypeAlias = "tuple[int, int]"  # a storage, and the byte offset of a tensor in it


def is_foreign(method: Method) -> bool:
    """Whether a method, or a method inside it, is not one of lowland's."""
    inside = (getattr(method, f.name) for f in fields(method))
    own = type(method).__module__.startswith(("lowland.methods.", "lowland.planner."))
    return not own or any(is_foreign(part) for part in inside if isinstance(part, Method))


class Watch:
    """Checks a plan in one step. It costs a microsecond per tensor and does not wait for the device.

    Args:
        kind: The name of the method.
        work: The engine's work, with the parameters.
        names: The names of the parameters.
        memory: The method's memory at the start of the step.
        vectors: The keys of the vectors in memory.
        tables: The keys of the tensors in the method's first memory.
        foreign: Whether the plan is not lowland's own. Then the first step saves the weights, which takes the memory of
            one copy.
    """

    def __init__(
        self,
        kind: str,
        work: Work,
        names: Sequence[str],
        memory: Mapping[str, Any],
        vectors: frozenset[str],
        tables: Sequence[str] = (),
        *,
        foreign: bool = True,
    ) -> None:
        self._kind, self._work, self._names, self._vectors, self._tables = kind, work, names, vectors, tables
        self._params = work.params
        self._before = {key: _SavedValue(value) for key, value in memory.items()}
        self._like = {key: _likes(value) for key, value in memory.items() if key in vectors}
        self._saved = vec.clone(work.params) if work.first and foreign else None
        self._mark = Mark(work, each=True)

    def resume(self) -> None:
        """Mark the weights before the plan continues."""
        self._mark = Mark(self._work, each=True)

    def check_weights(self) -> None:
        """Check that the plan has not written weights since :meth:`resume`.

        Raises:
            UsageError: It has written weights, which are restored in the first step of an engine.
        """
        written = self._mark.moved()
        if written:
            if self._saved is not None:
                put_back(self._params, self._saved)
            raise moved(self._kind, self._names[written[0]])

    def restore(self) -> None:
        """Restore lists, sets and dicts in memory, but not tensors that were changed in place."""
        for saved in self._before.values():
            saved.restore()

    def check(self, memory: Mapping[str, Any], grad: Vec, restored: Container[int] = ()) -> None:
        """Check memory and the returned gradient at the end of the step.

        Args:
            memory: The method's memory.
            grad: The gradient that the plan has returned.
            restored: The ids of tensors of a kept batch that a pass has written and that were restored.

        Raises:
            UsageError: Memory was changed in place; an entry has become a vector, or a vector has other shapes; or
                memory, gradient and weights share tensors.
        """
        for key, saved in self._before.items():
            if saved.changed(restored):
                raise UsageError(
                    f"memory must be replaced, not changed in place, but the plan of {self._kind} has changed {key!r}; "
                    f"write engine.memory[{key!r}] = a new value, such as vec.lerp(old, new, 0.1) or [*old, new]"
                )
            if key in self._vectors and _likes(memory[key]) != self._like[key]:
                raise UsageError(
                    f"a vector in memory must keep its shapes and dtypes, but the plan of {self._kind} has put "
                    f"{_kinds(memory[key])} into {key!r}; replace it by one tensor per parameter"
                )
            if (
                key not in self._vectors
                and len(self._params) > 1
                and _likes(memory[key]) == _likes(self._params, of_vectors)
            ):
                raise UsageError(
                    f"a vector in memory must be one from the start, but the plan of {self._kind} has put one into "
                    f"{key!r}, which init made otherwise, so an overflow would stay in it; let init return "
                    f"{{{key!r}: vec.zeros(params)}}"
                )
            self._check_tensor(key, saved.value, memory[key])
        unshared(self._kind, memory, self._params, self._names)
        self._check_graphs(memory)
        self._own(memory, grad)

    def _check_tensor(self, key: str, before: Any, now: Any) -> None:
        """Refuse a table that changes its shape."""
        if key in self._tables and (not isinstance(now, Tensor) or now.shape != before.shape):
            shape = tuple(now.shape) if isinstance(now, Tensor) else type(now).__name__
            raise UsageError(
                f"a tensor in memory must keep its shape, so that a checkpoint can be loaded, but the plan of "
                f"{self._kind} has put {shape} in the place of {tuple(before.shape)} into {key!r}; let init return it "
                "in its final shape"
            )

    def _check_graphs(self, memory: Mapping[str, Any]) -> None:
        """Refuse tensors with a graph, because memory would keep the graph alive."""
        for key, value in memory.items():
            if any(t.requires_grad for t in tensors(value)):
                raise UsageError(
                    f"memory must hold no graph, but the plan of {self._kind} has put a tensor that requires a "
                    f"gradient into {key!r}; keep it without: tensor.detach()"
                )

    def _own(self, memory: Mapping[str, Any], grad: Vec) -> None:
        """Refuse a gradient whose memory belongs to weights, to an entry of memory, or to another of its tensors."""
        weights, used = places(self._params, self._names), set[Place]()
        in_memory = {p: key for key, value in memory.items() for t in tensors(value) if (p := place(t)) is not None}
        copied = ids(memory)  # the step copies these tensors before they become .grad
        for name, g in zip(self._names, grad, strict=True):
            at, wrong = place(g), None
            if at is not None and at in weights:
                wrong = f"the weight {weights[at]} itself"
            elif at is not None and at in used:
                wrong = "the tensor of another parameter, too,"
            elif at is not None and at in in_memory and id(g) not in copied:
                wrong = f"memory of {in_memory[at]!r}"
            elif any(s == 0 and n > 1 for s, n in zip(g.stride(), g.shape, strict=True)):
                wrong = "an expanded tensor, which cannot be clipped in place,"
            elif g.requires_grad:
                wrong = "a tensor with a graph"
            if wrong is not None:
                raise UsageError(
                    f"plan must return tensors of its own, because .grad is changed in place, but that of {self._kind} "
                    f"returned {wrong} for {name}; return vec.clone(…) of it"
                )
            if at is not None:
                used.add(at)


class _SavedValue:
    """A value of memory at the start of the step, with the values inside it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._version = _version(value)
        self._items: Any = type(value)(value) if type(value) in (list, dict, set) else None
        inside = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else ()
        self._inside = [_SavedValue(v) for v in inside if isinstance(v, list | tuple | dict | Tensor)]

    def changed(self, restored: Container[int] = ()) -> bool:
        """Whether the value, or a value inside it, was changed in place and not restored."""
        if self._version != _version(self.value) and id(self.value) not in restored:
            return True
        if any(saved.changed(restored) for saved in self._inside):
            return True
        if isinstance(self._items, set):
            return bool(self.value != self._items)
        if isinstance(self._items, dict):
            now, then = [*self.value, *self.value.values()], [*self._items, *self._items.values()]
        else:
            now, then = ([], []) if self._items is None else (self.value, self._items)
        return len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True))

    def restore(self) -> None:
        """Restore the entries of lists, sets and dicts."""
        if isinstance(self._items, dict | set):
            self.value.clear()
            self.value.update(self._items)
        elif self._items is not None:
            self.value[:] = self._items
        for saved in self._inside:
            saved.restore()


def moved(kind: str, name: str) -> UsageError:
    """The error for a plan that has written weights."""
    return UsageError(
        f"plan must leave the weights to the optimizer, but that of {kind} has written {name}, so that they are not as "
        "before the step; ask at another point, Probe(batch, at=displacement), and return what the optimizer is to "
        "step along"
    )


def unshared(kind: str, memory: Mapping[str, Any], params: Vec, names: Sequence[str]) -> None:
    """Refuse memory that shares storage with the weights, because it would change with them.

    Raises:
        UsageError: An entry shares storage with a weight.
    """
    weights = {at[0]: name for at, name in places(params, names).items()}  # by storage, which includes views
    for key, value in memory.items():
        for t in tensors(value):
            if (at := place(t)) is not None and at[0] in weights:
                raise UsageError(
                    f"memory must not hold the weights themselves, which the optimizer moves, but {key!r} of {kind} "
                    f"holds {weights[at[0]]}; keep a copy: vec.clone(params)"
                )


def ids(memory: Mapping[str, Any]) -> set[int]:
    """The ids of the values in memory, and of the entries of its lists and tuples."""
    result: set[int] = set()
    for value in memory.values():
        result.update(map(id, value) if type(value) in (list, tuple) else [id(value)])
    return result


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value of memory."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def places(v: Vec, names: Sequence[str]) -> dict[Place, str]:
    """The names of tensors by their places in memory."""
    return {at: name for t, name in zip(v, names, strict=True) if (at := place(t)) is not None}


def place(t: Tensor) -> Place | None:
    """The place of a tensor in memory; None for an empty tensor or one without an ordinary storage."""
    at = shards.span(t)
    return None if at is None else at[:2]


def _version(value: Any) -> int | None:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _likes(value: Any, of: Callable[[torch.dtype], torch.dtype] | None = None) -> list[Any]:
    """Shape and dtype of every tensor; of parameters, with ``of``, those of their vectors."""
    if not isinstance(value, list | tuple):
        return []
    dense = (isinstance(t, Tensor) and not t.is_nested for t in value)  # nested tensors have no shape
    return [(t.shape, of(t.dtype) if of else t.dtype) if d else None for t, d in zip(value, dense, strict=True)]


def _kinds(value: Any) -> str:
    if isinstance(value, list | tuple):
        dtypes = ", ".join(dict.fromkeys(str(getattr(t, "dtype", type(t).__name__)) for t in value))
        return f"a {type(value).__name__} of {len(value)} entries ({dtypes or 'none'})"
    return f"a {type(value).__name__}"
