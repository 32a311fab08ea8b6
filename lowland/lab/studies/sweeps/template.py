"""A task or a contestant as text with ranges in the places of values: ``sampa:rho=0.02..0.5:log@lr=0.1|0.2``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lowland.core.errors import ArgumentError
from lowland.core.outside import split
from lowland.lab import names
from lowland.lab.recipe import Recipe
from lowland.lab.studies.contestants import AT, Contestant
from lowland.lab.studies.sweeps.ranges import BAR, DOTS, Choices, Range, bare, parse, split_bare
from lowland.methods import METHODS
from lowland.methods.text import kind_of

_RANGE = re.compile(r"(?P<head>(?:.*[:=])?)(?P<name>\w+)=(?P<value>[^=:]*\.\.[^=:]*(?::.*)?)")
_CHOICES = re.compile(r"(?P<head>(?:.*[:=])?)(?P<name>\w+)=(?P<value>[^=:|]*\|.*)")
_INNER = re.compile(r"(?<![\w])inner=")


@dataclass(frozen=True)
class Parameter:
    """A field that a sweep searches.

    Args:
        name: Its name, unique within a contestant: ``rho``; ``inner.rho`` of an inner method; ``recipe.lr`` where the
            method has a field lr, too; ``task.noise``.
        values: The range or the choices.
        start: The position in the text where its value begins.
        end: The position where its value ends.
        place: What the field belongs to: ``method``, ``recipe`` or ``task``.
    """

    name: str
    values: Range | Choices
    start: int
    end: int
    place: str


@dataclass(frozen=True)
class Template:
    """A text with ranges; as a string, the text as it was written.

    Args:
        text: The text.
        parameters: The fields with ranges, in order.
    """

    text: str
    parameters: tuple[Parameter, ...]

    @classmethod
    def contestant(cls, text: str) -> Template:
        """Parse a contestant, ``method:field=range@recipe field=range``.

        Raises:
            ArgumentError: The text or a range is malformed.
        """
        if not isinstance(text, str):
            raise ArgumentError(
                f'methods must be texts with ranges, such as "sam:rho=0.02..0.5:log", but one is {text!r}; write its '
                "text, for your own method file.py:Name:field=range"
            )
        parameters = _parameters(text)
        if not parameters:
            return cls(text, ())
        drawn = cls(text, tuple(parameters))
        sample = drawn.fill({each.name: each.values.ends[0] for each in parameters})
        method = Contestant.parse(sample).method
        own = str(method) != sample  # some fields after @ belong to the recipe
        at = text.rindex(AT) if own else len(text)
        return cls(text, tuple(_named(text, parameters, at)))

    @classmethod
    def task(cls, text: str) -> Template:
        """Parse a task, ``task:field=range``.

        Raises:
            ArgumentError: The text or a range is malformed.
        """
        name = split(text, [*names.tasks(), *names.loaded])[0]
        parameters = [
            replace(each, name=f"task.{each.name}", place="task", values=_typed(each, names.kind_of(name)))
            for each in _parameters(text)
        ]
        _check_names(text, parameters)
        return cls(text, tuple(parameters))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with these values, by the names of the parameters, in the places of the ranges."""
        parts, end = [], 0
        for each in self.parameters:
            parts += [self.text[end : each.start], values[each.name]]
            end = each.end
        return "".join([*parts, self.text[end:]])

    def __str__(self) -> str:
        return self.text


def _parameters(text: str) -> list[Parameter]:
    """The fields with ranges, still with the names of the fields alone."""
    parameters, start = [], 0
    for part in split_bare(text, f",{AT}"):
        match = _match(part)
        if match is not None:
            values = parse(match["name"], match["value"])
            place = (start + match.start("value"), start + match.end("value"))
            if values is not None:
                parameters.append(Parameter(match["name"], values, *place, "method"))
        start += len(part) + 1
    # Fields of an inner method may have the names of outer fields.
    depths = [len(_INNER.findall(text[: each.start])) - (each.name == "inner") for each in parameters]
    return [replace(each, name="inner." * depth + each.name) for each, depth in zip(parameters, depths, strict=True)]


def _match(part: str) -> re.Match[str] | None:
    """The field of a part whose value has dots or bars; None for an ordinary field."""
    if any(part[place] == BAR for place in bare(part)):
        match = _CHOICES.fullmatch(part)
        if match is None:
            raise ArgumentError(
                f"choices must be written name=x{BAR}y, but one is {part!r}; write each method as a contestant"
            )
        return match
    return _RANGE.fullmatch(part) if DOTS in part else None


def _named(text: str, parameters: list[Parameter], at: int) -> list[Parameter]:
    """The parameters of a contestant with places, unique names, and the types of their fields."""
    methods = [*_INNER.split(text[:at])]  # from the outermost to the innermost
    named = []
    for each in parameters:
        field = each.name.rpartition(".")[2]
        if each.start > at:
            taken = field in {other.name for other in parameters if other.start < at}
            each = replace(each, name=f"recipe.{field}" if taken else field, place="recipe")
            named.append(replace(each, values=_typed(each, Recipe)))
        else:
            key = split(methods[each.name.count("inner.")], METHODS)[0]
            named.append(replace(each, values=_typed(each, None if _is_range(key) else kind_of(key))))
    _check_names(text, named)
    return named


def _is_range(key: str) -> bool:
    """Whether the name of an inner method is itself searched."""
    return BAR in key


def _check_names(text: str, parameters: list[Parameter]) -> None:
    listed = [each.name for each in parameters]
    doubled = next((name for name in listed if listed.count(name) > 1), None)
    if doubled is not None:
        raise ArgumentError(f"a field must have one range, but {doubled} has two in {text!r}; leave one out")


def _typed(parameter: Parameter, kind: Any) -> Range | Choices:
    """The values of a field; those of a field whose default is a float are no integers, also in ``0..1``."""
    values = parameter.values
    if isinstance(values, Choices) or not values.integer or kind is None:
        return values
    field = next((f for f in dataclasses.fields(kind) if f.name == parameter.name.rpartition(".")[2]), None)
    is_float = field is not None and isinstance(field.default, float) and "int" not in str(field.type)
    return values.as_float() if is_float else values
