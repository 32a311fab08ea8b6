"""Tensors beside the parameters that forward or the loss writes: written once per step, by the pass that reports.

They are known by identity and version, not by type: registered buffers and tensors in attributes, of the model and of
the modules that the loss function uses. Torch's own BatchNorm is not among them: ``modes.frozen_stats`` tells it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowland import modes
from lowland.errors import UsageError
from lowland.probe import Probe

SMALL = 1 << 16  # entries up to which a tensor is always copied, because it may be written now and then


class Place(NamedTuple):
    """Where a tensor is kept: ``owner[key]``, a module's buffers or attributes."""

    owner: dict[str, Any]
    key: str
    name: str
    norm: bool


class Kept(NamedTuple):
    """What was in a place: the tensor, its version, and a copy where it may be written in place."""

    tensor: Tensor | None
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
        self._start: list[Kept] | None = None
        self._starts: dict[int, list[Kept]] = {}
        self._places: list[Place] = []

    @property
    def written(self) -> list[str]:
        """The names of all tensors that a pass has written, running statistics left out."""
        return [self._places[i].name for i in sorted(self._written) if not self._places[i].norm]

    def begin(self) -> None:
        """A step begins."""
        if self._start is None and self._new:  # once more at the first step: globals may have come since
            self._places = _places(self._model, self._loss_fn)
        elif self._start is not None:
            self._new = False
        self._start, self._starts = None, {}

    @contextmanager
    def passing(self, probe: Probe) -> Iterator[None]:
        """One pass; what it writes stays if it reports."""
        if not self._places:
            yield
            return
        now = self._now()
        if self._start is None:
            self._start = now
        if probe.stats:
            self._starts[id(probe.batch)] = now
            yield
            self._note(now)
            return
        start = self._starts.get(id(probe.batch), self._start)
        if start is not now:
            self._put(start)
        before = [(k.tensor, _version(k.tensor)) for k in start]
        try:
            yield
        finally:
            for i, ((tensor, version), place) in enumerate(zip(before, self._places, strict=True)):
                if place.owner.get(place.key) is not tensor or _version(tensor) != version:
                    self._written.add(i)
            self._put(now)

    def _now(self) -> list[Kept]:
        kept = []
        for i, place in enumerate(self._places):
            t = place.owner.get(place.key)
            if not isinstance(t, Tensor):
                kept.append(Kept(None, 0, None))
                continue
            copied = self._new or i in self._written or t.numel() <= SMALL
            kept.append(Kept(t, _version(t), t.detach().clone() if copied else None))
        return kept

    def _note(self, before: list[Kept]) -> None:
        for i, (kept, place) in enumerate(zip(before, self._places, strict=True)):
            if place.owner.get(place.key) is not kept.tensor or _version(kept.tensor) != kept.version:
                self._written.add(i)

    @torch.no_grad()
    def _put(self, kept: list[Kept]) -> None:
        for i, (place, (tensor, version, copy)) in enumerate(zip(self._places, kept, strict=True)):
            if place.owner.get(place.key) is not tensor:
                self._written.add(i)
                place.owner[place.key] = tensor
            if tensor is None or _version(tensor) == version:
                continue
            self._written.add(i)
            if copy is None:
                raise UsageError(
                    f"a tensor that forward writes must be kept, but {place.name} was written for the first time after "
                    "the first step, so its value before is gone; the step is taken back, and from now on it is kept: "
                    "call backward again"
                )
            tensor.detach().copy_(copy)


def _version(t: Tensor | None) -> int:
    return 0 if t is None or t.is_inference() else t._version


def _places(model: nn.Module, loss_fn: Callable[..., Any] | None) -> list[Place]:
    places: list[Place] = []
    own = set(model.modules())
    told = {m for m in own if modes.heeds_flag(m)} - modes.captured(model)
    named = list(model.named_modules())
    for place, m in modules_of(loss_fn).items():
        named += [(f"loss_fn: {place}.{name}".rstrip("."), part) for name, part in m.named_modules() if part not in own]
    seen: set[int] = set()
    for name, m in named:
        if m in told:
            continue
        for owner in (m._buffers, vars(m)):
            for key, value in owner.items():
                plain = owner is not m._buffers and (key.startswith("_") and value is None)
                if (isinstance(value, Tensor) or value is None) and not plain and id(value) not in seen:
                    places.append(Place(owner, key, f"{name}.{key}".lstrip("."), isinstance(m, _NormBase)))
                    if value is not None:
                        seen.add(id(value))
    return places


def modules_of(function: Any) -> dict[str, nn.Module]:
    """The modules that a function uses, by where they were found.

    Looked at are the function itself, what it is bound to or partially given, its closure, its defaults, the globals
    that its code names, and the attributes of a callable object.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def look(value: Any, name: str, depth: int) -> None:
        if id(value) in seen or depth > 5 or isinstance(value, type | types.ModuleType | Tensor):
            return
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found[name] = value
        elif isinstance(value, functools.partial):
            for i, part in enumerate([value.func, *value.args, *value.keywords.values()]):
                look(part, f"{name}[{i}]" if i else name, depth + 1)
        elif isinstance(value, types.MethodType):
            look(value.__self__, name, depth + 1)
            look(value.__func__, name, depth + 1)
        elif isinstance(value, types.FunctionType):
            for key, part in _names(value):
                look(part, key, depth + 1)
        elif isinstance(value, tuple | list):
            for i, part in enumerate(value[:64]):
                look(part, f"{name}[{i}]", depth + 1)
        elif isinstance(value, dict):
            for key, part in list(value.items())[:64]:
                look(part, f"{name}[{key!r}]", depth + 1)
        elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in ("torch", "lowland"):
            for key, part in list(vars(value).items())[:64]:
                look(part, f"{name}.{key}", depth + 1)
            look(vars(type(value)).get("__call__"), name, depth + 1)

    look(function, getattr(function, "__name__", type(function).__name__), 0)
    return found


def _names(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function refers to: cells of its closure, defaults, and globals, also of functions within it."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for part in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "default", part
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        for name in code.co_names:
            if name in function.__globals__:
                yield name, function.__globals__[name]
