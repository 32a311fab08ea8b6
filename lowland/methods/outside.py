"""Methods that are not lowland's own, by name: from a file, a package, or an entry point of an installed package."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from lowland.core.errors import ArgumentError
from lowland.methods.base import Method

GROUP = "lowland.methods"
"""The entry points that a package declares: ``[project.entry-points."lowland.methods"]``, ``vasso = "vasso:VaSSO"``."""

_LOADED = "__lowland_source__"  # in a module from a file, a hash of the file as it was when the module was made


def split(text: str, known: Iterable[str]) -> tuple[str, str]:
    """A method's name and its fields, at the colon before the first ``field=``.

    Args:
        text: A method's text.
        known: The names in the registry, after which a colon always begins the fields.

    Example:
        >>> split("sam:rho=0.1", ["sam"]), split("my/vasso.py:VaSSO:theta=0.4,rho=0.1", ["sam"])
        (('sam', 'rho=0.1'), ('my/vasso.py:VaSSO', 'theta=0.4,rho=0.1'))
    """
    head, _, rest = text.partition(":")
    if head in known:
        return head, rest
    colon = re.search(r":(?=\w+=)", text)
    return (text, "") if colon is None else (text[: colon.start()], text[colon.end() :])


def load(name: str) -> type[Method] | None:
    """The class that a name stands for; None where it is neither a path nor an entry point.

    Args:
        name: ``path/to/file.py:Name``, ``package.module:Name``, or the name of an entry point.

    Raises:
        ArgumentError: There is no such file, module or class, it cannot be imported, or it is no method.
    """
    place, colon, attribute = name.rpartition(":")
    if colon:
        return _method(name, getattr(_module(place, name), attribute, None), _module(place, name))
    if name.endswith(".py"):
        found = ", ".join(f"{name}:{kind.__name__}" for kind in _methods(_file(name, name))) or "none"
        raise ArgumentError(f"a method from a file must be named with its class, but is {name!r}; there: {found}")
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _method(name, _imported(name, point), None)
    return None


def installed() -> list[str]:
    """The names of all entry points."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def source(method: Method) -> str | None:
    """A hash of the files that a method's class, and those of the methods inside it, were written in.

    So a run tells whether it was made by the same code. None for lowland's own, which its version tells.

    Raises:
        ArgumentError: A class was written at a prompt, so that there is no source to compare.
    """
    parts = [source(value) for f in fields(method) if isinstance(value := getattr(method, f.name), Method)]
    if not type(method).__module__.startswith("lowland."):
        parts.append(_source_of(type(method)))
    return "+".join(part for part in parts if part) or None


def _source_of(kind: type[Method]) -> str:
    loaded = vars(sys.modules.get(kind.__module__, inspect)).get(_LOADED)
    if loaded is not None:  # the file may have changed since
        return str(loaded)
    try:
        return _hash(Path(inspect.getsourcefile(kind) or "").read_bytes())
    except (OSError, TypeError):
        pass
    try:
        return _hash(inspect.getsource(kind).encode())  # a cell of a notebook
    except (OSError, TypeError):
        raise ArgumentError(
            f"a method must be written in a file, so that its runs can be compared, but {kind.__name__} has no source; "
            "write the class into a file and name it: file.py:Name"
        ) from None


def _hash(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:16]


def _module(place: str, name: str) -> ModuleType:
    if place.endswith(".py"):
        return _file(place, name)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        raise ArgumentError(
            f"a method must be path/to/file.py:Name or package.module:Name, but there is no module {place!r} for "
            f"{name!r}; install it, or name a file"
        ) from None
    except Exception as error:
        raise _broken(name, error) from error


def _file(place: str, name: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ArgumentError(
            f"a method must be in a file that is there, but {path} is not; correct the path in {name!r}"
        )
    # Dataclasses look their module up, and a file that is named twice is one module.
    key = f"lowland_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[key] = importlib.util.module_from_spec(spec)
    vars(module)[_LOADED] = _hash(path.read_bytes())
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise _broken(name, error) from error
    return module


def _imported(name: str, point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise _broken(name, error) from error


def _method(name: str, kind: Any, module: ModuleType | None) -> type[Method]:
    if isinstance(kind, type) and issubclass(kind, Method) and not inspect.isabstract(kind):
        return kind
    there = ", ".join(found.__name__ for found in _methods(module)) or "none"
    shown = "is not there" if kind is None else f"is {kind!r}"
    raise ArgumentError(f"{name!r} must name a class made from lowland.Method with a plan, but {shown}; there: {there}")


def _methods(module: ModuleType | None) -> list[type[Method]]:
    """The methods that a module defines."""
    values = [] if module is None else list(vars(module).values())
    kinds = [v for v in values if isinstance(v, type) and issubclass(v, Method) and not inspect.isabstract(v)]
    return [kind for kind in kinds if module is not None and kind.__module__ == module.__name__]


def _broken(name: str, error: Exception) -> ArgumentError:
    return ArgumentError(
        f"a method must be in a module that can be imported, but {name!r} cannot be: {type(error).__name__}: {error}"
    )
