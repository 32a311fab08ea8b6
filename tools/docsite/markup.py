"""Docstrings, which have reStructuredText's roles and literal blocks, as Markdown."""

from __future__ import annotations

import re

import lowland

# What stands in double backticks stays as it is; a role names what it refers to.
_CODE = re.compile(r"``(.+?)``|:(\w+):`(~?)([^`]*)`", re.DOTALL)
_SECTION = re.compile(r"^(Cost|Differs|Invariants|Use|Avoid|Reference): ", re.MULTILINE)
_LITERAL = re.compile(r"^( *)(.*?)::\n\n((?:\1    .*\n|\n)+)", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


def inline(text: str) -> str:
    """Text on one line, with code, links to the reference, and Markdown's own signs escaped.

    Example:
        >>> inline("a * b, see :class:`SAM` and ``w < 1``")
        'a \\\\* b, see [`SAM`][lowland.SAM] and `w < 1`'
    """
    return " ".join(_inline(text).split())


def block(text: str) -> str:
    """A whole docstring, for mkdocstrings, which reads Google's sections and Markdown."""
    text = _LITERAL.sub(_fenced, _EXAMPLE.sub("Examples:", text) + "\n")
    parts = re.split(r"(^ *```.*?^ *```$|^ *>>> .*$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_SECTION.sub(r"**\1.** ", _inline(part)) for part in parts[::2]]
    return "".join(parts).rstrip()


def _inline(text: str) -> str:
    pieces, end = [], 0
    for match in _CODE.finditer(text):
        pieces += [_escaped(text[end : match.start()]), _code(match)]
        end = match.end()
    return "".join([*pieces, _escaped(text[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"(?<=\w)\*(?=\w)", r"\*", text).replace("<", "&lt;")


def _code(match: re.Match[str]) -> str:
    if match[1] is not None:
        return f"`{match[1]}`"
    name = match[4].removeprefix("lowland.")
    exported = name.split(".")[0] if name.split(".")[0] in lowland.__all__ else name.rpartition(".")[2]
    owner = getattr(lowland, exported, None)
    member = name.rpartition(".")[2] if match[2] == "meth" and "." in name else ""
    shown = name.rpartition(".")[2] if match[3] else name
    if exported not in lowland.__all__ or (member and not hasattr(owner, member)):
        return f"`{shown}`"
    return f"[`{shown}`][lowland.{exported}{f'.{member}' if member else ''}]"


def _fenced(match: re.Match[str]) -> str:
    """A literal block as a fenced one; the colon before it stays where a sentence ends with it."""
    margin, before, body = match[1], match[2], match[3]
    lines = [line.removeprefix(margin + "    ") for line in body.rstrip("\n").split("\n")]
    try:
        language = "python" if compile("\n".join(lines), "block", "exec") and "lowland" in body else "text"
    except SyntaxError:
        language = "text"
    opening = f"{margin}{before}:\n\n" if before.strip() else ""
    fenced = "\n".join(f"{margin}{line}".rstrip() for line in lines)
    return f"{opening}{margin}```{language}\n{fenced}\n{margin}```\n\n"
