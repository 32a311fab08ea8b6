"""Lists, deques and dicts with tensors, and numbers in attributes, which passes may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.executors.keepers import where
from lowland.executors.places import Weights
from lowland.executors.uses import OWN, Uses, uses

MOST = 4096  # entries of a container that is looked at
NEAR = 64  # entries whose values are copied
BUDGET = 1 << 24  # numbers in all of them together

_NUMBERS = (int, float, bool)


class Holder(NamedTuple):
    """A container, and where it is kept; the owner is None where that is another container."""

    owner: Any
    key: str
    container: Any
    name: str


class Held(NamedTuple):
    """A container and what was in it: its entries, and versions and copies of tensors among them."""

    container: Any
    entries: Any
    tensors: list[tuple[Tensor, int, Tensor | None]]


class Moment(NamedTuple):
    """Containers and numbers at one moment."""

    held: list[Held]
    numbers: list[list[Any]]


class Containers:
    """What a model and its loss function keep beside tensors in attributes.

    Numbers of modules go back, and so do floats of other objects; whole numbers there may well count passes.
    """

    def __init__(self) -> None:
        self._holders: list[Holder] = []
        self._numbers: list[tuple[dict[str, Any], list[str]]] = []
        self._deep: set[int] = set()  # containers whose tensors are written in place
        self._weights = Weights()  # which displacement moves and restores
        self.written: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}  # of the loss function, and those in containers of the model

    def find(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> list[tuple[Any, str, str]]:
        """Look for all of them; what is returned are tensors in other places, ``(owner, key, name)``."""
        own, others = Uses(), uses(loss_fn)
        for name, m in model.named_modules():
            own.attributes(m, name)
        self._weights = Weights(model)
        inside = set(model.modules())
        for place, top in others.modules.items():
            for name, m in top.named_modules():
                if m not in inside:
                    own.attributes(m, f"loss_fn: {place}.{name}".rstrip("."))
        known = {where(h.container, "") for h in self._holders}
        found = [Holder(*entry) for u in (own, others) for entry in u.containers]
        self._holders += [h for h in found if where(h.container, "") not in known and _tracked(h.container)]
        self.modules = {f"loss_fn: {place}": m for place, m in others.modules.items()} | own.modules
        modules = {id(vars(m)) for top in (model, *self.modules.values()) for m in top.modules()}
        listed = {id(d): (d, name) for u in (own, others) for name, d in u.objects.items()}
        self._numbers = []
        for d, _ in listed.values():
            kinds = _NUMBERS if id(d) in modules else (float,)
            self._numbers.append((d, [k for k, v in d.items() if type(v) in kinds and k not in OWN]))
        self._numbers = [(d, keys) for d, keys in self._numbers if keys]
        objects = [(d, key, f"{name}.{key}") for i, (d, name) in listed.items() if i not in modules for key in d]
        return objects + own.tensors + others.tensors

    def __bool__(self) -> bool:
        """Whether there is anything to keep."""
        return bool(self._holders or self._numbers)

    def now(self, first: bool) -> Moment:
        """What is there; copied are tensors that were written before and, in the first step, all."""
        held = []
        for i, h in enumerate(self._holders):
            other = None if h.owner is None else h.owner.get(h.key)
            container: Any = other if type(other) is type(h.container) else h.container
            entries: Any = container.copy()
            inside = [t for t in _values(entries) if isinstance(t, Tensor)]
            left, kept = BUDGET if first or i in self._deep else -1, []
            for t in inside[:NEAR]:
                if t in self._weights:
                    continue
                left -= t.numel()
                kept.append((t, _version(t), t.detach().clone() if left >= 0 and not t.is_inference() else None))
            held.append(Held(container, entries, kept))
        return Moment(held, [[d.get(key) for key in keys] for d, keys in self._numbers])

    @torch.no_grad()
    def put(self, moment: Moment) -> list[str]:
        """Put everything back.

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
                elif copy is not None and (changed or i in self._deep or not torch.equal(t.detach(), copy)):
                    t.detach().copy_(copy)
                    self._deep.add(i)
                    self.written[i] = h.name
        for (d, keys), values in zip(self._numbers, moment.numbers, strict=False):
            for key, value in zip(keys, values, strict=False):
                if d.get(key) is not value and type(d.get(key)) in _NUMBERS:
                    d[key] = value
        return lost

    def _put_one(self, i: int, h: Holder, then: Held) -> None:
        """Bind a container where it was, in place of one that the pass has made, and give it its entries."""
        there, other = then.container, None if h.owner is None else h.owner.get(h.key)
        if type(other) is type(there) and other is not there and (_has_tensor(other) or _has_tensor(there)):
            h.owner[h.key] = there
            self.written[i] = h.name
        if not _same(there, then.entries) and (_has_tensor(there) or _has_tensor(then.entries)):
            self.written[i] = h.name
            there.clear()
            (there.update if isinstance(there, dict) else there.extend)(then.entries)


def _values(container: Any) -> Sequence[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _has_tensor(container: Any) -> bool:
    return any(isinstance(t, Tensor) for t in _values(container))


def _tracked(container: Any) -> bool:
    """Whether it holds tensors, or nothing yet."""
    return len(container) <= MOST and (not container or _has_tensor(container))


def _same(a: Any, b: Any) -> bool:
    if len(a) != len(b) or (isinstance(a, dict) and list(a) != list(b)):
        return False
    return all(x is y for x, y in zip(_values(a), _values(b), strict=True))


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version
