"""What modules, objects, functions and classes bind to their names, where a pass may bind something else."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from lowland.executors.keepers import ABSENT, where

OWN = frozenset(vars(nn.Module()))  # what every module has in its dictionary
NEAR = 64  # entries that are looked at

Where: TypeAlias = "tuple[int, str]"


def is_array(value: Any) -> bool:
    """Whether it is a NumPy array of numbers; NumPy need not be there."""
    kind = type(value)
    return kind.__name__ == "ndarray" and kind.__module__ == "numpy" and value.dtype.kind in "biufc"


def holds(value: Any, depth: int = 3, *, tensors: bool = False) -> bool:
    """Whether a value is, or holds, what a forward pass computes: tensors, or also arrays and real numbers."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, float) or is_array(value):
        return not tensors
    if isinstance(value, nn.Module | type | str | int | None) or depth == 0:
        return False
    if isinstance(value, tuple | list | deque | set | dict):
        parts = list(value.values() if isinstance(value, dict) else value)[:NEAR]
        return any(holds(part, depth - 1, tensors=tensors) for part in parts)
    inside = getattr(value, "__dict__", None) if type(value).__module__ != "builtins" else None
    return isinstance(inside, dict) and any(holds(part, depth - 1, tensors=tensors) for part in inside.values())


class Variables:
    """Variables of one function, slots of one object, or attributes of one class, as a dictionary by number.

    Args:
        places: Where each is kept, and under which key.
    """

    def __init__(self, places: Sequence[tuple[Any, str]]) -> None:
        self.places = places
        self.identity = frozenset(where(owner, key) for owner, key in places)  # the same whenever they are found

    def copy(self) -> dict[Any, Any]:
        """What they are bound to."""
        return dict(enumerate(self.values()))

    def values(self) -> list[Any]:
        """The same without numbers."""
        return [owner.get(key, ABSENT) for owner, key in self.places]

    def get(self, number: int, default: Any = None) -> Any:
        """What one is bound to."""
        owner, key = self.places[number]
        return owner.get(key, default)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.places)))

    def __len__(self) -> int:
        return len(self.places)

    def __setitem__(self, number: int, value: Any) -> None:
        owner, key = self.places[number]
        if value is ABSENT:
            del owner[key]
        else:
            owner[key] = value

    def __delitem__(self, number: int) -> None:
        self[number] = ABSENT


class Bound(NamedTuple):
    """One owner of names.

    Attributes:
        name: Of the owner, for messages.
        owner: The dictionary of a module or an object, or variables.
        whole: Whether all that is bound goes back, as in a module. Of other owners it goes back where tensors, arrays
            or real numbers are written beside it: whole numbers by themselves may well count passes.
    """

    name: str
    owner: Any
    whole: bool


class Bindings(NamedTuple):
    """What owners bound at one moment: first dictionaries, so many, and then variables."""

    bound: list[Bound]
    copies: list[dict[Any, Any]]
    dicts: list[dict[str, Any]]

    def changed(self) -> Iterator[tuple[Bound, dict[Any, Any]]]:
        """The owners that bind something else now, and what they bound.

        Hundreds of modules are compared at once, which costs a third of one after the other.
        """
        then = self.copies[: len(self.dicts)]
        now, before = (chain.from_iterable(map(dict.values, part)) for part in (self.dicts, then))
        same = sum(map(len, self.dicts)) == sum(map(len, then)) and all(map(operator.is_, now, before))
        start = len(self.dicts) if same else 0
        for bound, copy in zip(self.bound[start:], self.copies[start:], strict=True):
            if not _same(bound.owner, copy):
                yield bound, copy


class Names:
    """All owners of names that a model and its loss function use.

    Attributes:
        bound: The owners.
        fresh: Whether passes have made something that nobody has looked at yet.
        written: The names of numbers that passes have changed.
    """

    def __init__(self) -> None:
        self.bound: list[Bound] = []
        self._dicts: list[dict[str, Any]] = []  # the owners of the first of these
        self.fresh = False
        self.written: dict[str, None] = {}
        self._alive: set[Any] = set()  # owners in which state was written
        self._noted: set[tuple[int, Any]] = set()  # names that were looked at once

    def find(
        self,
        modules: Iterable[tuple[str, dict[str, Any]]],
        objects: Iterable[tuple[str, dict[str, Any]]],
        variables: Iterable[Variables],
    ) -> None:
        """Take these owners in place of those known: dictionaries of modules and of objects, and variables."""
        whole = {id(d): Bound(name, d, True) for name, d in modules}
        rest = {id(d): Bound(name, d, False) for name, d in objects if id(d) not in whole}
        dicts = [*whole.values(), *rest.values()]
        self.bound, self.fresh = [*dicts, *(Bound("", v, False) for v in variables)], False
        self._dicts = [bound.owner for bound in dicts]

    def now(self) -> Bindings:
        """What all names are bound to."""
        rest = [bound.owner.copy() for bound in self.bound[len(self._dicts) :]]
        return Bindings(self.bound, [*map(dict.copy, self._dicts), *rest], self._dicts)

    def look(self, before: Bindings, written: Callable[[], Collection[Where]]) -> None:
        """Note what a pass that reports has changed or made new; the arguments are those of :meth:`put`."""
        for bound, then in before.changed():
            changed, made = _changes(bound.owner, then)
            self._note(bound.owner, [*changed, *made])
            if bound.whole or self._live(bound.owner, then, [*changed, *made], written):
                self._count(bound, then, changed)

    def put(self, before: Bindings, written: Callable[[], Collection[Where]]) -> None:
        """Bind all names as they were.

        Args:
            before: What they were bound to.
            written: Gives the places of tensors that passes have written.
        """
        for bound, then in before.changed():
            _, owner, whole = bound
            changed, made = _changes(owner, then)
            if not (changed or made) or not (whole or self._live(owner, then, [*changed, *made], written)):
                continue
            self._note(owner, [*changed, *made])
            self._count(bound, then, changed)
            for key in changed:
                owner[key] = then[key]
            for key in made:
                del owner[key]

    def _live(
        self, owner: Any, then: dict[Any, Any], changed: list[Any], written: Callable[[], Collection[Where]]
    ) -> bool:
        """Whether an owner that is no module holds state: tensors, arrays or real numbers in it are written."""
        known = owner.identity if isinstance(owner, Variables) else id(owner)
        if known in self._alive:
            return True
        alive = any(holds(owner.get(key)) or holds(then.get(key)) for key in changed)
        if not alive and isinstance(owner, Variables):
            alive = not owner.identity.isdisjoint(written())
        elif not alive:
            alive = any(i == id(owner) for i, _ in written())
        if alive:
            self._alive.add(known)
        return alive

    def _count(self, bound: Bound, then: dict[Any, Any], changed: list[Any]) -> None:
        """Note the names of numbers that have changed."""
        name, owner, _ = bound
        for key in changed:
            if _other_number(then[key], owner.get(key, ABSENT)):
                self.written[f"{name}.{_key(owner, key)}".lstrip(".")] = None

    def _note(self, owner: Any, keys: list[Any]) -> None:
        """Look again at what a name is bound to that is neither a tensor nor a number, once for each name."""
        for key in keys:
            value, place = owner.get(key), (id(owner), key)
            if place not in self._noted and not isinstance(value, int | float | str | None):
                self._noted.add(place)
                self.fresh = True


def _same(owner: Any, then: dict[Any, Any]) -> bool:
    return len(owner) == len(then) and all(map(operator.is_, owner.values(), then.values()))


def _changes(owner: Any, then: dict[Any, Any]) -> tuple[list[Any], list[Any]]:
    """The names that are bound to something else or gone, and those that are new."""
    changed = [k for k in then if k not in OWN and owner.get(k, ABSENT) is not then[k]]
    return changed, [k for k in owner if k not in then and k not in OWN]


def _other_number(before: Any, now: Any) -> bool:
    return isinstance(before, int | float) and isinstance(now, int | float) and before != now


def _key(owner: Any, key: Any) -> str:
    return owner.places[key][1] if isinstance(owner, Variables) else str(key)
