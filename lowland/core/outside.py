"""Classes that are not lowland's own, by name: from a file, a package, or an entry point of an installed package."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from lowland.core.errors import ArgumentError

LOADED = "__lowland_source__"
"""In a module from a file, the hash of the file as it was when the module was made."""


@dataclass(frozen=True)
class Kind:
    """What is looked for: methods, tasks or models.

    Args:
        what: Its noun, such as ``method``.
        rule: What an object must be, to follow "must name", such as ``a class made from lowland.Method with a plan``.
        accepts: Whether an object is one.
        group: The entry points that a package declares for it, ``[project.entry-points."lowland.methods"]``.
    """

    what: str
    rule: str
    accepts: Callable[[Any], bool]
    group: str

    def load(self, name: str) -> Any:
        """What a name stands for; None where the name is neither a path nor an entry point.

        Args:
            name: ``path/to/file.py:Name``, ``package.module:Name``, or the name of an entry point.

        Raises:
            ArgumentError: There is no such file, module or object, it cannot be imported, or it is not of this kind.
        """
        place, colon, attribute = name.rpartition(":")
        if colon:
            module = self._module(place, name)
            return self._checked(name, getattr(module, attribute, None), module)
        if name.endswith(".py"):
            choices = ", ".join(f"{name}:{each}" for each in self._there(self._file(name, name))) or "none"
            raise ArgumentError(
                f"a {self.what} from a file must be named with its class, but is {name!r}; there: {choices}"
            )
        for point in entry_points(group=self.group):
            if point.name == name:
                return self._checked(name, self._imported(name, point), None)
        return None

    def installed(self) -> list[str]:
        """The names of all entry points."""
        return sorted({point.name for point in entry_points(group=self.group)})

    def _checked(self, name: str, value: Any, module: ModuleType | None) -> Any:
        if self.accepts(value):
            return value
        there = ", ".join(self._there(module)) or "none"
        shown = "is not there" if value is None else f"is {value!r}"
        raise ArgumentError(f"{name!r} must name {self.rule}, but {shown}; there: {there}")

    def _there(self, module: ModuleType | None) -> list[str]:
        """The names of what a module defines of this kind."""
        values = {} if module is None else vars(module)
        return [n for n, v in values.items() if self.accepts(v) and getattr(v, "__module__", "") == values["__name__"]]

    def _module(self, place: str, name: str) -> ModuleType:
        if place.endswith(".py"):
            return self._file(place, name)
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise self._broken(name, error) from error
            raise ArgumentError(
                f"a {self.what} must be path/to/file.py:Name or package.module:Name, but there is no module {place!r} "
                f"for {name!r}; install it, or name a file"
            ) from None
        except Exception as error:
            raise self._broken(name, error) from error

    def _file(self, place: str, name: str) -> ModuleType:
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise ArgumentError(
                f"a {self.what} must be in a file that is there, but {path} is not; correct the path in {name!r}"
            )
        # Dataclasses look their module up, and a file that is named twice is one module.
        key = f"lowland_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
        if key in sys.modules:
            return sys.modules[key]
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None
        assert spec.loader is not None
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # as for a script, so that it can import what lies beside it
        module = sys.modules[key] = importlib.util.module_from_spec(spec)
        vars(module)[LOADED] = hashed(path.read_bytes())
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[key]
            raise self._broken(name, error) from error
        return module

    def _imported(self, name: str, point: EntryPoint) -> Any:
        try:
            return point.load()
        except Exception as error:
            raise self._broken(name, error) from error

    def _broken(self, name: str, error: Exception) -> ArgumentError:
        return ArgumentError(
            f"a {self.what} must be in a module that can be imported, but {name!r} cannot be: {type(error).__name__}: "
            f"{error}"
        )


def split(text: str, known: Iterable[str]) -> tuple[str, str]:
    """A name and its fields, at the colon before the first ``field=``.

    Args:
        text: Of a method, task or model.
        known: Names in the registry, after which a colon always begins the fields.

    Example:
        >>> split("sam:rho=0.1", ["sam"]), split("my/vasso.py:VaSSO:theta=0.4,rho=0.1", ["sam"])
        (('sam', 'rho=0.1'), ('my/vasso.py:VaSSO', 'theta=0.4,rho=0.1'))
    """
    head, _, rest = text.partition(":")
    if head in known:
        return head, rest
    colon = re.search(r":(?=\w+=)", text)
    return (text, "") if colon is None else (text[: colon.start()], text[colon.end() :])


def fields_of(text: str) -> list[str]:
    """The parts of ``field=value,field=value``, at commas that are not inside quotes or brackets.

    Example:
        >>> fields_of("sizes=(4, 5),note='a, b',width=3")
        ['sizes=(4, 5)', "note='a, b'", 'width=3']
    """
    parts, depth, quote, escaped = [""], 0, "", False
    for each in text:
        if quote:
            quote = "" if each == quote and not escaped else quote
            escaped = each == "\\" and not escaped
        elif each in "'\"" and parts[-1].endswith(("=", "(", "[", "{", " ")):
            quote = each
        else:
            depth += (each in "([{") - (each in ")]}")
        if each == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += each
    return [part for part in parts if part]


def text_of(value: Any) -> str:
    """The text that :func:`value_of` turns into this value, and :func:`fields_of` leaves whole.

    Example:
        >>> text_of("adam"), text_of("3"), text_of("a, b"), text_of(0.5)
        ('adam', "'3'", "'a, b'", '0.5')
    """
    text = str(value)
    ambiguous = isinstance(value, str) and ({*text} & {*",()[]{}'\"\\"} or value_of(text) != value)
    return repr(value) if ambiguous else text


def value_of(text: str) -> Any:
    """A field's value from its text: a number, a tuple, True, None; what is none of these is a string."""
    try:
        return float(text) if text.lstrip("+-") == "inf" else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def hashed(code: bytes) -> str:
    """A hash of some bytes, 16 hexadecimal digits."""
    return hashlib.sha256(code).hexdigest()[:16]
