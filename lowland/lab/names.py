"""Tasks and models as text: ``cifar10:noise=0.4``, ``my_task.py:Pose:joints=17``, ``package.module:Net``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.core.outside import Kind, fields_of, split, text_of, value_of
from lowland.lab.task import Task


def _is_task(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and not inspect.isabstract(value)


def _is_model(value: Any) -> bool:
    return callable(value) and not (isinstance(value, type) and not issubclass(value, nn.Module))


OUTSIDE_TASK = Kind("task", "a class made from lowland.lab.Task, complete", _is_task, "lowland.tasks")
OUTSIDE_MODEL = Kind("model", "an nn.Module class, or a function that returns a module", _is_model, "lowland.models")
_FOLDER = "lowland.lab.tasks"

loaded: dict[str, type[Task]] = {}
"""Tasks that are not lowland's own, by the names they were loaded under."""


@cache
def tasks() -> dict[str, type[Task]]:
    """The tasks of lowland by name, ``FashionMnist`` as ``fashion-mnist``.

    Every file of ``lowland/lab/tasks`` is looked through, so a new task is a file there and nothing else.
    """
    found: dict[str, type[Task]] = {}
    package = importlib.import_module(_FOLDER)
    for info in pkgutil.iter_modules(package.__path__, f"{_FOLDER}."):
        for name, kind in vars(importlib.import_module(info.name)).items():
            if _is_task(kind) and kind.__module__ == info.name and not name.startswith("_"):
                found[re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()] = kind
    return dict(sorted(found.items()))


def kind_of(name: str) -> type[Task]:
    """The class of a task's name; one that is not lowland's own is loaded, and is in ``loaded`` from then on.

    Args:
        name: A key of :func:`tasks`, ``path/to/file.py:Name``, ``package.module:Name``, or an entry point's name.

    Raises:
        UnknownNameError: No such task; the nearest name is suggested.
        ArgumentError: A file or module that cannot be imported, or a name in it that is no task.
    """
    known = {**tasks(), **loaded}
    if name not in known:
        kind = OUTSIDE_TASK.load(name)
        if kind is None:
            raise UnknownNameError("task", name, [*known, *OUTSIDE_TASK.installed()])
        loaded[name] = known[name] = kind
    return known[name]


def make(text: str) -> Task:
    """A task from ``name`` or ``name:field=value,field=value``.

    Args:
        text: For example ``"cifar10:noise=0.4"`` or ``"my_task.py:Pose:joints=17"``.

    Raises:
        UnknownNameError: No such task or field.
        ArgumentError: The text is malformed or a value breaks its rule.

    Example:
        >>> make("digits:noise=0.4").noise
        0.4
    """
    name, rest = split(text, [*tasks(), *loaded])
    kind = kind_of(name)
    return kind(**_fields(f"field of {name}", rest, _known(kind), text))


def spell(task: Task) -> str:
    """The text that :func:`make` turns into this task, naming only fields that differ from the defaults.

    A class that was not loaded by a name has the place where it was written: ``module:Name``.

    Example:
        >>> spell(make("digits:noise=0.4,noise_kind=asymmetric"))
        'digits:noise=0.4,noise_kind=asymmetric'
    """
    name = next((key for key, kind in {**tasks(), **loaded}.items() if type(task) is kind), None)
    if name is None:
        name = f"{type(task).__module__}:{type(task).__qualname__}"
    given = [(f.name, getattr(task, f.name), f.default) for f in _dataclass_fields(task)]
    parts = [f"{key}={text_of(value)}" for key, value, default in given if value != default]
    return ":".join(filter(None, [name, ",".join(parts)]))


def model_maker(task: Task, name: str) -> tuple[Callable[[], nn.Module], Any]:
    """How a model is made, and the class or function of a model that is not the task's.

    Args:
        task: The task; a model of another file gets of the task's attributes ``shape``, ``classes`` and others those
            that its parameters are called like.
        name: What ``--model`` says.

    Raises:
        ArgumentError: A file or module that cannot be imported, or arguments that the model does not take.
    """
    place, rest = split(name, task.models)
    outside = place not in task.models and (".py:" in place or place.endswith(".py") or _is_module_path(place))
    found = OUTSIDE_MODEL.load(place) if outside else _entry_point(task, place)
    if found is None:
        return lambda: task.model(name), None
    parameters = inspect.signature(found).parameters
    given = _fields(f"argument of {place}", rest, list(parameters), name)
    lent = {key: getattr(task, key) for key in parameters if key not in given and hasattr(task, key)}
    missing = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and key not in {**given, **lent}
    ]
    if missing:
        raise ArgumentError(
            f"model {place} needs {missing[0]}, which the task does not have; write it out: {place}:{missing[0]}=…"
        )
    return lambda: found(**lent, **given), found


def _entry_point(task: Task, place: str) -> Any:
    return OUTSIDE_MODEL.load(place) if place not in task.models and place in OUTSIDE_MODEL.installed() else None


def _is_module_path(place: str) -> bool:
    """Whether it is package.module:Name, and no name of torchvision or timm, such as timm:vit_tiny."""
    module, colon, attribute = place.rpartition(":")
    return bool(colon) and module not in ("timm", "torchvision") and attribute.isidentifier()


def _fields(what: str, rest: str, known: list[str], text: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for part in fields_of(rest):
        key, equals, value = part.partition("=")
        if not equals:
            raise ArgumentError(f"fields must be written name=value, but one is {part!r} in {text!r}")
        if key not in known:
            raise UnknownNameError(what, key, known)
        given[key] = value_of(value)
    return given


def _known(kind: type[Task]) -> list[str]:
    return [f.name for f in _dataclass_fields(kind)]


def _dataclass_fields(task: Any) -> list[dataclasses.Field[Any]]:
    """The fields that a caller may give."""
    return [f for f in dataclasses.fields(task) if f.init] if dataclasses.is_dataclass(task) else []
