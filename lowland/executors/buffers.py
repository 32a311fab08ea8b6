"""Restores buffers and other state that forward or the loss writes, so that only the pass that reports writes it.

The state is that of the model, and of the modules and objects that the loss function uses: registered buffers, frozen
parameters, tensors in attributes, containers and names. A write is detected by the tensor's identity and version.
Writes through ``.data``, by ``torch.nn.functional.batch_norm`` and by replayed CUDA graphs do not change the version.
So the first step also compares values, and later steps always restore small tensors. Torch's own BatchNorm is left to
``frozen_stats``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core import vec
from lowland.core.errors import UsageError
from lowland.core.probe import Probe
from lowland.core.shards import ORDINARY
from lowland.executors.code import refuse_drawn
from lowland.executors.containers import Containers
from lowland.executors.keepers import ABSENT, where
from lowland.executors.kept import WEIGHT, Before, Kept, copied, size, unkept, version
from lowland.executors.mixed import take_back
from lowland.executors.names import is_array
from lowland.executors.norm_stats import restored_stats
from lowland.executors.places import Place, Weights, places_of
from lowland.executors.registrations import Registrations
from lowland.executors.uses import uses

_VERSION = operator.attrgetter("_version")

SMALL = 1 << 16  # the most entries of a tensor that is copied in every pass, also if nothing has written it yet
YOUNG = 3  # the number of first steps in which the values of frozen parameters are compared
LARGE = 1 << 24  # the same in the first step for tensors of the loss function, which may be a whole data set


class Buffers:
    """The tensors, containers and names that passes may write, with copies of their values.

    A pass that does not report starts from the values at the start of the step, or from the values before the pass
    that reports on the same batch. At its end all values are restored.

    Args:
        model: The model.
        loss_fn: The loss function; the state of its modules and objects is restored, too.

    Attributes:
        trainable: The leaf tensors that require a gradient and are kept outside parameters.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> None:
        self._model = model
        self._loss_fn: Any = loss_fn
        self._code: Any = None  # the code of the closure that the caller has passed last
        self._drawn: list[str] = []  # the iterators that this closure draws from
        self._age = 0  # the number of steps since the first one
        self._new = True  # no step has been completed yet: all tensors are copied
        self._written: set[int] = set()
        self._attributes: set[tuple[int, str]] = set()  # the attributes of all modules at the start of the first step
        self._start: Before | None = None
        self._starts: dict[int, Before] = {}
        self._places: list[Place] = []
        self._containers = Containers()
        self._weights = Weights()
        self._unwritten: list[Place] = []  # frozen parameters that no step has written
        self._unwritten_tensors: list[Tensor] = []  # the tensors of these places
        self._versions: list[int] = []  # their versions at the start of the step
        self._copied: set[tuple[int, str]] = set()  # places that are copied, whatever their size
        self._modules: set[nn.Module] = set()  # the modules of the model, on which forward may register others
        self._fused: set[nn.Module] = set()  # layers with running statistics that other modules write
        self.trainable: list[Tensor] = []
        self._count = 0  # the number of registrations at the last search
        Registrations.watch()

    @property
    def generators(self) -> list[Any]:
        """The random number generators that model and loss function keep."""
        return self._containers.generators

    @property
    def differentiates(self) -> bool:
        """Whether code of the model or the loss function may differentiate a part of the loss itself."""
        return self._containers.differentiates

    @property
    def asks(self) -> bool:
        """Whether such code may ask which tensors require a gradient, or differentiate by the weights."""
        return self._containers.asks

    @property
    def written(self) -> list[str]:
        """The names of all tensors that passes have written, except running statistics."""
        names = [self._places[i].name for i in sorted(self._written) if not self._places[i].norm]
        return names + list(self._containers.written.values())

    @property
    def numbers(self) -> list[str]:
        """The names of all numbers that passes have changed."""
        return list(self._containers.names.written)

    def called(self, closure: Callable[..., Any]) -> None:
        """Search a closure in which the caller computes the loss, for modules and objects, but not for batches."""
        code = getattr(closure, "__code__", type(closure))
        if code is not self._code:
            used = uses(closure)
            self._code, self._loss_fn = code, [*used.modules.values(), *used.holders]
            self._drawn = used.iterators
            self._containers.names.fresh = True

    def _find(self) -> list[Place]:
        self._modules, self._count = set(self._model.modules()), Registrations.count
        more = self._containers.find(self._model, self._loss_fn)
        self.trainable = self._containers.trainable(more)
        return places_of(self._model, self._containers.modules, more, self._fused)

    def begin(self, first: bool = True) -> None:
        """Begin a step.

        Args:
            first: Whether no step has been completed since the engine was made or a part of the model was captured.
                In this step, places are searched here and again after each pass.
        """
        Registrations.log.clear()
        self._age = 0 if first else self._age + 1
        if first:
            self._copied |= {_where(self._places[i]) for i in self._written}
            self._written = set()
            self._places, self._unwritten, self._weights = self._find(), [], Weights(self._model)
            self._attributes = {(id(o), key) for m in self._model.modules() for o in (m._buffers, vars(m)) for key in o}
            frozen = sum(p.owner[p.key].numel() for p in self._places if p.frozen)
            trained = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
            self._copies_frozen = frozen <= max(SMALL, trained)
        else:
            fresh = self._new or self._containers.names.fresh or Registrations.count != self._count
            added = self._extend() if fresh else False
            if added or self._age <= YOUNG or self._moved():
                self._sort()
        self._written |= {i for i, place in enumerate(self._places) if _where(place) in self._copied}
        self._unwritten_tensors = [place.owner[place.key] for place in self._unwritten]
        self._versions = list(map(_VERSION, self._unwritten_tensors))
        self._new, self._start, self._starts = first, None, {}

    def _extend(self) -> bool:
        """Add the places that were created after the first step; they are copied whatever their size.

        Returns:
            Whether there are such places.
        """
        known = {_where(place) for place in [*self._places, *self._unwritten]}
        # A weight that was frozen meanwhile is restored with the others, which the methods displace.
        created = [
            p for p in self._find() if _where(p) not in known and not (p.frozen and p.owner.get(p.key) in self._weights)
        ]
        self._copied.update(_where(p) for p in created if not p.frozen)
        self._places += created
        return bool(created)

    def _sort(self) -> None:
        """Separate the frozen parameters that no step has written; only their versions are compared from then on."""
        self._copied |= {_where(self._places[i]) for i in self._written} | {_where(place) for place in self._moved()}
        known = list({_where(place): place for place in [*self._places, *self._unwritten]}.values())
        young = self._age < YOUNG  # in these steps values are compared, too, to detect writes through .data
        self._places = [place for place in known if young or not place.frozen or _where(place) in self._copied]
        self._unwritten = [place for place in known if place.frozen and _where(place) not in self._copied]
        self._written = set()

    def _moved(self) -> list[Place]:
        """Frozen parameters that were written for the first time in this step."""
        current = list(map(_VERSION, self._unwritten_tensors))
        if current == self._versions:
            return []
        return [place for place, a, b in zip(self._unwritten, current, self._versions, strict=True) if a != b]

    def _refuse_moved(self) -> None:
        moved = self._moved()
        if moved:
            raise unkept(moved[0].name)

    def _add_created(self, *lists: Before) -> None:
        """Add places that a pass has created; their earlier value is ``ABSENT``."""
        known = {_where(place) for place in self._places} | self._attributes
        created = [p for p in self._find() if _where(p) not in known]
        self._places += created
        for kept in {id(k): k for k in (*lists, *self._starts.values(), self._start or Before())}.values():
            kept += [Kept(ABSENT, 0, None)] * (len(self._places) - len(kept))

    @contextmanager
    def passing(self, probe: Probe) -> Iterator[None]:
        """Restore the state after a pass, unless the pass reports."""
        if not probe.stats:
            refuse_drawn(self._drawn + self._containers.iterators)
        if not self._places and not self._unwritten and not self._containers and not self._new:
            yield
            return
        if not probe.stats:
            self._refuse_moved()
        current = self._values()
        if self._start is None:
            self._start = current
        if probe.stats:
            self._starts[id(probe.batch)] = current
            yield
            if self._new:
                self._add_created(current)
            self._note(current)
            return
        start = self._starts.get(id(probe.batch), self._start)
        removed = Registrations.undo(start.registered, self._modules)
        if start is not current:
            self._restore(start)
        before = [Kept(k.tensor, WEIGHT if k.version == WEIGHT else version(k.tensor), None) for k in start]
        registered = len(Registrations.log)
        try:
            with restored_stats(self._model, self._fused) if self._new else nullcontext():
                yield
        finally:
            if self._new:
                self._add_created(current, start)
                before += [Kept(ABSENT, 0, None)] * (len(self._places) - len(before))
            for i, (earlier, place) in enumerate(zip(before, self._places, strict=True)):
                if place.owner.get(place.key, ABSENT) is not earlier.tensor or earlier.rewritten:
                    self._written.add(i)
            Registrations.undo(registered, self._modules)
            Registrations.redo(removed)
            self._restore(current)
        self._refuse_moved()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Refuse passes that write state while several probes run in one pass, because their writes would mix.

        Raises:
            UsageError: Something was written. All places, containers and names have their earlier values again.
        """
        before = [place.owner.get(place.key) for place in self._places]
        moment, registered = self._containers.current(False), len(Registrations.log)
        bound = []
        try:
            yield
        finally:
            for place, tensor in zip(self._places, before, strict=True):
                if place.owner.get(place.key, ABSENT) is not tensor:
                    place.owner[place.key] = tensor
                    bound.append(place.name)
            bound += take_back(self._containers, moment, registered)
        if bound:
            raise UsageError(
                f"forward and loss_fn must not write state under Batched, but write {bound[0]}, which probes would "
                "have to do in turn; use executor=Local()"
            )

    def _values(self) -> Before:
        kept = Before()
        kept.containers, kept.registered = self._containers.current(self._new), len(Registrations.log)
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
            if place.frozen and not (fresh and self._copies_frozen):
                always = -1
            wanted = i in self._written or size(t) <= always or place.norm
            kept.append(Kept(t, version(t), copied(t) if wanted else None))
        return kept

    def _fresh(self, place: Place) -> bool:
        """Whether values are compared. A teacher may start equal to its student, so its values are compared longer."""
        return self._new or (place.frozen and self._age < YOUNG)

    def _note(self, before: Before) -> None:
        for i, (kept, place) in enumerate(zip(before, self._places, strict=True)):
            same = place.owner.get(place.key, ABSENT) is kept.tensor and not kept.rewritten
            if not same or (self._fresh(place) and kept.differs):
                self._written.add(i)
        self._containers.note(before.containers, self._places_written)

    @torch.no_grad()
    def _restore(self, kept: Before) -> None:
        unchanged: list[tuple[Tensor, Tensor]] = []
        lost: list[Place] = []
        for i, (place, earlier) in enumerate(zip(self._places, kept, strict=True)):
            tensor, _, copy = earlier
            if place.owner.get(place.key, ABSENT) is not tensor:
                self._written.add(i)
                if tensor is ABSENT:
                    del place.owner[place.key]
                else:
                    place.owner[place.key] = tensor
            if is_array(tensor):
                self._restore_array(i, earlier)
            if not isinstance(tensor, Tensor):
                continue
            if copy is not None and tensor.shape != copy.shape:
                self._written.add(i)
                tensor.set_(copy.clone())
                continue
            if not earlier.rewritten:
                if copy is not None and type(tensor) in ORDINARY:
                    if self._fresh(place) and earlier.differs:
                        self._written.add(i)
                    unchanged.append((tensor.data, copy))  # .data does not change the version, which saved graphs check
                continue
            self._written.add(i)
            if copy is None:
                lost.append(place)
            else:
                tensor.detach().copy_(copy)
        if unchanged:
            vec.copy_([t for t, _ in unchanged], [c for _, c in unchanged])
        lost_names = [place.name for place in lost] + self._containers.restore(kept.containers, self._places_written)
        if lost_names:
            self._copied.update(map(_where, lost))
            raise unkept(lost_names[0])

    def _restore_array(self, i: int, earlier: Kept) -> None:
        """Restore an array; arrays have no versions, so values are compared."""
        if earlier.differs:
            self._written.add(i)
            earlier.tensor[...] = earlier.copy

    def _places_written(self) -> set[tuple[int, str]]:
        return {_where(self._places[i]) for i in self._written}


def _where(place: Place) -> tuple[int, str]:
    return where(place.owner, place.key)
