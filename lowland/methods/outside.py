"""Methods that are not lowland's own, by name: from a file, a package, or an entry point of an installed package."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from lowland.core.outside import Kind
from lowland.methods.base import Method


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and not inspect.isabstract(value)


OUTSIDE = Kind("method", "a class made from lowland.Method with a plan", _is_method, "lowland.methods")
"""A package declares its own: ``[project.entry-points."lowland.methods"]``, ``vasso = "vasso:VaSSO"``."""


def source(method: Method) -> str | None:
    """A hash of the files that a method's class, and those of the methods inside it, were written in.

    So a run tells whether it was made by the same code. None for lowland's own, which its version tells.

    Raises:
        ArgumentError: A class was written at a prompt, so that there is no source to compare.
    """
    parts = [source(value) for f in fields(method) if isinstance(value := getattr(method, f.name), Method)]
    parts.append(OUTSIDE.source(type(method)))
    return "+".join(part for part in parts if part) or None
