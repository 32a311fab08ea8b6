"""Methods that are not lowland's own, by name: from a file, a package, or an entry point of an installed package."""

from __future__ import annotations

import inspect
from typing import Any

from lowland.core.outside import Kind
from lowland.methods.base import Method


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and not inspect.isabstract(value)


OUTSIDE = Kind("method", "a class made from lowland.Method with a plan", _is_method, "lowland.methods")
"""A package declares its own: ``[project.entry-points."lowland.methods"]``, ``vasso = "vasso:VaSSO"``."""
