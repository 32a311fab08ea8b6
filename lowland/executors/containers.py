"""Lists, deques, sets and dicts, and what names are bound to, which passes may change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.executors.keepers import where
from lowland.executors.names import NEAR, Bindings, Names, Variables, Where, holds, is_array
from lowland.executors.places import Weights
from lowland.executors.uses import Uses, uses

MOST = 4096  # entries of a container that is looked at
BUDGET = 1 << 24  # numbers in all of them together


class Holder(NamedTuple):
    """A container, and where it is kept; the owner is None where that is another container."""

    owner: Any
    key: str
    container: Any
    name: str
    log: bool


class Held(NamedTuple):
    """A container and what was in it: its entries, and versions and copies of tensors and arrays among them."""

    container: Any
    entries: Any
    tensors: list[tuple[Any, int, Any]]


class Moment(NamedTuple):
    """Containers and names at one moment."""

    held: list[Held]
    names: Bindings


class Containers:
    """What a model and its loss function keep beside tensors in attributes.

    Attributes:
        names: What modules, objects, functions and classes bind.
        modules: Those of the loss function, and those in containers of the model.
        generators: Sources of random numbers of their own.
        written: The names of containers that a pass has written.
    """

    def __init__(self) -> None:
        self._holders: list[Holder] = []
        self.names = Names()
        self.generators: list[Any] = []
        self._deep: set[int] = set()  # containers whose tensors are written in place
        self._weights = Weights()  # which displacement moves and restores
        self.written: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}

    def find(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> list[tuple[Any, str, str]]:
        """Look for all of them; what is returned are tensors in other places, ``(owner, key, name)``."""
        own, others = Uses(), uses(loss_fn)
        named = list(model.named_modules())
        self._weights = Weights(model)
        inside = set(model.modules())
        for place, top in others.modules.items():
            named += [(f"loss_fn: {place}.{n}".rstrip("."), m) for n, m in top.named_modules() if m not in inside]
        for look in (own.attributes, own.surroundings):
            for name, m in named:
                look(m, name)
        known = {where(h.container, "") for h in self._holders}
        found = [Holder(*entry) for u in (own, others) for entry in u.containers]
        self._holders += [h for h in found if where(h.container, "") not in known and _tracked(h.container)]
        self.modules = {f"loss_fn: {place}": m for place, m in others.modules.items()} | own.modules
        modules = {id(vars(m)) for top in (model, *self.modules.values()) for m in top.modules()}
        listed = {id(d): (name, d) for name, d in own.objects}
        listed |= {id(d): (f"loss_fn: {name}", d) for name, d in others.objects if id(d) not in listed}
        rest = [entry for i, entry in listed.items() if i not in modules]
        variables = [Variables(places) for u in (own, others) for places in u.variables]
        self.names.find([entry for i, entry in listed.items() if i in modules], rest, variables)
        self.generators = own.generators + others.generators
        objects = [(d, key, f"{name}.{key}") for name, d in rest for key in d]
        return objects + own.tensors + [(owner, key, f"loss_fn: {name}") for owner, key, name in others.tensors]

    def trainable(self, more: Sequence[tuple[Any, str, str]]) -> list[Tensor]:
        """Leaves that require a gradient: in containers, in attributes, and in the places ``(owner, key, name)``."""
        values = [owner.get(key) for owner, key, _ in more]
        values += [value for bound in self.names.bound for value in bound.owner.values()]
        values += [t for h in self._holders for t in _values(h.container)]
        return [t for t in values if isinstance(t, Tensor) and t.requires_grad and t.is_leaf]

    def __bool__(self) -> bool:
        """Whether there is anything to keep."""
        return bool(self._holders or self.names.bound)

    def now(self, first: bool) -> Moment:
        """What is there; copied are tensors that were written before and, in the first step, all."""
        held = []
        for i, h in enumerate(self._holders):
            other = None if h.owner is None else h.owner.get(h.key)
            container: Any = other if type(other) is type(h.container) else h.container
            entries: Any = container.copy()
            inside = [t for t in _values(entries) if isinstance(t, Tensor) or is_array(t)]
            left, kept = BUDGET if first or i in self._deep else -1, []
            for t in inside[:NEAR]:
                if t in self._weights:
                    continue
                left -= _size(t)
                kept.append((t, _version(t), _copied(t) if left >= 0 or is_array(t) else None))
            held.append(Held(container, entries, kept))
        return Moment(held, self.names.now())

    def look(self, before: Moment, places: Callable[[], set[Where]]) -> None:
        """Note what a pass that reports has written or made; the arguments are those of :meth:`put`."""
        for i, then in enumerate(before.held):
            if any(_version(t) != version for t, version, _ in then.tensors):
                self._deep.add(i)
        self.names.look(before.names, lambda: self._written(places))

    @torch.no_grad()
    def put(self, moment: Moment, places: Callable[[], set[Where]] = set) -> list[str]:
        """Put everything back.

        Args:
            moment: What was there.
            places: Gives where tensors are kept that passes have written.

        Returns:
            The names of containers with tensors whose values are gone.
        """
        lost = []
        for i, (h, then) in enumerate(zip(self._holders, moment.held, strict=False)):
            self._put_one(i, h, then)
            for t, version, copy in then.tensors:
                changed = _version(t) != version
                if copy is None and changed:
                    self._deep.add(i)
                    lost.append(h.name)
                elif copy is not None and (changed or i in self._deep or not _equal(t, copy)):
                    _fill(t, copy)
                    self._deep.add(i)
                    self.written[i] = h.name

        self.names.put(moment.names, lambda: self._written(places))
        return lost

    def _written(self, places: Callable[[], set[Where]]) -> set[Where]:
        """Where passes write: tensors, and containers."""
        holders = [self._holders[i] for i in self.written]
        return places() | {where(h.owner, h.key) for h in holders if h.owner is not None}

    def _put_one(self, i: int, h: Holder, then: Held) -> None:
        """Bind a container where it was, in place of one that the pass has made, and give it its entries."""
        there, other = then.container, None if h.owner is None else h.owner.get(h.key)
        if type(other) is type(there) and other is not there and (holds(other) or holds(there)):
            h.owner[h.key] = there
            self.written[i] = h.name
        if not _same(there, then.entries) and _counts(there, then.entries, h.log):
            self.written[i] = h.name
            there.clear()
            (there.update if isinstance(there, dict | set) else there.extend)(then.entries)


def _values(container: Any) -> Sequence[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _counts(now: Any, then: Any, log: bool) -> bool:
    """Whether a container that has changed is state: it holds tensors, or numbers in places of their own.

    A list that real numbers and arrays are appended to is taken for a log; in hooks and classes so are all that grow.
    """
    if not log and (holds(now, tensors=True) or holds(then, tensors=True)):
        return True
    fixed = isinstance(now, dict) or len(now) == len(then) or (isinstance(now, deque) and now.maxlen is not None)
    return fixed and (holds(now) or holds(then))


def _tracked(container: Any) -> bool:
    """Whether it holds tensors, arrays or real numbers, or nothing yet."""
    return len(container) <= MOST and (not container or holds(container))


def _same(a: Any, b: Any) -> bool:
    if len(a) != len(b) or (isinstance(a, dict) and list(a) != list(b)):
        return False
    return all(x is y for x, y in zip(_values(a), _values(b), strict=True))


def _size(t: Any) -> int:
    return int(t.numel() if isinstance(t, Tensor) else t.size)


def _copied(t: Any) -> Any:
    if isinstance(t, Tensor):
        return None if t.is_inference() else t.detach().clone()
    return t.copy()


def _equal(t: Any, copy: Any) -> bool:
    return torch.equal(t.detach(), copy) if isinstance(t, Tensor) else t.tobytes() == copy.tobytes()


def _fill(t: Any, copy: Any) -> None:
    """Put values back in place."""
    if isinstance(t, Tensor):
        t.detach().copy_(copy)
    elif t.flags.writeable:
        t[...] = copy


def _version(t: Any) -> int:
    return 0 if not isinstance(t, Tensor) or t.is_inference() else t._version
