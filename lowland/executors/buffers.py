"""Tensors beside the parameters that forward or the loss writes: written once per step, by the pass that reports.

They are known by identity and version, not by type: registered buffers, frozen parameters and tensors in attributes, of
the model and of the modules and objects that the loss function uses. Torch's own BatchNorm is not among them:
``frozen_stats`` tells it. ``.data``, ``torch.nn.functional.batch_norm`` and replayed CUDA graphs write without a
new version, so the first step compares values, and later small tensors are put back whatever their version says.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core import vec
from lowland.core.errors import UsageError
from lowland.core.probe import Probe
from lowland.core.shards import ORDINARY
from lowland.executors.containers import Containers
from lowland.executors.keepers import ABSENT, where
from lowland.executors.kept import WEIGHT, Before, Kept, copied, size, unkept, version
from lowland.executors.names import is_array
from lowland.executors.places import Place, Weights, places_of
from lowland.executors.registrations import Registrations
from lowland.executors.uses import uses

_VERSION = operator.attrgetter("_version")

SMALL = 1 << 16  # entries up to which a tensor is always copied, because it may be written now and then
YOUNG = 3  # steps in which the values of frozen parameters are compared
LARGE = 1 << 24  # the same in the first step, for what the loss function uses, which may be a whole data set


class Buffers:
    """The tensors that passes may write, and what was in them.

    A pass that does not report starts from what was there when the step began, or when the pass that reports began on
    the same batch, and leaves no trace.

    Args:
        model: The model.
        loss_fn: The loss function, whose modules count, too.

    Attributes:
        trainable: Leaves that require a gradient and that model or loss function keep beside parameters.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> None:
        self._model = model
        self._loss_fn: Any = loss_fn
        self._code: Any = None  # of the closure that the caller has passed last
        self._age = 0  # steps since the first
        self._new = True  # no step has been completed yet: all tensors are copied
        self._written: set[int] = set()
        self._held: set[tuple[int, str]] = set()  # all that the model's modules held when the step began
        self._start: Before | None = None
        self._starts: dict[int, Before] = {}
        self._places: list[Place] = []
        self._containers = Containers()
        self._weights = Weights()
        self._quiet: list[Place] = []  # frozen parameters that the first step has not written
        self._watched: list[Tensor] = []  # the same as tensors
        self._versions: list[int] = []  # of these, when the step began
        self._late: set[tuple[int, str]] = set()  # places that must be copied, whatever their size
        self._modules: set[nn.Module] = set()  # the model's, which forward may give modules and buffers
        self.trainable: list[Tensor] = []
        self._count = 0  # registrations until this step
        Registrations.watch()

    @property
    def generators(self) -> list[Any]:
        """Sources of random numbers that model and loss function keep."""
        return self._containers.generators

    @property
    def written(self) -> list[str]:
        """The names of all tensors that a pass has written, running statistics left out."""
        names = [self._places[i].name for i in sorted(self._written) if not self._places[i].norm]
        return names + list(self._containers.written.values())

    @property
    def numbers(self) -> list[str]:
        """The names of numbers that a pass has changed."""
        return list(self._containers.names.written)

    def called(self, closure: Callable[..., Any]) -> None:
        """The caller computes the loss in a closure, whose modules and objects count, too, but not its batches."""
        code = getattr(closure, "__code__", type(closure))
        if code is not self._code:
            found = uses(closure)
            self._code, self._loss_fn = code, [*found.modules.values(), *found.holders]
            self._containers.names.fresh = True

    def _find(self) -> list[Place]:
        self._modules, self._count = set(self._model.modules()), Registrations.count
        more = self._containers.find(self._model, self._loss_fn)
        self.trainable = self._containers.trainable(more)
        return places_of(self._model, self._containers.modules, more)

    def begin(self, first: bool = True) -> None:
        """Begin a step.

        Args:
            first: Whether no step has been completed since the engine was made or a part of the model was captured.
                Then places are searched here, and again after each pass.
        """
        Registrations.log.clear()
        self._age = 0 if first else self._age + 1
        if first:
            self._late |= {_where(self._places[i]) for i in self._written}
            self._written = set()
            self._places, self._quiet, self._weights = self._find(), [], Weights(self._model)
            self._held = {(id(o), key) for m in self._model.modules() for o in (m._buffers, vars(m)) for key in o}
            frozen = sum(p.owner[p.key].numel() for p in self._places if p.frozen)
            self._afford = frozen <= max(SMALL, sum(p.numel() for p in self._model.parameters() if p.requires_grad))
        else:
            fresh = self._new or self._containers.names.fresh or Registrations.count != self._count
            found = self._extend() if fresh else False
            if found or self._age <= YOUNG or self._moved():
                self._sort()
        self._written |= {i for i, place in enumerate(self._places) if _where(place) in self._late}
        self._watched = [place.owner[place.key] for place in self._quiet]
        self._versions = list(map(_VERSION, self._watched))
        self._new, self._start, self._starts = first, None, {}

    def _extend(self) -> bool:
        """Take up what was made after the first step, which is copied whatever its size; whether there is anything."""
        known = {_where(place) for place in [*self._places, *self._quiet]}
        made = [p for p in self._find() if _where(p) not in known]
        self._late.update(_where(p) for p in made if not p.frozen)
        self._places += made
        return bool(made)

    def _sort(self) -> None:
        """Put frozen parameters that nothing has written apart: looking at their versions is all that they cost."""
        self._late |= {_where(self._places[i]) for i in self._written} | {_where(place) for place in self._moved()}
        known = list({_where(place): place for place in [*self._places, *self._quiet]}.values())
        young = self._age < YOUNG  # then they stay among the places, too, for what is written past versions
        self._places = [place for place in known if young or not place.frozen or _where(place) in self._late]
        self._quiet = [place for place in known if place.frozen and _where(place) not in self._late]
        self._written = set()

    def _moved(self) -> list[Place]:
        """Frozen parameters that were written for the first time in this step."""
        now = list(map(_VERSION, self._watched))
        if now == self._versions:
            return []
        return [place for place, a, b in zip(self._quiet, now, self._versions, strict=True) if a != b]

    def _late_refusal(self) -> None:
        moved = self._moved()
        if moved:
            raise unkept(moved[0].name)

    def _look(self, *lists: Before) -> None:
        """Add places that a pass has made; nothing was there before."""
        known = {_where(place) for place in self._places} | self._held
        made = [p for p in self._find() if _where(p) not in known]
        self._places += made
        for kept in {id(k): k for k in (*lists, *self._starts.values(), self._start or Before())}.values():
            kept += [Kept(ABSENT, 0, None)] * (len(self._places) - len(kept))

    @contextmanager
    def passing(self, probe: Probe) -> Iterator[None]:
        """One pass; what it writes stays if it reports."""
        if not self._places and not self._quiet and not self._containers and not self._new:
            yield
            return
        if not probe.stats:
            self._late_refusal()
        now = self._now()
        if self._start is None:
            self._start = now
        if probe.stats:
            self._starts[id(probe.batch)] = now
            yield
            if self._new:
                self._look(now)
            self._note(now)
            return
        start = self._starts.get(id(probe.batch), self._start)
        taken = Registrations.undo(start.given, self._modules)
        if start is not now:
            self._put(start)
        before = [Kept(k.tensor, WEIGHT if k.version == WEIGHT else version(k.tensor), None) for k in start]
        given = len(Registrations.log)
        try:
            yield
        finally:
            if self._new:
                self._look(now, start)
                before += [Kept(ABSENT, 0, None)] * (len(self._places) - len(before))
            for i, (then, place) in enumerate(zip(before, self._places, strict=True)):
                if place.owner.get(place.key, ABSENT) is not then.tensor or then.rewritten:
                    self._written.add(i)
            Registrations.undo(given, self._modules)
            Registrations.redo(taken)
            self._put(now)
        self._late_refusal()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Several passes at once, which would have to write in turn: refuse tensors that are bound anew.

        Raises:
            UsageError: One is; it is bound as before.
        """
        before = [place.owner.get(place.key) for place in self._places]
        bound = []
        try:
            yield
        finally:
            for place, tensor in zip(self._places, before, strict=True):
                if place.owner.get(place.key, ABSENT) is not tensor:
                    place.owner[place.key] = tensor
                    bound.append(place.name)
        if bound:
            raise UsageError(
                f"forward and loss_fn must not write tensors under Batched, but write {bound[0]}, which probes would "
                "have to do in turn; use executor=Local()"
            )

    def _now(self) -> Before:
        kept = Before()
        kept.rest, kept.given = self._containers.now(self._new), len(Registrations.log)
        for i, place in enumerate(self._places):
            t = place.owner.get(place.key, ABSENT)
            if not isinstance(t, Tensor) and not is_array(t):
                kept.append(Kept(t, 0, None))
                continue
            fresh = self._fresh(place)
            always = SMALL if not fresh else LARGE if place.name.startswith("loss_fn: ") else size(t)
            if t in self._weights:
                kept.append(Kept(t, WEIGHT, None))
                continue
            if place.frozen and not (fresh and self._afford):
                always = -1
            wanted = i in self._written or size(t) <= always or place.norm
            kept.append(Kept(t, version(t), copied(t) if wanted else None))
        return kept

    def _fresh(self, place: Place) -> bool:
        """Whether values are compared: frozen parameters longer, as a teacher may begin equal to its student."""
        return self._new or (place.frozen and self._age < YOUNG)

    def _note(self, before: Before) -> None:
        for i, (kept, place) in enumerate(zip(before, self._places, strict=True)):
            same = place.owner.get(place.key, ABSENT) is kept.tensor and not kept.rewritten
            if not same or (self._fresh(place) and kept.differs):
                self._written.add(i)
        self._containers.look(before.rest, self._places_written)

    @torch.no_grad()
    def _put(self, kept: Before) -> None:
        unseen: list[tuple[Tensor, Tensor]] = []
        lost: list[Place] = []
        for i, (place, then) in enumerate(zip(self._places, kept, strict=True)):
            tensor, _, copy = then
            if place.owner.get(place.key, ABSENT) is not tensor:
                self._written.add(i)
                if tensor is ABSENT:
                    del place.owner[place.key]
                else:
                    place.owner[place.key] = tensor
            if is_array(tensor):
                self._put_array(i, then)
            if not isinstance(tensor, Tensor):
                continue
            if copy is not None and tensor.shape != copy.shape:
                self._written.add(i)
                tensor.set_(copy.clone())
                continue
            if not then.rewritten:
                if copy is not None and type(tensor) in ORDINARY:
                    if self._fresh(place) and then.differs:
                        self._written.add(i)
                    unseen.append((tensor.data, copy))  # .data: whoever holds a graph need not know
                continue
            self._written.add(i)
            if copy is None:
                lost.append(place)
            else:
                tensor.detach().copy_(copy)
        if unseen:
            vec.copy_([t for t, _ in unseen], [c for _, c in unseen])
        gone = [place.name for place in lost] + self._containers.put(kept.rest, self._places_written)
        if gone:
            self._late.update(map(_where, lost))
            raise unkept(gone[0])

    def _put_array(self, i: int, then: Kept) -> None:
        """Arrays have no versions: those that may be written are compared."""
        if then.differs:
            self._written.add(i)
            then.tensor[...] = then.copy

    def _places_written(self) -> set[tuple[int, str]]:
        return {_where(self._places[i]) for i in self._written}


def _where(place: Place) -> tuple[int, str]:
    return where(place.owner, place.key)
