"""The values that a sweep searches for one field: a range ``0.02..0.5:log`` or choices ``32|64|128``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lowland.core.errors import ArgumentError

DOTS, BAR = "..", "|"
DIGITS = 4  # the significant digits of a value, so that what is printed is what was trained


@dataclass(frozen=True, kw_only=True)
class Range:
    """All numbers between two ends, which belong to the range.

    Args:
        low: The lower end.
        high: The upper end, > low.
        integer: Whether the values are integers.
        log: Whether values are spread evenly over the logarithm; then ``low`` must be > 0.
        step: The distance between values; None for all numbers (integers: a distance of 1).
        text: The range as it was written.
    """

    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None
    text: str = ""

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last value as text."""
        return self.spell(self.low), self.spell(self.high)

    def spell(self, value: float) -> str:
        """A value as the text of a field: an integer, or a number of four significant digits within the range."""
        if self.integer:
            return str(round(value))
        if self.step is not None:
            return f"{value:.12g}"
        rounded = float(f"{value:.{DIGITS}g}")
        return f"{rounded:.{DIGITS}g}" if self.low <= rounded <= self.high else _shortest(value)

    def points(self, count: int) -> list[str]:
        """At most ``count`` values from end to end, evenly spread over the range or over its logarithm.

        Args:
            count: The number of points, >= 2. Integers and steps can have fewer.
        """
        shares = [i / (count - 1) for i in range(count)]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        values = [low + share * (high - low) for share in shares]
        values = [math.exp(value) for value in values] if self.log else values
        values[0], values[-1] = self.low, self.high
        if self.step is not None:
            values = [self.low + round((value - self.low) / self.step) * self.step for value in values]
        return list(dict.fromkeys(self.spell(value) for value in values))

    def as_float(self) -> Range:
        """The same range with all numbers between its ends, not only integers."""
        return replace(self, integer=False)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Some values, each as text.

    Args:
        values: The values, at least two and all different.
        text: The choices as they were written.
    """

    values: tuple[str, ...]
    text: str = ""

    @property
    def ends(self) -> tuple[str, ...]:
        """All values, because each of them may break the field's rule."""
        return self.values

    def points(self, count: int) -> list[str]:
        """All values, whatever the count."""
        return list(self.values)


def parse(name: str, text: str) -> Range | Choices | None:
    """The range or the choices of a field's value; None if the text is an ordinary value.

    Args:
        name: The name of the field, for messages.
        text: For example ``0.02..0.5:log``, ``1..8``, ``0.0..1.0:step=0.1`` or ``sgd|adamw``.

    Raises:
        ArgumentError: The text is malformed, or an end breaks its rule.

    Example:
        >>> parse("k", "2..8").spell(5), parse("lr", "0.1|0.2").values, parse("rho", "0.1")
        ('5', ('0.1', '0.2'), None)
    """
    if any(text[place] == BAR for place in bare(text)):
        return _choices(name, text)
    value, *options = text.split(":")
    if DOTS not in value or value.startswith(("'", '"', "(", "[", "{")) or "/" in value:
        return None
    low, high = _ends(name, value)
    made = Range(low=float(low), high=float(high), integer=not {*".eE"} & {*low, *high}, text=text)
    for option in options:
        made = _with_option(name, made, option)
    return _checked(name, made)


def bare(text: str) -> Iterator[int]:
    """The positions of a text's characters that are outside quotes and brackets."""
    depth, quote = 0, ""
    for place, each in enumerate(text):
        if quote:
            quote = "" if each == quote else quote
        elif each in "'\"" and text[place - 1 : place] in ("", "=", "|", "(", "[", "{", " "):
            quote = each
        else:
            depth += (each in "([{") - (each in ")]}")
            if depth <= 0 and each not in ")]}":
                yield place


def split_bare(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that are outside quotes and brackets.

    Example:
        >>> split_bare("(0.9,0.99)|(0.9,0.95)", "|,")
        ['(0.9,0.99)', '(0.9,0.95)']
    """
    cuts = [-1, *(place for place in bare(text) if text[place] in separators), len(text)]
    return [text[first + 1 : second] for first, second in itertools.pairwise(cuts)]


def _choices(name: str, text: str) -> Choices:
    values = split_bare(text, BAR)
    for value in values:
        if not value or any(value[place] in ":=" for place in bare(value)):
            raise ArgumentError(
                f"{name} must have choices that are plain values, such as 32{BAR}64, but one is {value!r} in {text!r}; "
                "write a contestant of its own for each method with fields"
            )
        if DOTS in value and _number(value.partition(DOTS)[0]) is not None:
            raise ArgumentError(f"{name} must be a range or choices, but {text!r} has both; write one of them")
    if len(set(values)) < len(values):
        raise ArgumentError(f"{name} must have choices that differ, but has {text!r}; leave the repeated one out")
    return Choices(values=tuple(values), text=text)


def _ends(name: str, value: str) -> tuple[str, str]:
    """The texts of both ends; ``1...5`` is cut so that both are numbers."""
    for place in range(len(value) - 1):
        low, high = value[:place], value[place + len(DOTS) :]
        if value.startswith(DOTS, place) and _number(low) is not None and _number(high) is not None:
            return low, high
    raise ArgumentError(
        f"{name} must be a range between two numbers, but is {value!r}; write 0.02..0.5, or put a text in quotes"
    )


def _number(text: str) -> float | None:
    """A finite number from its text; None if the text is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and not {*"_ "} & {*text} else None


def _with_option(name: str, made: Range, option: str) -> Range:
    if option == "log":
        return replace(made, log=True)
    key, _, value = option.partition("=")
    step = _number(value)
    if key != "step" or step is None:
        raise ArgumentError(
            f"{name} must be a range with :log or :step=0.1, or without, but has {option!r} in {made.text!r}; write "
            "0.02..0.5:log"
        )
    return replace(made, step=step)


def _checked(name: str, made: Range) -> Range:
    if not made.low < made.high:
        raise ArgumentError(f"{name} must be a range with low < high, but is {made.text!r}; write the lower end first")
    if made.log and made.low <= 0:
        raise ArgumentError(
            f"{name} must be a range above 0 for :log, but is {made.text!r}; choose a lower end such as 0.01, or leave "
            ":log out"
        )
    if made.step is None:
        return made
    if made.log:
        raise ArgumentError(f"{name} must have :log or :step, but {made.text!r} has both; leave one out")
    count = (made.high - made.low) / made.step if made.step > 0 else 0
    if count < 1 - 1e-9 or abs(count - round(count)) > 1e-6 or (made.integer and made.step != round(made.step)):
        raise ArgumentError(
            f"{name} must have a step > 0 that leads from one end to the other, but is {made.text!r}; write 0.0..1.0:"
            "step=0.1"
        )
    return made


def _shortest(value: float) -> str:
    """The shortest text of a number, for an end with more digits than :data:`DIGITS`."""
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
