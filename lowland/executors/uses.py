"""Finds the objects that a function or a module uses: modules, tensors, containers, and dictionaries of attributes."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lowland.executors.keepers import Cell, Fixed, Kind, Slots

DEPTH = 6  # the search goes this deep into attributes and entries
OWN = frozenset(vars(nn.Module()))  # the attributes that every module has


class Uses:
    """The objects that a search has found, with names for messages.

    Attributes:
        modules: The modules, by name.
        tensors: ``(owner, key, name)`` of tensors in variables, slots and classes.
        objects: The dictionaries of objects that are no modules, and of modules that are not torch's, by name.
        containers: ``(owner, key, container, name)`` of lists, deques and dicts; the owner is None for a container
            inside another one.
    """

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.tensors: list[tuple[Any, str, str]] = []
        self.objects: dict[str, dict[str, Any]] = {}
        self.containers: list[tuple[Any, str, Any, str]] = []
        self._seen: set[int] = set()

    def attributes(self, m: nn.Module, name: str) -> None:
        """Search the attributes of a module besides parameters, buffers and modules; torch's own modules have none."""
        if type(m).__module__.partition(".")[0] == "torch":
            return
        self.objects[name] = vars(m)
        for key, value in list(vars(m).items()):
            if key not in OWN and type(value) not in (int, float, bool, str):
                self.look(value, f"{name}.{key}".lstrip("."), DEPTH - 2, vars(m), key)

    def look(self, value: Any, name: str, depth: int = 0, owner: Any = None, key: str = "") -> None:
        """Add a value to the findings and search its contents, up to a depth.

        Args:
            value: The value.
            name: Its name for messages.
            depth: The depth of the value in the search.
            owner: The dictionary, or an object with its interface, that contains the value; None if there is none.
            key: The key of the value in its owner.
        """
        if isinstance(value, Tensor):
            if not isinstance(owner, dict | None) or depth == -1:
                self.tensors.append((owner, key, name))
            return
        depth = max(depth, 0)
        if id(value) in self._seen or depth > DEPTH or len(self._seen) > 5000:
            return
        if isinstance(value, types.ModuleType) or _foreign(value):
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self.modules[name] = value
        elif isinstance(value, functools.partial):
            for i, part in enumerate([value.func, *value.args, *value.keywords.values()]):
                self.look(part, f"{name}[{i}]" if i else name, depth + 1, Fixed(part))
        elif isinstance(value, types.MethodType):
            self.look(value.__self__, name, depth + 1)
            self.look(value.__func__, name, depth + 1)
        elif isinstance(value, types.FunctionType):
            self.objects[name] = vars(value)
            for key, part, where in _names(value):
                # depth -1: tensors in global variables that the function names count, those of other dictionaries not.
                self.look(part, key, -1 if isinstance(part, Tensor) else depth + 1, where, key)
        elif isinstance(value, tuple | list | deque | dict):
            self._entries(value, name, depth, owner, key)
        else:
            self._object(value, name, depth)

    def _entries(self, value: Any, name: str, depth: int, owner: Any, key: str) -> None:
        if not isinstance(value, tuple):
            self.containers.append((owner, key, value, name))
        for place, part in list(value.items() if isinstance(value, dict) else enumerate(value))[:64]:
            self.look(part, f"{name}[{place!r}]", depth + 1, Fixed(part) if isinstance(value, tuple) else None)

    def _object(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, type):
            for key, part in list(vars(value).items())[:64]:
                part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
                self.look(part, f"{name}.{key}", depth + 1, Kind(value), key)
        elif type(value).__module__ != "builtins":
            if isinstance(getattr(value, "__dict__", None), dict):
                self.objects[name] = vars(value)
            for key, part, where in _attributes(value):
                self.look(part, f"{name}.{key}", depth + 1, where, key)
            for kind in type(value).__mro__:
                self.look(kind, name, depth + 1)


def modules_of(function: Any) -> dict[str, nn.Module]:
    """The modules that a function uses, by name."""
    return uses(function).modules


def uses(function: Any) -> Uses:
    """The objects that a function uses.

    The search includes the object of a bound method, the arguments of a ``functools.partial``, the closure, the
    defaults, the global variables that the code names, also in other Python modules, and the attributes and methods of
    objects.
    """
    result = Uses()
    result.look(function, getattr(function, "__name__", type(function).__name__))
    return result


def calls_compiled(model: nn.Module, loss_fn: Any) -> bool:
    """Whether the code of a model's classes, of its attributes or of a loss function names compiled functions."""
    found = Uses()
    found.look(loss_fn, "loss_fn")
    modules = [part for m in (model, *found.modules.values()) for part in m.modules()]
    for i, m in enumerate(modules):
        found.attributes(m, f"{i}")
        found.look(type(m), f"class {i}")
    return any("_torchdynamo_orig_callable" in held for held in found.objects.values())


def _foreign(value: Any) -> bool:
    """Whether a value's code belongs to torch, Python or lowland, which have no state of a loss."""
    if isinstance(value, nn.Module | functools.partial | types.MethodType | tuple | list | dict | deque):
        return False
    if isinstance(value, torch.optim.Optimizer | torch.utils.data.Dataset) or type(value).__module__[:8] == "lowland.":
        return True  # a lowland object may be an engine, whose memory changes between passes
    owner = value if isinstance(value, type | types.FunctionType) else type(value)
    return str(owner.__module__).partition(".")[0] in ("torch", "builtins", "numpy", "typing", "collections", "abc")


def _attributes(value: Any) -> list[tuple[str, Any, Any]]:
    """The attributes of an object in its dictionary and its slots: ``(key, value, owner)``."""
    slots = [s for kind in type(value).__mro__ for s in _slot_names(vars(kind).get("__slots__", ()))]
    in_dict = [(key, part, vars(value)) for key, part in [*getattr(value, "__dict__", {}).items()][:64]]
    in_slots = [s for s in slots if s not in ("__dict__", "__weakref__") and hasattr(value, s)]
    return in_dict + [(s, getattr(value, s), Slots(value)) for s in in_slots]


def _slot_names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _names(function: types.FunctionType) -> Iterator[tuple[str, Any, Any]]:
    """The values that a function names, ``(name, value, owner)``: closure, defaults, and global variables.

    Global variables of functions inside the function are included.
    """
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents, Cell(cell)
        except ValueError:  # the variable is unbound
            continue
    for part in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "default", part, Fixed(part)
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        named = [(name, function.__globals__[name]) for name in code.co_names if name in function.__globals__]
        yield from ((name, value, function.__globals__) for name, value in named)
        for _, value in named:  # losses.criterion(…), with `import losses`
            if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in ("torch", "lowland"):
                yield from ((n, vars(value)[n], vars(value)) for n in code.co_names if n in vars(value))
