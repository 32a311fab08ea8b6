"""Tensors beside the parameters that forward or the loss writes: written once per step, by the pass that reports.

They are known by identity and version, not by type: registered buffers and tensors in attributes, of the model and of
the modules and objects that the loss function uses. Torch's own BatchNorm is not among them: ``frozen_stats``
tells it. ``torch.nn.functional.batch_norm`` and replayed CUDA graphs write without a new version, so small tensors are
put back whatever their version says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.core.errors import UsageError
from lowland.core.probe import Probe
from lowland.core.shards import ORDINARY
from lowland.executors import modes
from lowland.executors.norm_stats import heeds_flag
from lowland.executors.uses import modules_of, uses

SMALL = 1 << 16  # entries up to which a tensor is always copied, because it may be written now and then
LARGE = 1 << 24  # the same in the first step, for what the loss function uses, which may be a whole data set


_ABSENT = object()  # what is in a place that is not there yet


class Place(NamedTuple):
    """Where a tensor is kept: ``owner[key]``, a module's buffers or attributes."""

    owner: dict[str, Any]
    key: str
    name: str
    norm: bool


class Kept(NamedTuple):
    """What was in a place: the tensor, None or nothing, its version, and a copy where it may be written in place."""

    tensor: Any
    version: int
    copy: Tensor | None


class Buffers:
    """The tensors that passes may write, and what was in them.

    A pass that does not report starts from what was there when the step began, or when the pass that reports began on
    the same batch, and leaves no trace.

    Args:
        model: The model.
        loss_fn: The loss function, whose modules count, too.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any] | None) -> None:
        self._model, self._loss_fn = model, loss_fn
        self._new = True  # no step has been completed yet: all tensors are copied
        self._written: set[int] = set()
        self._held: set[tuple[int, str]] = set()  # all that the model's modules held when the step began
        self._start: list[Kept] | None = None
        self._starts: dict[int, list[Kept]] = {}
        self._places: list[Place] = []

    @property
    def written(self) -> list[str]:
        """The names of all tensors that a pass has written, running statistics left out."""
        return [self._places[i].name for i in sorted(self._written) if not self._places[i].norm]

    def begin(self, first: bool = True) -> None:
        """A step begins; in the first, places are looked for, also after each pass, which may have made some."""
        if first:
            self._places, self._written = _places(self._model, self._loss_fn), set()
            self._held = {(id(o), key) for m in self._model.modules() for o in (m._buffers, vars(m)) for key in o}
        self._new, self._start, self._starts = first, None, {}

    def _look(self, *lists: list[Kept]) -> None:
        """Add places that a pass has made; nothing was there before."""
        known = {(id(place.owner), place.key) for place in self._places} | self._held
        made = [p for p in _places(self._model, self._loss_fn) if (id(p.owner), p.key) not in known]
        self._places += made
        for kept in {id(k): k for k in (*lists, *self._starts.values(), self._start or [])}.values():
            kept += [Kept(_ABSENT, 0, None)] * (len(self._places) - len(kept))

    @contextmanager
    def passing(self, probe: Probe) -> Iterator[None]:
        """One pass; what it writes stays if it reports."""
        if not self._places and not self._new:
            yield
            return
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
        if start is not now:
            self._put(start)
        before = [(k.tensor, _version(k.tensor)) for k in start]
        try:
            yield
        finally:
            if self._new:
                self._look(now, start)
                before += [(_ABSENT, 0)] * (len(self._places) - len(before))
            for i, ((tensor, version), place) in enumerate(zip(before, self._places, strict=True)):
                if place.owner.get(place.key, _ABSENT) is not tensor or _version(tensor) != version:
                    self._written.add(i)
            self._put(now)

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
                if place.owner.get(place.key, _ABSENT) is not tensor:
                    place.owner[place.key] = tensor
                    bound.append(place.name)
        if bound:
            raise UsageError(
                f"forward and loss_fn must not write tensors under Batched, but write {bound[0]}, which probes would "
                "have to do in turn; use executor=Local()"
            )

    def _now(self) -> list[Kept]:
        kept = []
        for i, place in enumerate(self._places):
            t = place.owner.get(place.key, _ABSENT)
            if not isinstance(t, Tensor):
                kept.append(Kept(t, 0, None))
                continue
            always = SMALL if not self._new else LARGE if place.name.startswith("loss_fn: ") else t.numel()
            copied = (i in self._written or t.numel() <= always or place.norm) and _writable(t)
            kept.append(Kept(t, _version(t), t.detach().clone() if copied else None))
        return kept

    def _note(self, before: list[Kept]) -> None:
        for i, (kept, place) in enumerate(zip(before, self._places, strict=True)):
            if place.owner.get(place.key, _ABSENT) is not kept.tensor or _version(kept.tensor) != kept.version:
                self._written.add(i)

    @torch.no_grad()
    def _put(self, kept: list[Kept]) -> None:
        unseen: list[tuple[Tensor, Tensor]] = []
        for i, (place, (tensor, version, copy)) in enumerate(zip(self._places, kept, strict=True)):
            if place.owner.get(place.key, _ABSENT) is not tensor:
                self._written.add(i)
                if tensor is _ABSENT:
                    del place.owner[place.key]
                else:
                    place.owner[place.key] = tensor
            if not isinstance(tensor, Tensor):
                continue
            if _version(tensor) == version:
                if copy is not None and type(tensor) in ORDINARY:
                    unseen.append((tensor.data, copy))  # .data: whoever holds a graph need not know
                continue
            self._written.add(i)
            if copy is None:
                raise UsageError(
                    f"a tensor that forward writes must be kept, but {place.name} was written for the first time after "
                    "the first step, so its value before is gone; the step is taken back, and from now on it is kept: "
                    "call backward again"
                )
            tensor.detach().copy_(copy)
        if unseen:
            torch._foreach_copy_([t for t, _ in unseen], [c for _, c in unseen])


def _writable(t: Tensor) -> bool:
    """Whether it can be written in place at all: no inference tensor, and no entry stands for several."""
    folded = t.layout is torch.strided and any(n > 1 and s == 0 for n, s in zip(t.shape, t.stride(), strict=True))
    return not t.is_inference() and not folded


def _version(t: Any) -> int:
    return t._version if isinstance(t, Tensor) and not t.is_inference() else 0


def _places(model: nn.Module, loss_fn: Callable[..., Any] | None) -> list[Place]:
    places: list[Place] = []
    own = set(model.modules())
    told = {m for m in own if heeds_flag(m)} - modes.captured(model)
    named = list(model.named_modules())
    for place, m in modules_of(loss_fn).items():
        named += [(f"loss_fn: {place}.{name}".rstrip("."), part) for name, part in m.named_modules() if part not in own]
    seen: set[int] = set()
    for name, m in named:
        if m in told:
            continue
        for owner in (m._buffers, vars(m)):
            for key, value in list(owner.items()):
                plain = owner is not m._buffers and (key.startswith("_") and value is None)
                if (isinstance(value, Tensor) or value is None) and not plain and id(value) not in seen:
                    places.append(Place(owner, key, f"{name}.{key}".lstrip("."), isinstance(m, _NormBase)))
                    if value is not None:
                        seen.add(id(value))
    for place, values in uses(loss_fn)[1].items():
        for key, value in values.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and id(value) not in seen:
                places.append(Place(values, key, f"loss_fn: {place}.{key}", False))
                seen.add(id(value))
    return places
