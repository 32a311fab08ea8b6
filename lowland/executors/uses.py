"""Searches functions and modules for what they use: modules, tensors, containers, variables and generators."""

from __future__ import annotations

import functools
import random
import sys
import types
from collections import UserDict, UserList, deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lowland.executors.code import differentiates, drawn_from, draws, hooks_of
from lowland.executors.keepers import Cell, Fixed, Kind, Slots
from lowland.executors.names import NEAR, OWN, holds, is_array

DEPTH = 6  # how many levels of attributes and entries are searched
_KINDS: Any = (nn.Module, functools.partial, types.MethodType, tuple, list, dict, deque, set, UserDict, UserList)
DIRECT = 2  # the level down to which a function that names an iterator is taken to draw from it
SHALLOW = 3  # the level at which the search of hooks and classes starts: they are many, so fewer levels remain


class Uses:
    """The result of a search; each entry has a name for messages.

    Attributes:
        modules: The modules.
        tensors: ``(owner, key, name)`` of tensors in variables, slots and classes.
        objects: The names and dictionaries of objects that are no modules, and of modules whose class is not torch's.
        containers: ``(owner, key, container, name, log)`` of lists, deques, sets and dicts. The owner is None if
            another container holds the container. ``log`` is true if a hook or a class of the model holds the
            container; its appended entries are taken for a log, not for state.
        holders: The objects that are no modules and have a dictionary.
        variables: Lists of ``(owner, key)``, one list for each function, object with slots, and class.
        generators: The random number generators.
        iterators: The names of iterators that functions name, or that modules hold: each pass would draw from them.
        differentiates: Whether a function may differentiate a part of the loss itself.
        asks: Whether a function may ask which tensors require a gradient, or differentiate by the weights.
    """

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.tensors: list[tuple[Any, str, str]] = []
        self.objects: list[tuple[str, dict[str, Any]]] = []
        self.containers: list[tuple[Any, str, Any, str, bool]] = []
        self._log = False
        self.variables: list[list[tuple[Any, str]]] = []
        self.holders: list[Any] = []
        self.generators: list[Any] = []
        self.iterators: list[str] = []
        self.differentiates = self.asks = False
        self._seen: set[int] = set()

    def attributes(self, m: nn.Module, name: str) -> None:
        """Search a module's attributes, except parameters, buffers and modules."""
        of_torch = _of_torch(m)
        if not of_torch:
            self.objects.append((name, vars(m)))
        for key, value in list(vars(m).items()):
            if key in OWN or type(value) in (int, float, bool, str) or (of_torch and not _attached(m, key, value)):
                continue
            if drawn_from(value):
                self.iterators.append(f"{name}.{key}".lstrip("."))
            self.look(value, f"{name}.{key}".lstrip("."), DEPTH - 2, vars(m), key)

    def surroundings(self, m: nn.Module, name: str) -> None:
        """Search a module's hooks, those of its parameters, and its class."""
        self._log = True
        for hook in hooks_of(m):
            self.look(hook, f"a hook of {name}", SHALLOW)
        for kind in () if _of_torch(m) else type(m).__mro__:
            if not _installed(kind):
                self.look(kind, name, SHALLOW)
        self._log = False

    def look(self, value: Any, name: str, depth: int = 0, owner: Any = None, key: str = "") -> None:
        """Search a value and, up to ``DEPTH``, its attributes and entries."""
        if isinstance(value, Tensor) or is_array(value):
            if not isinstance(owner, dict | None) or depth == -1:
                self.tensors.append((owner, key, name))
            return
        if _is_generator(value):
            self.generators.append(value)
            return
        depth = max(depth, 0)
        if id(value) in self._seen or depth > DEPTH or len(self._seen) > 5000:
            return
        if isinstance(value, types.ModuleType) or _has_no_state(value):
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self.modules[f"{name} ({len(self.modules) + 1})" if name in self.modules else name] = value
        elif isinstance(value, functools.partial):
            for i, part in enumerate([value.func, *value.args, *value.keywords.values()]):
                self.look(part, f"{name}[{i}]" if i else name, depth + 1, Fixed(part))
        elif isinstance(value, types.MethodType):
            self.look(value.__self__, name, depth + 1)
            self.look(value.__func__, name, depth + 1)
        elif isinstance(value, types.FunctionType):
            if vars(value):
                self.objects.append((name, vars(value)))
            named = [*_names(value)]
            self.differentiates = self.differentiates or differentiates(value)
            self.asks = self.asks or differentiates(value, asks=True)
            self.iterators += [key for key, part, _ in named if depth <= DIRECT and draws(value, key, part)]
            self._variables([(where, key, part) for key, part, where in named if not isinstance(where, Fixed)])
            for key, part, where in named:
                # Only the named variables of a dictionary of globals are searched: depth -1 notes a tensor here.
                self.look(part, key, -1 if isinstance(part, Tensor) or is_array(part) else depth + 1, where, key)
        elif isinstance(value, UserDict | UserList):
            self.look(value.data, name, depth, vars(value), "data")
        elif isinstance(value, tuple | list | deque | set | dict):
            self._entries(value, name, depth, owner, key)
        else:
            self._object(value, name, depth)

    def _entries(self, value: Any, name: str, depth: int, owner: Any, key: str) -> None:
        if not isinstance(value, tuple):
            self.containers.append((owner, key, value, name, self._log))
        for place, part in list(value.items() if isinstance(value, dict) else enumerate(value))[:NEAR]:
            self.look(part, f"{name}[{place!r}]", depth + 1, Fixed(part) if isinstance(value, tuple) else None)

    def _object(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, type):
            parts = list(vars(value).items())[:NEAR]
            self._variables([(Kind(value), key, part) for key, part in parts if not key.startswith("__")])
            for key, part in parts:
                part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
                self.look(part, f"{name}.{key}", depth + 1, Kind(value), key)
        elif type(value).__module__ != "builtins":
            if isinstance(getattr(value, "__dict__", None), dict):
                self.objects.append((name, vars(value)))
                self.holders.append(value)
            attributes = _attributes(value)
            self._variables([(where, key, part) for key, part, where in attributes if isinstance(where, Slots)])
            for key, part, where in attributes:
                self.look(part, f"{name}.{key}", depth + 1, where, key)
            for kind in type(value).__mro__:
                self.look(kind, name, depth + 1)

    def _variables(self, places: list[tuple[Any, str, Any]]) -> None:
        """Note the variables with data, if a tensor, an array, a float or None is among them."""
        data = [(owner, key, part) for owner, key, part in places if _is_data(part)]
        if any(part is None or holds(part) for _, _, part in data):
            self.variables.append([(owner, key) for owner, key, _ in data])


def modules_of(function: Any) -> dict[str, nn.Module]:
    """The modules that a function uses, by name."""
    return uses(function).modules


def uses(function: Any) -> Uses:
    """Search a function.

    The search covers the function itself, the object of a bound method, the arguments of a ``functools.partial``,
    closures, defaults, the attributes and methods of objects, and the global variables that the code names, also those
    of other Python modules.
    """
    result = Uses()
    result.look(function, getattr(function, "__name__", type(function).__name__))
    return result


def _of_torch(m: nn.Module) -> bool:
    return type(m).__module__.partition(".")[0] == "torch"


def _is_data(value: Any) -> bool:
    """Whether a variable's value is data: no function, class, module or callable object."""
    return not (callable(value) or isinstance(value, types.ModuleType | classmethod | staticmethod | property))


def _attached(m: nn.Module, key: str, value: Any) -> bool:
    """Whether an attribute of a layer of torch was attached by the user.

    Attributes of torch's wrappers, which are no layers, are the wrapper's own.
    """
    layer = type(m).__module__.startswith("torch.nn.modules.") and not key.startswith("_")
    return layer and not isinstance(value, tuple | str) and not _has_no_state(value)


def _is_generator(value: Any) -> bool:
    """Whether a value is a random number generator of torch, Python or NumPy."""
    kind = type(value)
    of_numpy = kind.__module__.startswith("numpy.random") and kind.__name__ in ("Generator", "RandomState")
    return of_numpy or isinstance(value, torch.Generator | random.Random)


def _installed(kind: type) -> bool:
    """Whether a class belongs to an installed package, whose variables are no state of this training."""
    path = str(getattr(sys.modules.get(kind.__module__), "__file__", ""))
    return "site-packages" in path or "dist-packages" in path


def calls_compiled(model: nn.Module, loss_fn: Any) -> bool:
    """Whether the classes or attributes of a model, or the loss function, name a compiled function."""
    result = Uses()
    result.look(loss_fn, "loss_fn")
    modules = [part for m in (model, *result.modules.values()) for part in m.modules()]
    for i, m in enumerate(modules):
        result.attributes(m, f"{i}")
        result.look(type(m), f"class {i}")
    return any("_torchdynamo_orig_callable" in attributes for _, attributes in result.objects)


def _has_no_state(value: Any) -> bool:
    """Whether a value's code is torch's, Python's, NumPy's or lowland's, and has no state of model or loss."""
    if isinstance(value, _KINDS):
        return False
    if isinstance(value, torch.optim.Optimizer | torch.utils.data.Dataset) or type(value).__module__[:8] == "lowland.":
        return True  # an engine's memory changes between passes
    owner = value if isinstance(value, type | types.FunctionType) else type(value)
    return str(owner.__module__).partition(".")[0] in ("torch", "builtins", "numpy", "typing", "collections", "abc")


def _attributes(value: Any) -> list[tuple[str, Any, Any]]:
    """The names, values and owners of an object's attributes, in its dictionary and its slots."""
    slots = [s for kind in type(value).__mro__ for s in _listed(vars(kind).get("__slots__", ()))]
    entries = [(key, part, vars(value)) for key, part in [*getattr(value, "__dict__", {}).items()][:NEAR]]
    named = [s for s in slots if s not in ("__dict__", "__weakref__") and hasattr(value, s)]
    return entries + [(s, getattr(value, s), Slots(value)) for s in named]


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _names(function: types.FunctionType) -> Iterator[tuple[str, Any, Any]]:
    """The names, values and owners of a function's closure, defaults and globals, also of nested functions."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents, Cell(cell)
        except ValueError:  # not bound yet
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
