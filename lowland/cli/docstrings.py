"""The docstring of a method, taken apart: what it is, its fields, and its sections."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

# By name: a first line may begin with a word and a colon, too.
_HEADING = re.compile(r"^(Args|Cost|Differs|Invariants|Use|Reference):(?=$| )", re.MULTILINE)
_FIELD = re.compile(r"^    (\w+): ", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([^`]*)`")


@dataclass(frozen=True)
class Docstring:
    """A docstring in Google style, without markup.

    Args:
        title: The first paragraph, on one line.
        rule: The paragraphs before the first section; a line that is indented stands as it is.
        fields: What is said of each argument, on one line.
        sections: The other sections by heading, each on one line.
    """

    title: str
    rule: tuple[str, ...]
    fields: dict[str, str]
    sections: dict[str, str]


def parse(kind: type) -> Docstring:
    """Take a class's docstring apart; an argument that it does not explain itself is looked up in its bases.

    Example:
        >>> from lowland.methods import METHODS
        >>> parse(METHODS["gsam"]).sections["Invariants"].split(";")[0]
        'alpha = 0 is SAM'
    """
    head, sections = _split(kind)
    title, *rule = re.split(r"\n\s*\n", head.strip("\n"))
    fields: dict[str, str] = {}
    for base in kind.__mro__:
        parts = _FIELD.split(_split(base)[1].get("Args", ""))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            if not text.startswith("See :class:"):
                fields.setdefault(name, _plain(text))
    told = {name: _plain(text) for name, text in sections.items() if name != "Args"}
    return Docstring(_plain(title), tuple(_paragraphs(rule)), fields, told)


def _split(kind: type) -> tuple[str, dict[str, str]]:
    """What comes before the first section, and the sections as they are written."""
    head, *parts = _HEADING.split(inspect.cleandoc(kind.__doc__ or ""))
    return head, dict(zip(parts[::2], parts[1::2], strict=True))


def _paragraphs(texts: list[str]) -> list[str]:
    """Each on one line, but literal blocks line by line; the ``::`` before them has done its work."""
    found: list[str] = []
    for text in texts:
        if text.startswith("    "):
            found.append(text)
        elif text.strip() != "::":
            found.append(re.sub("::$", ":", _plain(text)))
    return found


def _plain(text: str) -> str:
    return " ".join(_ROLE.sub(r"\1", text).replace("``", "").split())
