"""Restores tensors besides the parameters that forward or the loss writes, so that each step writes them only once.

The pass that reports writes them; all other passes leave them unchanged. They are registered buffers, frozen parameters
and tensors in attributes of the model, and of the modules and objects that the loss function uses. ``frozen_stats``
handles torch's BatchNorm instead.

A change of identity or version shows that a tensor was written. ``.data``, ``torch.nn.functional.batch_norm`` and
replayed CUDA graphs write without a new version. So the first step compares values, and later steps always restore
small tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.core import vec
from lowland.core.errors import UsageError
from lowland.core.probe import Probe
from lowland.core.shards import ORDINARY
from lowland.executors.containers import Containers, ContainerSnapshot
from lowland.executors.keepers import where
from lowland.executors.places import ABSENT, Place, Weights, tensor_places

_VERSION = operator.attrgetter("_version")

SMALL = 1 << 16  # tensors with up to this many entries are copied in every step
LARGE = 1 << 24  # the same limit in the first step, for tensors of the loss function, which may be a data set


WEIGHT = -1  # the version of a tensor that shares memory with a weight, because it is restored with the weight


class Saved(NamedTuple):
    """The saved value of a place.

    Args:
        tensor: The tensor; None; or ABSENT for a place that does not exist.
        version: The version of the tensor.
        copy: A copy of the tensor; None if it is not copied.
    """

    tensor: Any
    version: int
    copy: Tensor | None

    @property
    def rewritten(self) -> bool:
        """Whether the tensor was written since."""
        return self.version != WEIGHT and _version(self.tensor) != self.version


class Snapshot(list[Saved]):
    """The saved values of all places at one moment, and of the containers."""

    containers: ContainerSnapshot


class Buffers:
    """The tensors that passes may write, and their saved values.

    A pass that does not report starts from the values at the start of the pass that reports on the same batch, or else
    at the start of the step. At its end, the values before the pass are restored.

    Args:
        model: The model.
        loss_fn: The loss function, whose modules and tensors are included.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> None:
        self._model, self._loss_fn = model, loss_fn
        self._first_step = True  # until a step has been completed, all tensors are copied
        self._written: set[int] = set()  # the indices of places that passes have written
        self._existing: set[tuple[int, str]] = set()  # the entries of the model's modules at the start of the step
        self._start: Snapshot | None = None  # at the start of the step
        self._starts: dict[int, Snapshot] = {}  # at the start of passes that report, by the id of the batch
        self._places: list[Place] = []
        self._containers = Containers()
        self._weights = Weights()
        self._unwritten: list[Place] = []  # frozen parameters that no pass has written
        self._watched: list[Tensor] = []  # the tensors of _unwritten
        self._versions: list[int] = []  # the versions of _watched at the start of the step
        self._must_copy: set[tuple[int, str]] = set()  # places that are copied at any size

    @property
    def written(self) -> list[str]:
        """The names of all tensors and containers that a pass has written, except running statistics."""
        names = [self._places[i].name for i in sorted(self._written) if not self._places[i].norm]
        return names + list(self._containers.written.values())

    def _find(self) -> list[Place]:
        more = self._containers.find(self._model, self._loss_fn)
        return tensor_places(self._model, self._containers.modules, more)

    def begin(self, first: bool = True) -> None:
        """Begin a step.

        Args:
            first: Whether no step has been completed since the engine was made or a part of the model was captured.
                Then places are searched here, and again after each pass.
        """
        if first:
            self._must_copy |= {_identity(self._places[i]) for i in self._written}
            self._written = set()
            self._places, self._unwritten, self._weights = self._find(), [], Weights(self._model)
            self._existing = {(id(o), key) for m in self._model.modules() for o in (m._buffers, vars(m)) for key in o}
            frozen = sum(p.owner[p.key].numel() for p in self._places if p.frozen)
            self._copies_frozen = frozen <= max(
                SMALL, sum(p.numel() for p in self._model.parameters() if p.requires_grad)
            )
        elif self._first_step or self._newly_written():
            self._set_unwritten_apart()
        self._written |= {i for i, place in enumerate(self._places) if _identity(place) in self._must_copy}
        self._watched = [place.owner[place.key] for place in self._unwritten]
        self._versions = list(map(_VERSION, self._watched))
        self._first_step, self._start, self._starts = first, None, {}

    def _set_unwritten_apart(self) -> None:
        """Move frozen parameters that no pass has written to _unwritten, so that only their versions are compared."""
        self._must_copy |= {_identity(self._places[i]) for i in self._written} | {
            _identity(place) for place in self._newly_written()
        }
        known = [*self._places, *self._unwritten]
        self._places = [place for place in known if not place.frozen or _identity(place) in self._must_copy]
        self._unwritten = [place for place in known if place.frozen and _identity(place) not in self._must_copy]
        self._written = set()

    def _newly_written(self) -> list[Place]:
        """The frozen parameters that a pass of this step has written for the first time."""
        now = list(map(_VERSION, self._watched))
        if now == self._versions:
            return []
        return [place for place, a, b in zip(self._unwritten, now, self._versions, strict=True) if a != b]

    def _refuse_unsaved(self) -> None:
        """Refuse a step that has written a frozen parameter without a copy."""
        places = self._newly_written()
        if places:
            raise _not_saved(places[0].name)

    def _add_new_places(self, *snapshots: Snapshot) -> None:
        """Add places that a pass has made, which are absent in all snapshots."""
        known = {_identity(place) for place in self._places} | self._existing
        self._places += [p for p in self._find() if _identity(p) not in known]
        for snapshot in {id(s): s for s in (*snapshots, *self._starts.values(), self._start or Snapshot())}.values():
            snapshot += [Saved(ABSENT, 0, None)] * (len(self._places) - len(snapshot))

    @contextmanager
    def passing(self, probe: Probe) -> Iterator[None]:
        """The context of one pass: its writes are kept if the pass reports, else they are reverted."""
        if not self._places and not self._unwritten and not self._containers and not self._first_step:
            yield
            return
        if not probe.stats:
            self._refuse_unsaved()
        current = self._save()
        if self._start is None:
            self._start = current
        if probe.stats:
            self._starts[id(probe.batch)] = current
            yield
            if self._first_step:
                self._add_new_places(current)
            self._record_writes(current)
            return
        start = self._starts.get(id(probe.batch), self._start)
        if start is not current:
            self._restore(start)
        before = [Saved(s.tensor, WEIGHT if s.version == WEIGHT else _version(s.tensor), None) for s in start]
        try:
            yield
        finally:
            if self._first_step:
                self._add_new_places(current, start)
                before += [Saved(ABSENT, 0, None)] * (len(self._places) - len(before))
            for i, (saved, place) in enumerate(zip(before, self._places, strict=True)):
                if place.owner.get(place.key, ABSENT) is not saved.tensor or saved.rewritten:
                    self._written.add(i)
            self._restore(current)
        self._refuse_unsaved()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The context of several passes at once: refuse tensors that forward or the loss assigns.

        Raises:
            UsageError: A place was assigned; it has its previous value again.
        """
        before = [place.owner.get(place.key) for place in self._places]
        assigned = []
        try:
            yield
        finally:
            for place, tensor in zip(self._places, before, strict=True):
                if place.owner.get(place.key, ABSENT) is not tensor:
                    place.owner[place.key] = tensor
                    assigned.append(place.name)
        if assigned:
            raise UsageError(
                f"forward and loss_fn must not write tensors under Batched, but write {assigned[0]}, which probes "
                "would have to do in turn; use executor=Local()"
            )

    def _save(self) -> Snapshot:
        snapshot = Snapshot()
        snapshot.containers = self._containers.save(self._first_step)
        for i, place in enumerate(self._places):
            t = place.owner.get(place.key, ABSENT)
            if not isinstance(t, Tensor):
                snapshot.append(Saved(t, 0, None))
                continue
            always = SMALL if not self._first_step else LARGE if place.name.startswith("loss_fn: ") else t.numel()
            if t in self._weights:
                snapshot.append(Saved(t, WEIGHT, None))
                continue
            if place.frozen and not (self._first_step and self._copies_frozen):
                always = -1
            copied = (i in self._written or t.numel() <= always or place.norm) and _writable(t)
            snapshot.append(Saved(t, _version(t), t.detach().clone() if copied else None))
        return snapshot

    def _record_writes(self, before: Snapshot) -> None:
        for i, (saved, place) in enumerate(zip(before, self._places, strict=True)):
            unchanged = place.owner.get(place.key, ABSENT) is saved.tensor and not saved.rewritten
            if not unchanged or (self._first_step and _differs(saved)):
                self._written.add(i)

    @torch.no_grad()
    def _restore(self, snapshot: Snapshot) -> None:
        by_value: list[tuple[Tensor, Tensor]] = []
        lost: list[Place] = []
        for i, (place, saved) in enumerate(zip(self._places, snapshot, strict=True)):
            tensor, copy = saved.tensor, saved.copy
            if place.owner.get(place.key, ABSENT) is not tensor:
                self._written.add(i)
                if tensor is ABSENT:
                    del place.owner[place.key]
                else:
                    place.owner[place.key] = tensor
            if not isinstance(tensor, Tensor):
                continue
            if copy is not None and tensor.shape != copy.shape:
                self._written.add(i)
                tensor.set_(copy.clone())  # type: ignore[call-overload]
                continue
            if not saved.rewritten:
                if copy is not None and type(tensor) in ORDINARY:
                    if self._first_step and _differs(saved):
                        self._written.add(i)
                    by_value.append((tensor.data, copy))  # .data, so that the version stays the same for autograd
                continue
            self._written.add(i)
            if copy is None:
                lost.append(place)
            else:
                tensor.detach().copy_(copy)
        if by_value:
            vec.copy_([t for t, _ in by_value], [c for _, c in by_value])
        unsaved = [place.name for place in lost] + self._containers.restore(snapshot.containers)
        if unsaved:
            self._must_copy.update(map(_identity, lost))
            raise _not_saved(unsaved[0])


def _identity(place: Place) -> tuple[int, str]:
    return where(place.owner, place.key)


def _differs(saved: Saved) -> bool:
    """Whether a tensor's values differ from its copy, as after a write through ``.data``, which keeps the version."""
    t, copy = saved.tensor, saved.copy
    if copy is None or type(t) not in ORDINARY or t.layout is not torch.strided:
        return False
    return t.shape != copy.shape or not torch.equal(t.detach().nan_to_num(), copy.nan_to_num())


def _not_saved(name: str) -> UsageError:
    return UsageError(
        f"a tensor that forward writes must be kept, but {name} was written for the first time after the first step, "
        "or is a large frozen parameter, so its value before is gone; the step is taken back, and from now on it is "
        "kept: call backward again"
    )


def _writable(t: Tensor) -> bool:
    """Whether a tensor can be written in place: it is no inference tensor, and its entries have separate memory."""
    expanded = t.layout is torch.strided and any(n > 1 and s == 0 for n, s in zip(t.shape, t.stride(), strict=True))
    return not t.is_inference() and not expanded


def _version(t: Any) -> int:
    return t._version if isinstance(t, Tensor) and not t.is_inference() else 0
