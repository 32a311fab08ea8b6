"""Keeps the batch of a step the same in all of its passes, whatever forward and the loss function write."""

from __future__ import annotations

import io
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.core.errors import BatchError
from lowland.executors.containers import refill, same_entries
from lowland.executors.kept import copied, version

DEEP = 6  # how many levels of a batch are looked at
MANY = 2000  # the most entries of a batch that are looked at
LARGE = 1 << 26  # the most numbers of a tensor that the first step copies in case that a pass writes it
_PLAIN = (str, bytes, int, float, complex, nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)


class _Entry(NamedTuple):
    """A tensor of a batch before the first pass on it, with its name, its version, and a copy if one is kept."""

    name: str
    tensor: Tensor
    version: int
    copy: Tensor | None


class _Snapshot:
    """The tensors and containers of a batch before the first pass on it.

    Attributes:
        batch: The batch; while it is held, no other object has its id.
        tensors: Its tensors, by name.
        containers: Its lists and dictionaries, and those of its objects' attributes, each with a copy.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.tensors: dict[str, Tensor] = {}
        self.containers: list[tuple[Any, Any]] = []
        self.entries: list[_Entry] = []
        self._ids: set[int] = set()
        self._walk(batch, "batch", 0)

    def _walk(self, node: Any, name: str, depth: int) -> None:
        if isinstance(node, Tensor):
            self.tensors[name] = node
            return
        if node is None or isinstance(node, _PLAIN) or depth > DEEP or id(node) in self._ids or len(self._ids) > MANY:
            return
        self._ids.add(id(node))
        if isinstance(node, Iterator) and not isinstance(node, io.IOBase):
            raise BatchError(
                f"a batch must be the same in all passes, but {name} is a {type(node).__name__}, an iterator, which "
                "can be read once; put in what it gives, such as next(iterator)"
            )
        if isinstance(node, dict | list):
            self.containers.append((node, dict(node) if isinstance(node, dict) else list(node)))
        if isinstance(node, dict | list | tuple):
            for key, part in list(node.items() if isinstance(node, dict) else enumerate(node))[:MANY]:
                self._walk(part, f"{name}[{key!r}]", depth + 1)
        elif isinstance(getattr(node, "__dict__", None), dict):  # such as Parts, a graph, or transformers.BatchEncoding
            self._walk(vars(node), name, depth + 1)

    def restore_containers(self) -> None:
        """Put back what a pass has taken out of lists and dictionaries, added to them or replaced in them."""
        for container, entries in self.containers:
            if not same_entries(container, entries):
                refill(container, entries)


class Examples:
    """The batches of a step, with copies of what passes write in place.

    The first step copies all tensors of a batch. Later steps copy only those that a pass has written before, so that
    a training that leaves its batches alone pays for a look at their versions.

    Attributes:
        restored: The ids of the tensors that were restored in this step.
    """

    def __init__(self) -> None:
        self._written: set[str] = set()
        self._snapshots: dict[int, _Snapshot] = {}
        self._first = True
        self.restored: set[int] = set()

    def begin(self, first: bool) -> None:
        """Begin a step; ``first``: no step has been completed yet."""
        self._snapshots, self._first, self.restored = {}, first, set()

    def end(self, *, failed: bool = False) -> None:
        """End a step; after a failed one, the batches are as they were where that is known."""
        snapshots, self._snapshots = self._snapshots, {}
        for snapshot in snapshots.values() if failed else ():
            snapshot.restore_containers()
            self._restore(snapshot)

    def before_pass(self, batch: Any) -> None:
        """Note a batch before the first pass on it; restore it before the others.

        Raises:
            BatchError: The batch holds an iterator; or a pass has written a tensor that was not copied.
        """
        if batch is None:
            return
        snapshot = self._snapshots.get(id(batch))
        if snapshot is None:
            self._snapshots[id(batch)] = self._noted(batch)
            return
        snapshot.restore_containers()
        lost = self._restore(snapshot)
        if lost:
            raise BatchError(
                f"a batch must be the same in all passes, but {lost[0]} was written in place, for the first time after "
                "the first step, so its values before are gone; the step is taken back, and from now on it is kept: "
                "load the batch again, or let forward and loss_fn write a copy, such as inputs.clone()"
            )

    def restore(self) -> None:
        """Restore all batches of this step, for a method that keeps or cuts them; errors as of :meth:`before_pass`."""
        for snapshot in list(self._snapshots.values()):
            self.before_pass(snapshot.batch)

    def _noted(self, batch: Any) -> _Snapshot:
        snapshot = _Snapshot(batch)
        for name, t in snapshot.tensors.items():
            wanted = name in self._written or (self._first and t.numel() <= LARGE)
            dense = not t.is_nested and t.layout is torch.strided
            snapshot.entries.append(_Entry(name, t, version(t), copied(t) if wanted and dense else None))
        return snapshot

    @torch.no_grad()
    def _restore(self, snapshot: _Snapshot) -> list[str]:
        """Restore the tensors that were written; returns the names of those without a copy."""
        lost = []
        for i, entry in enumerate(snapshot.entries):
            if version(entry.tensor) == entry.version:
                continue
            self._written.add(entry.name)
            if entry.copy is None or entry.copy.shape != entry.tensor.shape:
                lost.append(entry.name)
                continue
            entry.tensor.detach().copy_(entry.copy)
            self.restored.add(id(entry.tensor))
            snapshot.entries[i] = entry._replace(version=version(entry.tensor))
        return lost
