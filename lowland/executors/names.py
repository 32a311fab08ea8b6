"""Restores the names of modules, objects, functions and classes that a pass binds to other values."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from lowland.executors.keepers import ABSENT, where

OWN = frozenset(vars(nn.Module()))  # the attributes that every module has
NEAR = 64  # how many entries of a container or an object are searched

Where: TypeAlias = "tuple[int, str]"


def is_array(value: Any) -> bool:
    """Whether a value is a NumPy array of numbers; NumPy need not be installed."""
    kind = type(value)
    return kind.__name__ == "ndarray" and kind.__module__ == "numpy" and value.dtype.kind in "biufc"


def holds(value: Any, depth: int = 3, *, tensors: bool = False) -> bool:
    """Whether a value is, or contains, a tensor, an array or a float.

    Args:
        value: The value.
        depth: The depth of containers and objects that is searched.
        tensors: Look for tensors only.
    """
    if isinstance(value, Tensor):
        return True
    if isinstance(value, float) or is_array(value):
        return not tensors
    if isinstance(value, nn.Module | type | str | int | None) or depth == 0:
        return False
    if isinstance(value, tuple | list | deque | set | dict):
        parts = list(value.values() if isinstance(value, dict) else value)[:NEAR]
        return any(holds(part, depth - 1, tensors=tensors) for part in parts)
    attributes = getattr(value, "__dict__", None) if type(value).__module__ != "builtins" else None
    return isinstance(attributes, dict) and any(holds(part, depth - 1, tensors=tensors) for part in attributes.values())


class Variables:
    """Variables of one function, slots of one object, or attributes of one class, as a dictionary by number.

    Args:
        places: The owner and the key of each variable.
    """

    def __init__(self, places: Sequence[tuple[Any, str]]) -> None:
        self.places = places
        self.identity = frozenset(where(owner, key) for owner, key in places)  # the same after every search

    def copy(self) -> dict[Any, Any]:
        """The current values, by number."""
        return dict(enumerate(self.values()))

    def values(self) -> list[Any]:
        """The current values."""
        return [owner.get(key, ABSENT) for owner, key in self.places]

    def get(self, number: int, default: Any = None) -> Any:
        """The current value of one variable."""
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
        name: The owner's name, for messages.
        owner: The dictionary of a module or an object, or variables.
        always: Whether all names are restored, as for a module. The names of another owner are restored only if passes
            also write a tensor, an array or a float of that owner, because single integers may count passes.
    """

    name: str
    owner: Any
    always: bool


class Bindings(NamedTuple):
    """The values of all names at one moment.

    Attributes:
        bound: The owners: first those with dictionaries, then variables.
        copies: A copy of each owner's names and values.
        dicts: The dictionaries of the first owners.
    """

    bound: list[Bound]
    copies: list[dict[Any, Any]]
    dicts: list[dict[str, Any]]

    def changed(self) -> Iterator[tuple[Bound, dict[Any, Any]]]:
        """The owners whose names have changed, each with its earlier values.

        All dictionaries are compared in one pass, which takes a third of the time of a loop over them.
        """
        earlier = self.copies[: len(self.dicts)]
        current, before = (chain.from_iterable(map(dict.values, part)) for part in (self.dicts, earlier))
        same = sum(map(len, self.dicts)) == sum(map(len, earlier)) and all(map(operator.is_, current, before))
        start = len(self.dicts) if same else 0
        for bound, copy in zip(self.bound[start:], self.copies[start:], strict=True):
            if not _same(bound.owner, copy):
                yield bound, copy


class Names:
    """All owners of names that a model and its loss function use.

    Attributes:
        bound: The owners.
        fresh: Whether passes have created objects that have not been searched yet.
        written: The names of the numbers that passes have changed.
    """

    def __init__(self) -> None:
        self.bound: list[Bound] = []
        self._dicts: list[dict[str, Any]] = []  # the dictionaries of the first owners
        self.fresh = False
        self.written: dict[str, None] = {}
        self._alive: set[Any] = set()  # the identities of owners with state that passes write
        self._noted: set[tuple[int, Any]] = set()  # the names whose new values were searched once

    def find(
        self,
        modules: Iterable[tuple[str, dict[str, Any]]],
        objects: Iterable[tuple[str, dict[str, Any]]],
        variables: Iterable[Variables],
    ) -> None:
        """Replace the owners by these dictionaries of modules, dictionaries of objects, and variables."""
        always = {id(d): Bound(name, d, True) for name, d in modules}
        others = {id(d): Bound(name, d, False) for name, d in objects if id(d) not in always}
        dicts = [*always.values(), *others.values()]
        self.bound, self.fresh = [*dicts, *(Bound("", v, False) for v in variables)], False
        self._dicts = [bound.owner for bound in dicts]

    def current(self) -> Bindings:
        """The current values of all names."""
        others = [bound.owner.copy() for bound in self.bound[len(self._dicts) :]]
        return Bindings(self.bound, [*map(dict.copy, self._dicts), *others], self._dicts)

    def note(self, before: Bindings, written: Callable[[], Collection[Where]]) -> None:
        """Note the names that a pass that reports has changed or added; the arguments are those of :meth:`restore`."""
        for bound, earlier in before.changed():
            changed, added = _changes(bound.owner, earlier)
            self._note(bound.owner, [*changed, *added])
            if bound.always or self._live(bound.owner, earlier, [*changed, *added], written):
                self._count(bound, earlier, changed)

    def restore(self, before: Bindings, written: Callable[[], Collection[Where]]) -> None:
        """Restore the values of all names.

        Args:
            before: The values to restore.
            written: Returns the places of the tensors that passes have written.
        """
        for bound, earlier in before.changed():
            _, owner, always = bound
            changed, added = _changes(owner, earlier)
            if not (changed or added) or not (always or self._live(owner, earlier, [*changed, *added], written)):
                continue
            self._note(owner, [*changed, *added])
            self._count(bound, earlier, changed)
            for key in changed:
                owner[key] = earlier[key]
            for key in added:
                del owner[key]

    def _live(
        self, owner: Any, earlier: dict[Any, Any], changed: list[Any], written: Callable[[], Collection[Where]]
    ) -> bool:
        """Whether an owner that is no module holds state: passes write a tensor, an array or a float of it."""
        owner_id = owner.identity if isinstance(owner, Variables) else id(owner)
        if owner_id in self._alive:
            return True
        alive = any(holds(owner.get(key)) or holds(earlier.get(key)) for key in changed)
        if not alive and isinstance(owner, Variables):
            alive = not owner.identity.isdisjoint(written())
        elif not alive:
            alive = any(i == id(owner) for i, _ in written())
        if alive:
            self._alive.add(owner_id)
        return alive

    def _count(self, bound: Bound, earlier: dict[Any, Any], changed: list[Any]) -> None:
        """Note the names of the numbers that have changed."""
        name, owner, _ = bound
        for key in changed:
            if _other_number(earlier[key], owner.get(key, ABSENT)):
                self.written[f"{name}.{_key(owner, key)}".lstrip(".")] = None

    def _note(self, owner: Any, keys: list[Any]) -> None:
        """Ask for a new search if a name has a new value that is no number, string or None, once for each name."""
        for key in keys:
            value, place = owner.get(key), (id(owner), key)
            if place not in self._noted and not isinstance(value, int | float | str | None):
                self._noted.add(place)
                self.fresh = True


def _same(owner: Any, earlier: dict[Any, Any]) -> bool:
    return len(owner) == len(earlier) and all(map(operator.is_, owner.values(), earlier.values()))


def _changes(owner: Any, earlier: dict[Any, Any]) -> tuple[list[Any], list[Any]]:
    """The names that have changed or are missing, and the names that are new."""
    changed = [k for k in earlier if k not in OWN and owner.get(k, ABSENT) is not earlier[k]]
    return changed, [k for k in owner if k not in earlier and k not in OWN]


def _other_number(before: Any, current: Any) -> bool:
    return isinstance(before, int | float) and isinstance(current, int | float) and before != current


def _key(owner: Any, key: Any) -> str:
    return owner.places[key][1] if isinstance(owner, Variables) else str(key)
