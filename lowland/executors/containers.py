"""Restores the containers (lists, deques, sets, dicts) and the values of names that a pass changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.core import shards
from lowland.executors.code import global_hooks
from lowland.executors.keepers import where
from lowland.executors.names import NEAR, Bindings, Names, Variables, Where, holds, is_array
from lowland.executors.places import Weights
from lowland.executors.uses import SHALLOW, Uses, uses

MOST = 4096  # the most entries of a container that is restored
BUDGET = 1 << 24  # the most numbers that are copied from the tensors of one container


class Holder(NamedTuple):
    """A container and its place.

    Attributes:
        owner: The dictionary, or the owner of names, that binds the container; None if another container holds it.
        key: The container's name in the owner.
        container: The container.
        name: The name for messages.
        log: Whether a hook or a class owns it, so that appended entries are taken for a log.
        of_module: Whether it is an attribute of a module, whose integers are state as its attributes are.
    """

    owner: Any
    key: str
    container: Any
    name: str
    log: bool
    of_module: bool = False


class Contents(NamedTuple):
    """A container at one moment: its entries, and each of their tensors and arrays with its version and a copy."""

    container: Any
    entries: Any
    tensors: list[tuple[Any, int, Any]]


class Moment(NamedTuple):
    """The contents of containers and the values of names at one moment."""

    contents: list[Contents]
    names: Bindings


class Containers:
    """The containers and names of a model and its loss function.

    Attributes:
        names: The names of modules, objects, functions and classes.
        modules: The modules of the loss function, and the modules in containers of the model.
        generators: Random number generators that the model or the loss function keeps.
        iterators: The names of iterators from which model or loss function draw.
        differentiates: Whether code of the model or the loss function may differentiate a part of the loss itself.
        asks: Whether such code may ask which tensors require a gradient, or differentiate by the weights.
        written: The names of containers that a pass has written.
    """

    def __init__(self) -> None:
        self._holders: list[Holder] = []
        self.names = Names()
        self.generators: list[Any] = []
        self.iterators: list[str] = []
        self.differentiates = self.asks = False
        self._in_place: set[int] = set()  # the indices of containers whose tensors passes write in place
        self._weights = Weights()  # not copied, because the displacement restores them
        self.written: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}

    def find(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> list[tuple[Any, str, str]]:
        """Search the model and the loss function for containers, names, modules and generators.

        Returns:
            ``(owner, key, name)`` of each tensor outside containers and modules.
        """
        of_model, of_loss = Uses(), uses(loss_fn)
        named = list(model.named_modules())
        self._weights = Weights(model)
        members = set(model.modules())
        for path, top in of_loss.modules.items():
            named += [(f"loss_fn: {path}.{n}".rstrip("."), m) for n, m in top.named_modules() if m not in members]
        for look in (of_model.attributes, of_model.surroundings):
            for name, m in named:
                look(m, name)
        for hook in global_hooks():
            of_model.look(hook, "a hook of all modules", SHALLOW)
        known = {where(h.container, "") for h in self._holders}
        self.modules = {f"loss_fn: {path}": m for path, m in of_loss.modules.items()} | of_model.modules
        modules = {id(vars(m)) for top in (model, *self.modules.values()) for m in top.modules()}
        new = [Holder(*entry, id(entry[0]) in modules) for u in (of_model, of_loss) for entry in u.containers]
        self._holders += [h for h in new if where(h.container, "") not in known and _tracked(h)]
        listed = {id(d): (name, d) for name, d in of_model.objects}
        listed |= {id(d): (f"loss_fn: {name}", d) for name, d in of_loss.objects if id(d) not in listed}
        no_modules = [entry for i, entry in listed.items() if i not in modules]
        variables = [Variables(places) for u in (of_model, of_loss) for places in u.variables]
        self.names.find([entry for i, entry in listed.items() if i in modules], no_modules, variables)
        self.generators = of_model.generators + of_loss.generators
        self.iterators = of_model.iterators + of_loss.iterators
        self.differentiates = of_model.differentiates or of_loss.differentiates
        self.asks = of_model.asks or of_loss.asks
        objects = [(d, key, f"{name}.{key}") for name, d in no_modules for key in d]
        return objects + of_model.tensors + [(owner, key, f"loss_fn: {name}") for owner, key, name in of_loss.tensors]

    def trainable(self, more: Sequence[tuple[Any, str, str]]) -> list[Tensor]:
        """The leaf tensors that require a gradient, in containers, attributes and places ``(owner, key, name)``."""
        values = [owner.get(key) for owner, key, _ in more]
        values += [value for bound in self.names.bound for value in bound.owner.values()]
        values += [t for h in self._holders for t in _values(h.container)]
        return [t for t in values if isinstance(t, Tensor) and t.requires_grad and t.is_leaf]

    def __bool__(self) -> bool:
        """Whether there are containers or names."""
        return bool(self._holders or self.names.bound)

    def current(self, first: bool) -> Moment:
        """The current contents; a container's tensors are copied if passes write them, and in the first step."""
        contents = []
        for i, h in enumerate(self._holders):
            other = None if h.owner is None else h.owner.get(h.key)
            container: Any = other if type(other) is type(h.container) else h.container
            entries: Any = container.copy()
            members = [t for t in _values(entries) if isinstance(t, Tensor) or is_array(t)]
            budget, kept = BUDGET if first or i in self._in_place else -1, []
            for t in members[:NEAR]:
                if t in self._weights:
                    continue
                budget -= _size(t)
                kept.append((t, _version(t), _copied(t) if budget >= 0 or is_array(t) else None))
            contents.append(Contents(container, entries, kept))
        return Moment(contents, self.names.current())

    def note(self, before: Moment, places: Callable[[], set[Where]]) -> None:
        """Note what a pass that reports has written or created; the arguments are those of :meth:`restore`."""
        for i, earlier in enumerate(before.contents):
            if any(_version(t) != version for t, version, _ in earlier.tensors):
                self._in_place.add(i)
        self.names.note(before.names, lambda: self._written(places))

    @torch.no_grad()
    def restore(self, moment: Moment, places: Callable[[], set[Where]] = set) -> list[str]:
        """Restore all contents and names.

        Args:
            moment: The contents and names to restore.
            places: Returns the places of the tensors that passes have written.

        Returns:
            The names of containers with a tensor that was written, but not copied.
        """
        lost = []
        for i, (h, earlier) in enumerate(zip(self._holders, moment.contents, strict=False)):
            self._restore_one(i, h, earlier)
            for t, version, copy in earlier.tensors:
                changed = _version(t) != version
                if copy is None and changed:
                    self._in_place.add(i)
                    lost.append(h.name)
                elif copy is not None and (changed or i in self._in_place or not _equal(t, copy)):
                    _fill(t, copy)
                    self._in_place.add(i)
                    self.written[i] = h.name

        self.names.restore(moment.names, lambda: self._written(places))
        return lost

    def _written(self, places: Callable[[], set[Where]]) -> set[Where]:
        """The places of the tensors and of the containers that passes have written."""
        holders = [self._holders[i] for i in self.written]
        return places() | {where(h.owner, h.key) for h in holders if h.owner is not None}

    def _restore_one(self, i: int, h: Holder, earlier: Contents) -> None:
        """Bind the original container again if the pass has bound another, and restore its entries."""
        original, other = earlier.container, None if h.owner is None else h.owner.get(h.key)
        if type(other) is type(original) and other is not original and _is_state(other, original, h):
            h.owner[h.key] = original
            self.written[i] = h.name
        if not same_entries(original, earlier.entries) and _counts(original, earlier.entries, h):
            self.written[i] = h.name
            refill(original, earlier.entries)


def _values(container: Any) -> Sequence[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _is_state(current: Any, earlier: Any, h: Holder) -> bool:
    """Whether a container holds tensors, arrays or floats, or belongs to a module."""
    return h.of_module or holds(current) or holds(earlier)


def _counts(current: Any, earlier: Any, h: Holder) -> bool:
    """Whether a container that has changed is state, and is restored.

    A container with tensors is state. A container of floats and arrays, and any container of a module, is state if its
    length is constant; a list that grows is taken for a log. If ``h.log`` is true, this rule also holds for containers
    with tensors.
    """
    if not h.log and (holds(current, tensors=True) or holds(earlier, tensors=True)):
        return True
    fixed = (
        isinstance(current, dict)
        or len(current) == len(earlier)
        or (isinstance(current, deque) and current.maxlen is not None)
    )
    return fixed and _is_state(current, earlier, h)


def _tracked(h: Holder) -> bool:
    """Whether a container may hold state: it is empty, has data or None, or integers of a module."""
    if len(h.container) > MOST:
        return False
    values = _values(h.container)[:NEAR]
    numbers = h.of_module and any(isinstance(value, int) for value in values)
    return not values or numbers or None in map(_none, values) or holds(h.container)


def _none(value: Any) -> Any:
    """None for None; comparing tensors with None would compare their entries."""
    return None if value is None else 0


def same_entries(a: Any, b: Any) -> bool:
    """Whether two containers have the very same entries, in the same order."""
    if len(a) != len(b) or (isinstance(a, dict) and list(a) != list(b)):
        return False
    return all(x is y for x, y in zip(_values(a), _values(b), strict=True))


def refill(container: Any, entries: Any) -> None:
    """Replace the entries of a container by those of a copy."""
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(entries)


def _size(t: Any) -> int:
    return int(t.numel() if isinstance(t, Tensor) else t.size)


def _copied(t: Any) -> Any:
    if isinstance(t, Tensor):
        return None if t.is_inference() else t.detach().clone()
    return t.copy()


def _equal(t: Any, copy: Any) -> bool:
    return shards.same(t.detach(), copy) if isinstance(t, Tensor) else t.tobytes() == copy.tobytes()


def _fill(t: Any, copy: Any) -> None:
    """Write the values of a copy into the tensor or array."""
    if isinstance(t, Tensor):
        t.detach().copy_(copy)
    elif t.flags.writeable:
        t[...] = copy


def _version(t: Any) -> int:
    return 0 if not isinstance(t, Tensor) or t.is_inference() else t._version
