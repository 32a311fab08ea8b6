"""A fingerprint of the user's code: a hash of a class, a function or an object.

Two runs with the same fingerprint were made by the same code. The fingerprint covers the source file, the user's own
files that it imports, and the values that the code uses: closures, defaults, arguments of ``functools.partial``, and
numbers and text in global variables. It does not cover installed packages, which have versions.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowland.core.errors import ArgumentError
from lowland.core.outside import LOADED, hashed
from lowland.lab.sources import imports, of_module, own

SCALARS = (type(None), bool, int, float, complex, str, bytes)
_CONSTANTS = (torch.dtype, torch.device, torch.Size, range, slice, Path)


def of(value: Any, what: str) -> str | None:
    """The fingerprint of a class, a function or an object; None for lowland's own code, which has a version.

    Args:
        value: A class, a function, a ``functools.partial`` or an object. The fingerprint of an object covers its class
            and its attributes, except numbers and text, which are in the object's own text.
        what: The noun for messages: task, model or method.

    Raises:
        ArgumentError: The code has no source, because it was written at a prompt.
    """
    seen = _Seen()
    try:
        seen.code(value)
    except OSError as error:
        raise ArgumentError(
            f"a {what} must be written in a file, so that its runs can be compared, but {error} has no source; write "
            f"it into a file and name it: file.py:Name"
        ) from None
    parts = [*sorted(seen.files.values()), *seen.values]
    return None if not parts else parts[0] if len(parts) == 1 else hashed("\n".join(parts).encode())


class _Seen:
    """Collects the source files and the values that code uses."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}  # hashes of files, by module
        self.values: list[str] = []
        self._visited: dict[int, Any] = {}  # objects by id; the reference keeps the id from being reused
        self._open: set[int] = set()  # the ids of the objects whose attributes are being read

    def code(self, value: Any) -> None:
        """Add the source files of a class, function or object, and the values that it uses."""
        if id(value) in self._visited:
            return
        self._visited[id(value)] = value
        if isinstance(value, functools.partial):
            self.code(value.func)
            self.values += [self.text(value.args), self.text(value.keywords)]
        elif isinstance(value, types.MethodType):
            self.code(value.__func__)
            self.code(value.__self__)
        elif str(value.__module__).startswith("lowland.") and isinstance(value, type | types.FunctionType):
            return
        elif isinstance(value, type | types.FunctionType):
            self._file(value)
            for function in _functions(value):
                self._surroundings(function)
            for base in value.__bases__ if isinstance(value, type) else ():
                if own(base.__module__):
                    self.code(base)
        else:
            self.code(type(value))
            for name, attribute in _attributes(value):
                if dataclasses.is_dataclass(attribute) and not isinstance(attribute, type):
                    self.code(attribute)  # plain fields are in the text of this object
                elif not _plain(attribute):
                    self.values.append(f"{name}={self.text(attribute)}")

    def text(self, value: Any) -> str:
        """A text that identifies a value: tensors and modules by their content, functions by their name and code."""
        if isinstance(value, SCALARS + _CONSTANTS):
            return repr(value)
        if isinstance(value, torch.Tensor):
            return f"{value.dtype}{tuple(value.shape)}{_bytes(value)}"
        if isinstance(value, nn.Module):
            self._users_own(type(value))
            return f"{value!r}{self.text(dict(value.state_dict()))}"
        if isinstance(value, Enum):
            return str(value)
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | functools.partial):
            self._users_own(value)
            return str(getattr(value, "__qualname__", "partial"))
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self.text(k)}: {self.text(v)}' for k, v in value.items())}}}"
        if isinstance(value, list | tuple | set | frozenset):
            parts = [self.text(v) for v in value]
            parts = sorted(parts) if isinstance(value, set | frozenset) else parts
            return f"{type(value).__name__}({', '.join(parts)})"
        if hasattr(value, "__array__") and hasattr(value, "tobytes"):  # a NumPy array, whose repr omits entries
            entries = self.text(value.tolist()) if value.dtype.hasobject else hashed(value.tobytes())
            return f"{value.dtype}{value.shape}{entries}"
        if dataclasses.is_dataclass(value) or getattr(type(value), "__repr__", None) is object.__repr__:
            return self._object(value)
        return repr(value)

    def _object(self, value: Any) -> str:
        """The class and the attributes of an object as text; only the class if the object contains itself."""
        if id(value) in self._open:
            return type(value).__qualname__
        self._users_own(type(value))
        self._open.add(id(value))
        try:
            return f"{type(value).__qualname__}({', '.join(f'{k}={self.text(v)}' for k, v in _attributes(value))})"
        finally:
            self._open.remove(id(value))

    def _users_own(self, value: Any) -> None:
        """Add the code of a function or class if it is the user's own."""
        if isinstance(value, functools.partial) or own(getattr(value, "__module__", None)):
            self.code(value)

    def _file(self, value: Any) -> None:
        """Add the source file of a class or function, and the files that it imports."""
        module, loaded = value.__module__, vars(sys.modules.get(value.__module__, types)).get(LOADED)
        try:
            file = Path(inspect.getsourcefile(value) or "")
        except (OSError, TypeError):
            file = Path()
        if file.is_file():
            self.files[module] = loaded or of_module(module, file)
            for name, imported in imports(module, file):
                self.files.setdefault(name, of_module(name, imported))
        elif loaded:
            self.files[module] = loaded
        else:
            self.files[f"{module}:{value.__qualname__}"] = hashed(_source(value))

    def _surroundings(self, function: types.FunctionType) -> None:
        """Add the values of a function's closure, its defaults and its global variables."""
        for cell in function.__closure__ or ():
            try:
                self.values.append(self.text(cell.cell_contents))
            except ValueError:  # not bound yet
                continue
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        self.values += [repr(v) for v in defaults if _plain(v)]
        for name, value in _globals(function):
            if isinstance(value, type | types.FunctionType | functools.partial):
                self._users_own(value)
            # Paths and devices are locations, which may differ between runs of the same code.
            elif _plain(value, inside=True) and not isinstance(value, Path | torch.device):
                self.values.append(f"{name}={self.text(value)}")


def _plain(value: Any, *, inside: bool = False) -> bool:
    """Whether a value is a number or text, or a tuple of these; with ``inside``, also a container of these."""
    if isinstance(value, SCALARS + _CONSTANTS):
        return True
    if isinstance(value, tuple) or (inside and isinstance(value, list | set | frozenset)):
        return all(_plain(v, inside=inside) for v in value)
    if inside and isinstance(value, dict):
        return all(_plain(v, inside=True) for pair in value.items() for v in pair)
    if inside and (dataclasses.is_dataclass(value) or type(value).__name__ in ("Namespace", "SimpleNamespace")):
        return not isinstance(value, type) and all(_plain(v, inside=True) for _, v in _attributes(value))
    return False


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """The names and values of a dataclass's constructor fields, or of another object's attributes."""
    if dataclasses.is_dataclass(value):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*getattr(value, "__dict__", {}).items(), *((n, getattr(value, n, None)) for n in slots if n != "__dict__")]


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The functions of a class, or a function itself."""
    if isinstance(value, types.FunctionType):
        yield value
        return
    for entry in vars(value).values():
        inside = (getattr(entry, name, None) for name in ("__func__", "fget", "func"))  # wrapped by a decorator
        inner = next((each for each in inside if each is not None), entry)
        if isinstance(inner, types.FunctionType) and inner.__module__ == value.__module__:
            yield inner


def _globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The names and values of the global variables that a function reads; for ``args.width`` only the width.

    Variables that the function also writes, such as counters, are excluded.
    """
    reads, written = _names(function.__code__)
    for name, attribute in sorted(reads):
        if name in written or name.startswith("__") or name not in function.__globals__:
            continue
        value = function.__globals__[name]
        namespace = type(value).__name__ in ("Namespace", "SimpleNamespace")
        if attribute and (namespace or (isinstance(value, types.ModuleType) and own(value.__name__))):
            yield f"{name}.{attribute}", getattr(value, attribute, None)
        else:
            yield name, value


def _names(code: types.CodeType) -> tuple[set[tuple[str, str]], set[str]]:
    """The global variables that code reads, each with the attribute that it reads or "", and those that it writes."""
    reads, writes = set[tuple[str, str]](), set[str]()
    steps = list(dis.get_instructions(code))
    for step, following in pairwise(steps):  # the last instruction returns
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            reads.add((step.argval, following.argval if following.opname in ("LOAD_ATTR", "LOAD_METHOD") else ""))
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            writes.add(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            also_read, also_written = _names(inner)
            reads, writes = reads | also_read, writes | also_written
    return reads, writes


def _bytes(tensor: torch.Tensor) -> str:
    local = tensor.detach().cpu()
    local = local.to_dense() if local.layout is not torch.strided else local
    return hashed(local.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _source(value: Any) -> bytes:
    """The source of a class or function, as in a notebook's cell; a function without source gives its compiled code."""
    try:
        return inspect.getsource(value).encode()
    except (OSError, TypeError) as error:
        if isinstance(value, types.FunctionType):
            return _compiled(value.__code__).encode()
        raise OSError(value.__qualname__) from error


def _compiled(code: types.CodeType) -> str:
    constants = [_compiled(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code!r}{code.co_names}{code.co_varnames}{constants}"
