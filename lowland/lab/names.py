"""Makes tasks and models from text: ``cifar10:noise=0.4``, ``my_task.py:Pose:joints=17``, ``package.module:Net``."""

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
"""The external tasks, by the names under which they were loaded."""


@cache
def tasks() -> dict[str, type[Task]]:
    """The tasks of lowland by name, ``FashionMnist`` as ``fashion-mnist``.

    The function imports every module of ``lowland/lab/tasks``, so a new file there registers its tasks.
    """
    classes: dict[str, type[Task]] = {}
    package = importlib.import_module(_FOLDER)
    for info in pkgutil.iter_modules(package.__path__, f"{_FOLDER}."):
        for name, kind in vars(importlib.import_module(info.name)).items():
            if _is_task(kind) and kind.__module__ == info.name and not name.startswith("_"):
                classes[re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()] = kind
    return dict(sorted(classes.items()))


def kind_of(name: str) -> type[Task]:
    """The class of a task by name; an external class is loaded and added to ``loaded``.

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
    return kind(**_fields(f"field of {name}", rest, _field_names(kind), text))


def spell(task: Task) -> str:
    """The text that :func:`make` turns into this task, naming only fields that differ from the defaults.

    The text of a class that was not loaded by name begins with ``module:Name``.

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
    """A function that makes the model, and the class or function of an external model (None for the task's models).

    Args:
        task: The task. An external model gets the task's attributes, such as ``shape`` and ``classes``, as arguments
            for its parameters of the same names.
        name: The value of ``--model``.

    Raises:
        ArgumentError: A file or module that cannot be imported, or arguments that the model does not take.
    """
    source, rest = split(name, task.models)
    is_external = source not in task.models and (".py:" in source or source.endswith(".py") or _is_module_path(source))
    factory = OUTSIDE_MODEL.load(source) if is_external else _entry_point(task, source)
    if factory is None:
        return lambda: task.model(name), None
    parameters = inspect.signature(factory).parameters
    given = _fields(f"argument of {source}", rest, list(parameters), name)
    from_task = {key: getattr(task, key) for key in parameters if key not in given and hasattr(task, key)}
    missing = [
        key
        for key, p in parameters.items()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and key not in {**given, **from_task}
    ]
    if missing:
        raise ArgumentError(
            f"model {source} needs {missing[0]}, which the task does not have; write it out: {source}:{missing[0]}=…"
        )
    return lambda: factory(**from_task, **given), factory


def _entry_point(task: Task, place: str) -> Any:
    return OUTSIDE_MODEL.load(place) if place not in task.models and place in OUTSIDE_MODEL.installed() else None


def _is_module_path(place: str) -> bool:
    """Whether a model's name has the form package.module:Name and is not a torchvision or timm name."""
    module, colon, attribute = place.rpartition(":")
    return bool(colon) and module not in ("timm", "torchvision") and attribute.isidentifier()


def _fields(what: str, rest: str, allowed: list[str], text: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for part in fields_of(rest):
        key, equals, value = part.partition("=")
        if not equals:
            raise ArgumentError(f"fields must be written name=value, but one is {part!r} in {text!r}")
        if key not in allowed:
            raise UnknownNameError(what, key, allowed)
        given[key] = value_of(value)
    return given


def _field_names(kind: type[Task]) -> list[str]:
    return [f.name for f in _dataclass_fields(kind)]


def _dataclass_fields(task: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a task that its constructor accepts."""
    return [f for f in dataclasses.fields(task) if f.init] if dataclasses.is_dataclass(task) else []
