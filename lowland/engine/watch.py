"""What a plan of one's own may do unseen: move weights, change memory in place, hand out memory that is in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from lowland.core import shards, vec
from lowland.core.errors import UsageError
from lowland.core.vec import Vec
from lowland.executors.base import Work
from lowland.executors.displacement import put_back
from lowland.executors.still import Mark

Place: TypeAlias = "tuple[int, int]"  # a storage, and the byte in it where a tensor begins


class Watch:
    """Looks at what a plan does in one step; costs a microsecond for each tensor, and nothing waits for the device.

    Args:
        kind: The method's name.
        work: The work of the engine, with the parameters.
        names: The names of these.
        memory: A method's memory as the step begins.
        vectors: Which of its entries are vectors.
        tables: Which are tables, tensors in a method's first memory.
    """

    def __init__(
        self,
        kind: str,
        work: Work,
        names: Sequence[str],
        memory: Mapping[str, Any],
        vectors: frozenset[str],
        tables: Sequence[str] = (),
    ) -> None:
        self._kind, self._work, self._names, self._vectors, self._tables = kind, work, names, vectors, tables
        self._params = work.params
        self._before = {key: _Seen(value) for key, value in memory.items()}
        self._like = {key: _likes(value) for key, value in memory.items() if key in vectors}
        self._saved = vec.clone(work.params) if work.first else None
        self._mark = Mark(work, each=True)

    def leave(self) -> None:
        """The plan goes on."""
        self._mark = Mark(self._work, each=True)

    def back(self) -> None:
        """The plan has asked or returned.

        Raises:
            UsageError: It has written weights; in the first step they are put back.
        """
        written = self._mark.moved()
        if written:
            if self._saved is not None:
                put_back(self._params, self._saved)
            raise moved(self._kind, self._names[written[0]])

    def undo(self) -> None:
        """Lists and dicts in memory are as the step found them; tensors that were changed in place are not."""
        for seen in self._before.values():
            seen.undo()

    def check(self, memory: Mapping[str, Any], grad: Vec) -> None:
        """Compare memory as the step ends, and what the plan has returned with what is in use elsewhere.

        Raises:
            UsageError: Memory was changed in place, an entry is a vector now and was none or the other way round, or
                memory, gradient and weights share tensors.
        """
        for key, seen in self._before.items():
            if seen.changed():
                raise UsageError(
                    f"memory must be replaced, not changed in place, but the plan of {self._kind} has changed {key!r}; "
                    f"write engine.memory[{key!r}] = a new value, such as vec.lerp(old, new, 0.1) or [*old, new]"
                )
            if key in self._vectors and _likes(memory[key]) != self._like[key]:
                raise UsageError(
                    f"a vector in memory must keep its shapes and dtypes, but the plan of {self._kind} has put "
                    f"{_kinds(memory[key])} into {key!r}; replace it by one tensor per parameter"
                )
            if key not in self._vectors and len(self._params) > 1 and _likes(memory[key]) == _likes(self._params):
                raise UsageError(
                    f"a vector in memory must be one from the start, but the plan of {self._kind} has put one into "
                    f"{key!r}, which init made otherwise, so an overflow would stay in it; let init return "
                    f"{{{key!r}: vec.zeros(params)}}"
                )
            self._check_tensor(key, seen.value, memory[key])
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
        """Refuse tensors with a graph, which would be kept alive."""
        for key, value in memory.items():
            if any(t.requires_grad for t in tensors(value)):
                raise UsageError(
                    f"memory must hold no graph, but the plan of {self._kind} has put a tensor that requires a "
                    f"gradient into {key!r}; keep it without: tensor.detach()"
                )

    def _own(self, memory: Mapping[str, Any], grad: Vec) -> None:
        """Refuse a gradient whose memory belongs to weights, to an entry of memory, or to another of its tensors."""
        weights, taken = places(self._params, self._names), set[Place]()
        kept = {p: (key, id(t)) for key, value in memory.items() for t in tensors(value) if (p := place(t)) is not None}
        known = held(memory)
        for name, g in zip(self._names, grad, strict=True):
            at, wrong = place(g), None
            if at is not None and at in weights:
                wrong = f"the weight {weights[at]} itself"
            elif at is not None and at in taken:
                wrong = "the tensor of another parameter, too,"
            elif at is not None and at in kept and id(g) not in known:
                wrong = f"memory of {kept[at][0]!r}"
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
                taken.add(at)


class _Seen:
    """A value of memory as it was, with what is inside."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._version = _version(value)
        self._items: Any = type(value)(value) if type(value) in (list, dict, set) else None
        inside = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else ()
        self._inside = [_Seen(v) for v in inside if isinstance(v, list | tuple | dict | Tensor)]

    def changed(self) -> bool:
        """Whether it, or anything in it, was changed in place."""
        if self._version != _version(self.value) or any(seen.changed() for seen in self._inside):
            return True
        if isinstance(self._items, set):
            return bool(self.value != self._items)
        if isinstance(self._items, dict):
            now, then = [*self.value, *self.value.values()], [*self._items, *self._items.values()]
        else:
            now, then = ([], []) if self._items is None else (self.value, self._items)
        return len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True))

    def undo(self) -> None:
        """Lists and dicts hold again what they held."""
        if isinstance(self._items, dict | set):
            self.value.clear()
            self.value.update(self._items)
        elif self._items is not None:
            self.value[:] = self._items
        for seen in self._inside:
            seen.undo()


def moved(kind: str, name: str) -> UsageError:
    """The error for a plan that has written weights."""
    return UsageError(
        f"plan must leave the weights to the optimizer, but that of {kind} has written {name}, so that they are not as "
        "before the step; ask at another point, Probe(batch, at=displacement), and return what the optimizer is to "
        "step along"
    )


def unshared(kind: str, memory: Mapping[str, Any], params: Vec, names: Sequence[str]) -> None:
    """Refuse memory that is the weights themselves, and so would move with them.

    Raises:
        UsageError: It is.
    """
    weights = {at[0]: name for at, name in places(params, names).items()}  # also a part of a weight is the weight's
    for key, value in memory.items():
        for t in tensors(value):
            if (at := place(t)) is not None and at[0] in weights:
                raise UsageError(
                    f"memory must not hold the weights themselves, which the optimizer moves, but {key!r} of {kind} "
                    f"holds {weights[at[0]]}; keep a copy: vec.clone(params)"
                )


def held(memory: Mapping[str, Any]) -> set[int]:
    """The ids of what memory holds, itself or in a list: a gradient among it is copied before it becomes ``.grad``."""
    found: set[int] = set()
    for value in memory.values():
        found.update(map(id, value) if type(value) in (list, tuple) else [id(value)])
    return found


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value of memory."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def places(v: Vec, names: Sequence[str]) -> dict[Place, str]:
    """Where tensors lie, with their names."""
    return {at: name for t, name in zip(v, names, strict=True) if (at := place(t)) is not None}


def place(t: Tensor) -> Place | None:
    """Where a tensor lies; None for one that is empty or has no storage of the usual kind."""
    at = shards.span(t)
    return None if at is None else at[:2]


def _version(value: Any) -> int | None:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _likes(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        return []
    return [(t.shape, t.dtype) if isinstance(t, Tensor) else None for t in value]


def _kinds(value: Any) -> str:
    if isinstance(value, list | tuple):
        dtypes = ", ".join(dict.fromkeys(str(getattr(t, "dtype", type(t).__name__)) for t in value))
        return f"a {type(value).__name__} of {len(value)} entries ({dtypes or 'none'})"
    return f"a {type(value).__name__}"
