"""Reads the JSON records from which pages are drawn, and checks their entries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from lowland.core.errors import ArgumentError, StateError

TYPES: dict[Any, Any] = {  # what an annotation allows, where an entry's type is checked
    float: (int, float), float | None: (int, float, type(None)), int: int, int | None: (int, type(None)), str: str,
    bool: bool, list[str]: list, Mapping[str, Any]: dict, Mapping[str, str]: dict,
}  # fmt: skip


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
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArgumentError(
            f"record must be a JSON file of {command}, but {path} cannot be read ({error}); name another"
        ) from None
    if not isinstance(entries, dict) or entries.get("version") != version:
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
    """The entry, if its values have the types of a dataclass's fields, as far as these are numbers, text or lists.

    Raises:
        TypeError: A value has another type.
    """
    hints = get_type_hints(kind)
    for name, value in entry.items():
        if hints[name] in TYPES and not isinstance(value, TYPES[hints[name]]):
            raise TypeError(f"{kind.__name__}.{name} is {value!r}")
    return entry
