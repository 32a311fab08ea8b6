"""Argument checks whose messages name the argument, the rule, the value and the remedy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lowland.core.errors import ArgumentError


def at_least(name: str, value: Any, bound: float, remedy: str) -> None:
    """Refuse a ``value`` that is no finite number >= ``bound``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not bound <= value < math.inf:
        raise ArgumentError(f"{name} must be a number >= {bound}, but is {value!r}; {remedy}")


def integer(name: str, value: Any, bound: int, remedy: str) -> None:
    """Refuse a ``value`` that is no integer >= ``bound``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < bound:
        raise ArgumentError(f"{name} must be an integer >= {bound}, but is {value!r}; {remedy}")


def phase(name: str, value: Any, bound: int, remedy: str) -> None:
    """Refuse a ``value`` that is neither steps, an integer >= ``bound``, nor a fraction of the training, in (0, 1)."""
    if isinstance(value, bool) or not (
        (isinstance(value, int) and value >= bound) or (isinstance(value, float) and 0 < value < 1)
    ):
        raise ArgumentError(
            f"{name} must be an integer >= {bound}, in steps, or a fraction of the training in (0, 1), but is "
            f"{value!r}; {remedy}"
        )


def within(name: str, value: Any, low: float, high: float, remedy: str) -> None:
    """Refuse a ``value`` that is no number in [``low``, ``high``]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ArgumentError(f"{name} must be in [{low}, {high}], but is {value!r}; {remedy}")


def share(name: str, value: Any, one: str, zero: str) -> None:
    """Refuse a ``value`` that is no fraction in (0, 1]; ``one`` and ``zero`` are the remedies for 1 and for 0."""
    within(name, value, 0, 1, one)
    if value == 0:
        raise ArgumentError(f"{name} must be > 0, but is {value!r}; {zero}")


def one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse a ``value`` that is none of ``choices``."""
    options = list(choices)
    if value not in options:
        listed = ", ".join(repr(o) for o in options)
        raise ArgumentError(f"{name} must be one of {listed}, but is {value!r}; choose one of these")


def fraction(name: str, value: Any) -> None:
    """Refuse what is no number in [0, 1), where 0 means none.

    Raises:
        ArgumentError: It is not.

    Example:
        >>> fraction("dropout", 0.1)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ArgumentError(f"{name} must be in [0, 1), but is {value!r}; 0 switches it off")


def call_error(function: Callable[..., Any], count: int) -> str | None:
    """Why a function cannot be called with ``count`` positional arguments: its signature, and Python's reason.

    Returns:
        None if it can be called so, or if Python does not know its signature, as of built-in functions.
    """
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        return f"{signature} cannot be called so ({error})"
    return None
