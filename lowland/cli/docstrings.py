"""Parses the docstring of a method into title, rule, fields and sections."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

# Headings are matched by name, because a first line may also begin with a word and a colon.
_HEADING = re.compile(r"^(Args|Cost|Differs|Invariants|Use|Avoid|Reference):(?=$| )", re.MULTILINE)
_FIELD = re.compile(r"^    (\w+): ", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([^`]*)`")


@dataclass(frozen=True)
class Docstring:
    """A docstring in Google style.

    Args:
        title: The first paragraph, on one line.
        rule: The paragraphs between the title and the first section; literal blocks keep their lines.
        fields: The description of each argument, on one line.
        sections: The other sections by heading, each on one line.
    """

    title: str
    rule: tuple[str, ...]
    fields: dict[str, str]
    sections: dict[str, str]


def parse(kind: type, text: Callable[[str], str] | None = None) -> Docstring:
    """Parse a class's docstring; an argument without a description takes that of a base class.

    Args:
        kind: The class.
        text: Converts text outside literal blocks; by default it removes markup and line breaks.

    Example:
        >>> from lowland.methods import METHODS
        >>> parse(METHODS["gsam"]).sections["Invariants"].split(";")[0]
        'alpha = 0 is SAM'
    """
    text = text or _plain
    head, sections = _split(kind)
    title, *rule = re.split(r"\n\s*\n", head.strip("\n"))
    fields: dict[str, str] = {}
    for base in kind.__mro__:
        parts = _FIELD.split(_split(base)[1].get("Args", ""))
        for name, meaning in zip(parts[1::2], parts[2::2], strict=True):
            if not meaning.startswith("See :class:"):
                fields.setdefault(name, text(meaning))
    others = {name: text(section) for name, section in sections.items() if name != "Args"}
    return Docstring(text(title), tuple(_paragraphs(rule, text)), fields, others)


def _split(kind: type) -> tuple[str, dict[str, str]]:
    """The text before the first section, and the raw text of each section."""
    head, *parts = _HEADING.split(inspect.cleandoc(kind.__doc__ or ""))
    return head, dict(zip(parts[::2], parts[1::2], strict=True))


def _paragraphs(parts: list[str], text: Callable[[str], str]) -> list[str]:
    """The paragraphs, each on one line; literal blocks keep their lines, and the ``::`` before them is removed."""
    paragraphs: list[str] = []
    for part in parts:
        if part.startswith("    "):
            paragraphs.append(part)
        elif part.strip() != "::":
            paragraphs.append(re.sub("::$", ":", text(part)))
    return paragraphs


def _plain(text: str) -> str:
    return " ".join(_ROLE.sub(r"\1", text).replace("``", "").split())
