"""A function in the place of an object's own, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def standing_in(owner: Any, name: str, function: Any) -> Iterator[None]:
    """Let ``owner.name`` be another function; afterwards the object has what it had, whatever is raised inside."""
    held = vars(owner).get(name)
    object.__setattr__(owner, name, function)
    try:
        yield
    finally:
        if held is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, held)
