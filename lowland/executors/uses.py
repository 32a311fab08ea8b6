"""What a loss function uses: modules, and dictionaries and objects that may keep state."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def modules_of(function: Any) -> dict[str, nn.Module]:
    """The modules that a function uses, by where they were found."""
    return uses(function)[0]


def uses(function: Any) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]:
    """The modules that a function uses, and the dictionaries and objects' attributes, by where they were found.

    Looked at are the function itself, what it is bound to or partially given, its closure, its defaults, the globals
    that its code names, also in other modules of Python, and the attributes and methods of objects.
    """
    found: dict[str, nn.Module] = {}
    kept: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()

    def look(value: Any, name: str, depth: int) -> None:
        if (
            id(value) in seen
            or depth > 6
            or len(seen) > 5000
            or isinstance(value, types.ModuleType | Tensor)
            or _foreign(value)
        ):
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
            kept[name] = value
            for key, part in list(value.items())[:64]:
                look(part, f"{name}[{key!r}]", depth + 1)
        elif isinstance(value, type):
            for key, part in list(vars(value).items())[:64]:
                part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
                look(part, f"{name}.{key}", depth + 1)
        elif type(value).__module__ != "builtins":
            if isinstance(getattr(value, "__dict__", None), dict):
                kept[name] = vars(value)
            for key, part in _attributes(value):
                look(part, f"{name}.{key}", depth + 1)
            for kind in type(value).__mro__:
                look(kind, name, depth + 1)

    look(function, getattr(function, "__name__", type(function).__name__), 0)
    return found, kept


def _foreign(value: Any) -> bool:
    """Whether its code is torch's or Python's, which keeps no state for a loss."""
    if isinstance(value, nn.Module | functools.partial | types.MethodType | tuple | list | dict):
        return False
    if isinstance(value, torch.optim.Optimizer | torch.utils.data.Dataset) or type(value).__module__[:8] == "lowland.":
        return True  # an engine's memory changes between passes
    owner = value if isinstance(value, type | types.FunctionType) else type(value)
    return str(owner.__module__).partition(".")[0] in ("torch", "builtins", "numpy", "typing", "collections", "abc")


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """What an object holds, in its dictionary and its slots."""
    slots = [s for kind in type(value).__mro__ for s in _listed(vars(kind).get("__slots__", ()))]
    held = [*getattr(value, "__dict__", {}).items()][:64]
    return held + [(s, getattr(value, s)) for s in slots if s not in ("__dict__", "__weakref__") and hasattr(value, s)]


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


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
        named = [(name, function.__globals__[name]) for name in code.co_names if name in function.__globals__]
        yield from named
        for _, value in named:  # losses.criterion(…), with `import losses`
            if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in ("torch", "lowland"):
                yield from ((name, vars(value)[name]) for name in code.co_names if name in vars(value))
