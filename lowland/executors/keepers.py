"""What keeps a tensor where no dictionary does: variables of closures, slots, classes, and tuples."""

from __future__ import annotations

import types
from typing import Any

ABSENT = object()  # what is in a place that is not there yet


class Owner:
    """Reads and writes one thing as a dictionary would.

    Args:
        target: What keeps the tensor, by whose identity two owners are the same.
    """

    def __init__(self, target: Any) -> None:
        self.target = target

    def get(self, key: str, default: Any = None) -> Any:
        """What is there now."""
        return getattr(self.target, key, default)

    def __getitem__(self, key: str) -> Any:
        """The same."""
        return self.get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        """Put something else there."""
        setattr(self.target, key, value)

    def __delitem__(self, key: str) -> None:
        """Take it away."""
        delattr(self.target, key)


class Slots(Owner):
    """An object with slots."""


class Kind(Owner):
    """A class."""

    def get(self, key: str, default: Any = None) -> Any:
        """What the class itself has, no method of access called."""
        return vars(self.target).get(key, default)


class Cell(Owner):
    """A variable of a closure."""

    target: types.CellType

    def get(self, key: str, default: Any = None) -> Any:
        """What the variable is bound to."""
        try:
            return self.target.cell_contents
        except ValueError:
            return default

    def __setitem__(self, key: str, value: Any) -> None:
        """Bind the variable to something else."""
        self.target.cell_contents = value

    def __delitem__(self, key: str) -> None:
        """Unbind it."""
        del self.target.cell_contents


class Fixed(Owner):
    """A place that always holds the same, such as an entry of a tuple."""

    def get(self, key: str, default: Any = None) -> Any:
        """What is there."""
        return self.target

    def __setitem__(self, key: str, value: Any) -> None:
        """It cannot be bound anew."""

    def __delitem__(self, key: str) -> None:
        """Nor can it be taken away."""


def where(owner: Any, key: str) -> tuple[int, str]:
    """By what a place is known."""
    return id(owner.target if isinstance(owner, Owner) else owner), key
