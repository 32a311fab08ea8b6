"""Saves and restores lists, deques and dicts with tensors, and numbers in attributes, which passes may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.executors.keepers import where
from lowland.executors.places import Weights
from lowland.executors.uses import OWN, Uses, uses

MOST = 4096  # containers with more entries are ignored
NEAR = 64  # at most this many tensors of a container are copied
BUDGET = 1 << 24  # at most this many numbers of a container's tensors are copied

_NUMBERS = (int, float, bool)


class Holder(NamedTuple):
    """A container and its place; the owner is None for a container inside another one."""

    owner: Any
    key: str
    container: Any
    name: str


class SavedContainer(NamedTuple):
    """A container with a copy of its entries, and the versions and copies of the tensors among them."""

    container: Any
    entries: Any
    tensors: list[tuple[Tensor, int, Tensor | None]]


class ContainerSnapshot(NamedTuple):
    """Copies of all containers and numbers at one moment."""

    containers: list[SavedContainer]
    numbers: list[list[Any]]


class Containers:
    """The containers and numbers of a model and its loss function.

    Numbers in attributes of modules and floats in attributes of other objects are restored. Integers of other objects
    are not, because they may count passes.

    Attributes:
        written: The names of the containers that a pass has changed.
        modules: The modules of the loss function and the modules in containers of the model, by name.
    """

    def __init__(self) -> None:
        self._holders: list[Holder] = []
        self._numbers: list[tuple[dict[str, Any], list[str]]] = []
        self._copied: set[int] = set()  # containers whose tensors passes write in place, so they are always copied
        self._weights = Weights()  # the displacement moves and restores these
        self.written: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}

    def find(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> list[tuple[Any, str, str]]:
        """Search a model and a loss function for containers and numbers.

        Returns:
            ``(owner, key, name)`` of tensors in other places.
        """
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
        holders = [Holder(*entry) for u in (own, others) for entry in u.containers]
        self._holders += [h for h in holders if where(h.container, "") not in known and _tracked(h.container)]
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
        """Whether there are containers or numbers."""
        return bool(self._holders or self._numbers)

    def save(self, first: bool) -> ContainerSnapshot:
        """Save all entries and numbers.

        Args:
            first: Whether this is the first step, in which all tensors are copied; later, only tensors of containers
                whose tensors were written before.
        """
        containers = []
        for i, h in enumerate(self._holders):
            current = None if h.owner is None else h.owner.get(h.key)
            container: Any = current if type(current) is type(h.container) else h.container
            entries: Any = container.copy()
            inside = [t for t in _values(entries) if isinstance(t, Tensor)]
            left, saved = BUDGET if first or i in self._copied else -1, []
            for t in inside[:NEAR]:
                if t in self._weights:
                    continue
                left -= t.numel()
                saved.append((t, _version(t), t.detach().clone() if left >= 0 and not t.is_inference() else None))
            containers.append(SavedContainer(container, entries, saved))
        return ContainerSnapshot(containers, [[d.get(key) for key in keys] for d, keys in self._numbers])

    @torch.no_grad()
    def restore(self, snapshot: ContainerSnapshot) -> list[str]:
        """Restore all entries and numbers.

        Returns:
            The names of containers with tensors that cannot be restored, because they were not copied.
        """
        lost = []
        for i, (h, saved) in enumerate(zip(self._holders, snapshot.containers, strict=False)):
            self._restore_one(i, h, saved)
            for t, version, copy in saved.tensors:
                changed = _version(t) != version
                if copy is None and changed:
                    self._copied.add(i)
                    lost.append(h.name)
                elif copy is not None and (changed or i in self._copied or not torch.equal(t.detach(), copy)):
                    t.detach().copy_(copy)
                    self._copied.add(i)
                    self.written[i] = h.name
        for (d, keys), values in zip(self._numbers, snapshot.numbers, strict=False):
            for key, value in zip(keys, values, strict=False):
                if d.get(key) is not value and type(d.get(key)) in _NUMBERS:
                    d[key] = value
        return lost

    def _restore_one(self, i: int, h: Holder, saved: SavedContainer) -> None:
        """Assign a container to its place again if a pass has assigned another one, and restore its entries."""
        container, current = saved.container, None if h.owner is None else h.owner.get(h.key)
        is_replaced = type(current) is type(container) and current is not container
        if is_replaced and (_has_tensor(current) or _has_tensor(container)):
            h.owner[h.key] = container
            self.written[i] = h.name
        if not _same(container, saved.entries) and (_has_tensor(container) or _has_tensor(saved.entries)):
            self.written[i] = h.name
            container.clear()
            (container.update if isinstance(container, dict) else container.extend)(saved.entries)


def _values(container: Any) -> Sequence[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _has_tensor(container: Any) -> bool:
    return any(isinstance(t, Tensor) for t in _values(container))


def _tracked(container: Any) -> bool:
    """Whether a container has tensors or is empty, and is not too large."""
    return len(container) <= MOST and (not container or _has_tensor(container))


def _same(a: Any, b: Any) -> bool:
    if len(a) != len(b) or (isinstance(a, dict) and list(a) != list(b)):
        return False
    return all(x is y for x, y in zip(_values(a), _values(b), strict=True))


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version
