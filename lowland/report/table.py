"""The comparison as a table: Markdown for documents, rich for the terminal; the page has the same columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowland.core.errors import MissingExtraError
from lowland.report.columns import Column, columns, own_recipe
from lowland.report.summary import Row

if TYPE_CHECKING:
    from rich.console import RenderableType

NARROW = 80  # in a terminal with fewer columns, each contestant is a block of lines
STYLES = {"better": "green", "worse": "red", "open": "", None: ""}


def markdown(rows: Sequence[Row], shown: Sequence[Column] | None = None) -> str:
    """The table in Markdown, with a newline at its end.

    Args:
        rows: The rows from :func:`~lowland.report.summary.summarize`.
        shown: The columns; by default those of the comparison.
    """
    shown = columns(rows) if shown is None else shown
    lines = [
        [column.heading for column in shown],
        ["---" if column.name == "method" else "---:" for column in shown],
        *([_cell(column, row) for column in shown] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(rows: Sequence[Row], width: int = 100, shown: Sequence[Column] | None = None) -> RenderableType:
    """The table for a terminal: one line per row if the terminal is wide enough, else two lines, else a block of lines.

    Args:
        rows: The rows from :func:`~lowland.report.summary.summarize`.
        width: The columns of the terminal, 40 or more.
        shown: The columns of the table; by default those of the comparison.
    """
    try:
        from rich import box
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        raise MissingExtraError("rich", "lab") from None
    shown = columns(rows) if shown is None else shown
    split = next((split for split in (False, True) if _needed(rows, shown, split=split) <= width), None)
    if width < NARROW or split is None:
        return _blocks(rows, width, shown)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in shown:
        justify, overflow = ("left", "fold") if column.name == "method" else ("right", "ellipsis")
        title = _title(column, split=split)
        table.add_column(title, justify=justify, overflow=overflow, no_wrap=column.name != "method")  # type: ignore[arg-type]
    for row in rows:
        cells = [Text(_text(column, row, split=split)) for column in shown]
        for column, cell in zip(shown, cells, strict=True):
            if column.name == "method":
                cell.stylize("bold")
            elif column.name == "difference":
                cell.stylize(STYLES[row.effect])
        table.add_row(*cells)
    return table


def _needed(rows: Sequence[Row], shown: Sequence[Column], *, split: bool) -> int:
    """The number of terminal columns that the table needs, with two spaces between cells and one on each side."""
    texts = ([_title(column, split=split), *(_text(column, row, split=split) for row in rows)] for column in shown)
    return sum(2 + max(len(line) for text in column for line in text.split("\n")) for column in texts)


def _title(column: Column, *, split: bool) -> str:
    return column.title.replace(" ", "\n") if split else column.title


def _text(column: Column, row: Row, *, split: bool) -> str:
    if column.name == "method":
        return _named(row, 12 if split else 14)
    return _two_lines(column.cell(row)) if split else column.cell(row)


def _blocks(rows: Sequence[Row], width: int, columns: Sequence[Column]) -> RenderableType:
    """A block for each contestant: its name, then one line per figure."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    shown = [column for column in columns if column.name != "method"]
    longest = max(len(column.cell(row)) for column in shown for row in rows)
    headings = min(max(len(column.heading) for column in shown) + 2, max(12, width - longest - 2))
    blocks: list[RenderableType] = []
    for row in rows:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=headings)
        grid.add_column(width=longest, justify="right", overflow="fold")
        for column in shown:
            style = STYLES[row.effect] if column.name == "difference" else ""
            grid.add_row(Padding(column.heading, (0, 0, 0, 2)), Text(column.cell(row), style=style))
        blocks += [Text(_named(row, width), style="bold"), grid]
    return Group(*blocks)


def _cell(column: Column, row: Row) -> str:
    text = column.cell(row)
    if column.name != "method":
        return text
    own = own_recipe(row)
    return f"`{text.replace('|', chr(92) + '|')}`" + (f" ({own.replace('|', chr(92) + '|')})" if own else "")


def _two_lines(text: str) -> str:
    for mark in ("±", "(", "/"):
        text = text.replace(f" {mark}", f"\n{mark}")
    return text


def _named(row: Row, width: int) -> str:
    """A contestant's name and its own recipe in lines, which break after colons and commas and before @."""
    spaced = row.contestant.replace(":", ": ").replace(",", ", ").replace("@", " @")
    name = [line.replace(" ", "") for line in _wrapped(spaced, width)] or [row.contestant]
    return "\n".join([*name, *_wrapped(own_recipe(row), width)])


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text; they are as wide as ``width``, or as the longest word of up to 30 characters."""
    longest = max(map(len, text.split()), default=0)
    return textwrap.wrap(text, max(width, min(longest, 30)), break_on_hyphens=False)
