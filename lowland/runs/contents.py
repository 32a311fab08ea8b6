"""Reads JSON records, and checks that their entries have the types of a dataclass's fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from lowland.core.errors import ArgumentError, StateError

Record = TypeVar("Record")


def contents(path: Path, command: str, version: int) -> dict[str, Any]:
    """The contents of a record.

    Args:
        path: The file.
        command: The command that writes such records, such as ``lowland plan``.
        version: The version of the record.

    Raises:
        ArgumentError: The file cannot be read.
        StateError: It is no record of this version.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        json.dumps(entries, ensure_ascii=False).encode("utf-8")  # fails for half of a character
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"record must be a JSON file of {command}, but {path} cannot be read ({error}); name another"
        ) from None
    if not isinstance(entries, dict) or not fits(entries.get("version"), int) or entries["version"] != version:
        raise StateError(f"record must be of version {version}, but {path} is not; run {command} again to make it")
    return entries


def damaged(path: Path, command: str, error: Exception) -> StateError:
    """The error for a record whose entries are not those of its version."""
    return StateError(f"record {path} is damaged ({error}); run {command} again to make it")


def exact(kind: type, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry, if it has exactly the fields of a dataclass, and numbers and text where it says so.

    Raises:
        TypeError: It has others.
    """
    names = {field.name for field in fields(kind)}
    if set(entry) != names:
        raise TypeError(f"{kind.__name__} has {', '.join(sorted(set(entry) ^ names))} too much or too little")
    return typed(kind, entry)


def typed(kind: type, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry, if its values have the types of a dataclass's fields, also inside of lists and dictionaries.

    Numbers must be finite. The class may name fields whose values are > 0 in ``POSITIVE``, and >= 0 in
    ``NOT_NEGATIVE``; None is allowed where the type allows it.

    Raises:
        TypeError: A value is another one.
    """
    hints = get_type_hints(kind)
    for name, value in entry.items():
        if not fits(value, hints[name]):
            raise TypeError(f"{kind.__name__}.{name} is {str(value)[:80]!r}")
    for bound, names in (("> 0", _named(kind, "POSITIVE")), (">= 0", _named(kind, "NOT_NEGATIVE"))):
        for name in names:
            value = entry[name]
            if value is not None and (value < 0 or (value == 0 and bound == "> 0")):
                raise TypeError(f"{kind.__name__}.{name} must be {bound}, but is {value!r}")
    return entry


def checked(record: Record) -> Record:
    """The record, a dataclass, if its values have the types of its fields; a file may have been edited.

    Raises:
        TypeError: A value has another one.
    """
    typed(type(record), vars(record))
    return record


def _named(kind: type, name: str) -> Sequence[str]:
    return getattr(kind, name, ())


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a record has the type of an annotation; numbers must be finite, and True is no number."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint in (int, float):
        return type(value) in ((int,) if hint is int else (int, float)) and _finite(value)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin is list:
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    return isinstance(value, NoneType if hint is None else hint)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is larger than every floating-point number
        return False


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")
