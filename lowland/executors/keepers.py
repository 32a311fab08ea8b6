"""A dictionary's interface for other owners of tensors: variables of closures, slots, classes and tuples."""

from __future__ import annotations

import types
from typing import Any

ABSENT = object()  # the value of a name that is not bound


class Owner:
    """Gives an object the interface of a dictionary.

    Args:
        target: The object that holds tensors. Two owners with the same target are the same owner.
    """

    def __init__(self, target: Any) -> None:
        self.target = target

    def get(self, key: str, default: Any = None) -> Any:
        """The current value under a key, or ``default``."""
        return getattr(self.target, key, default)

    def __getitem__(self, key: str) -> Any:
        """The current value under a key, or None."""
        return self.get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        """Assign a value."""
        setattr(self.target, key, value)

    def __delitem__(self, key: str) -> None:
        """Delete a value."""
        delattr(self.target, key)


class Slots(Owner):
    """An object with slots."""


class Kind(Owner):
    """A class."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value in the class's own dictionary; this calls no descriptor."""
        return vars(self.target).get(key, default)


class Cell(Owner):
    """A variable of a closure."""

    target: types.CellType

    def get(self, key: str, default: Any = None) -> Any:
        """The value of the variable; ``default`` if it is unbound."""
        try:
            return self.target.cell_contents
        except ValueError:
            return default

    def __setitem__(self, key: str, value: Any) -> None:
        """Assign the variable."""
        self.target.cell_contents = value

    def __delitem__(self, key: str) -> None:
        """Unbind the variable."""
        del self.target.cell_contents


class Fixed(Owner):
    """A place whose value cannot be assigned, such as an entry of a tuple; the target is the value."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value."""
        return self.target

    def __setitem__(self, key: str, value: Any) -> None:
        """Do nothing, because the value cannot be assigned."""

    def __delitem__(self, key: str) -> None:
        """Do nothing, because the value cannot be deleted."""


def where(owner: Any, key: str) -> tuple[int, str]:
    """The identity of a place: the id of its owner, and its key."""
    return id(owner.target if isinstance(owner, Owner) else owner), key
