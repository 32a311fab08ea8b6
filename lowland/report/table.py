"""The comparison as a table: Markdown for documents, rich for the terminal; the page has the same columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowland.core.errors import MissingExtraError
from lowland.report.sentences import percent
from lowland.report.summary import Row

if TYPE_CHECKING:
    from rich.console import RenderableType

NONE = "–"
WIDE = 100  # columns of a terminal that hold every cell on one line
NARROW = 80  # columns below which a row of cells would be cut off
STYLES = {"better": "green", "worse": "red", "open": "", None: ""}
MARKS = {"better": "▲", "worse": "▼", "open": "○", None: ""}
LEGEND = (
    "± is the 95 % t-interval over seeds, each by itself. Differences are paired by seed: ▲ better and ▼ worse where "
    "their t-test has p < 0.05 after Holm's correction for the number of comparisons in the table, ○ open, also where "
    "every seed differs by the same, which a test cannot judge. "
    "Gradients per step: all of them / one after another, where independent ones run side by side."
)


@dataclass(frozen=True)
class Column:
    """One column: a name for styling, a title (a line break where it may be split) and its cell for a row."""

    name: str
    title: str
    cell: Callable[[Row], str]

    @property
    def heading(self) -> str:
        """The title on one line."""
        return self.title.replace("-\n", "").replace("\n", " ")


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns these rows can fill: nothing relative without a baseline, nothing that was not measured."""
    base = next((row.label for row in rows if row.baseline and row.seeds), None)
    timed = any(row.time is not None for row in rows)
    found = [
        Column("method", "method", lambda row: row.method),
        Column("seeds", "seeds", _seeds),
        Column("accuracy", "test\naccuracy, %", _accuracy),
    ]
    if base is not None:
        found.append(Column("difference", f"gain over\n{base}, points", _difference))
    found.append(Column("gradients", "gradients\nper step", _gradients))
    found.append(Column("time", "time\nper step", _time if timed else _milliseconds))
    if any(row.memory is not None for row in rows):
        found.append(Column("memory", "peak\nmemory, MiB", _memory))
    if any(row.sharpness is not None for row in rows):
        found.append(Column("sharpness", "m-sharp-\nness", lambda row: _number(row.sharpness, "{:#.3g}")))
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, with a newline at its end.

    Args:
        rows: what :func:`~lowland.report.summary.summarize` returned.
    """
    shown = columns(rows)
    lines = [
        [column.heading for column in shown],
        ["---" if column.name == "method" else "---:" for column in shown],
        *([_cell(column, row) for column in shown] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(rows: Sequence[Row], width: int = WIDE) -> RenderableType:
    """The table for the terminal. Below 100 columns its cells take two lines, below 80 each method is a block of lines.

    Args:
        rows: what :func:`~lowland.report.summary.summarize` returned.
        width: columns of the terminal, 40 or more.
    """
    try:
        from rich import box
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        raise MissingExtraError("rich", "lab") from None
    if width < NARROW:
        return _blocks(rows, width)
    shown = columns(rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in shown:
        justify, overflow = ("left", "fold") if column.name == "method" else ("right", "ellipsis")
        title = column.title if width >= WIDE else column.title.replace(" ", "\n")
        table.add_column(title, justify=justify, overflow=overflow, no_wrap=column.name != "method")  # type: ignore[arg-type]
    for row in rows:
        cells = [Text(column.cell(row) if width >= WIDE else _two_lines(column.cell(row))) for column in shown]
        cells[0] = Text("\n".join(_wrapped(row.method)), style="bold")
        for column, cell in zip(shown, cells, strict=True):
            if column.name == "difference":
                cell.stylize(STYLES[row.effect])
        table.add_row(*cells)
    return table


def _blocks(rows: Sequence[Row], width: int) -> RenderableType:
    """Every method's name with its figures below, one in a line."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    shown = [column for column in columns(rows) if column.name != "method"]
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
        blocks += [Text("\n".join(_wrapped(row.method, width)), style="bold"), grid]
    return Group(*blocks)


def _cell(column: Column, row: Row) -> str:
    text = column.cell(row)
    return f"`{text.replace('|', chr(92) + '|')}`" if column.name == "method" else text


def _two_lines(text: str) -> str:
    for mark in ("±", "(", "/"):
        text = text.replace(f" {mark}", f"\n{mark}")
    return text


def _wrapped(method: str, width: int = 14) -> list[str]:
    """A method text cut after colons and commas, so that narrow terminals break it where a reader would."""
    spaced = method.replace(":", ": ").replace(",", ", ")
    return [line.replace(" ", "") for line in textwrap.wrap(spaced, width, break_on_hyphens=False)] or [method]


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value).replace("-", "−")


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)} of {len(row.seeds) + len(row.unfinished)}" if row.unfinished else f"{len(row.seeds)}"


def _accuracy(row: Row) -> str:
    if row.diverged:
        return f"diverged in {len(row.diverged)} of {len(row.seeds)}"
    if row.accuracy is None:
        return "unfinished" if row.unfinished and not row.seeds else NONE
    half = "" if row.accuracy.half is None else f" ± {percent(row.accuracy.half)}"
    return f"{percent(row.accuracy.mean)}{half}"


def _difference(row: Row) -> str:
    if row.difference is None:
        return NONE
    half = "" if row.difference.half is None else f" ± {percent(row.difference.half)}"
    return f"{percent(row.difference.mean, sign=True)}{half} {MARKS[row.effect]}"


def _gradients(row: Row) -> str:
    return NONE if row.gradients is None else f"{row.gradients:.2f} / {_number(row.sequential, '{:.2f}')}"


def _time(row: Row) -> str:
    return _number(row.time, "{:.2f} ×")


def _milliseconds(row: Row) -> str:
    return _number(None if row.seconds is None else 1000 * row.seconds, "{:.3g} ms")


def _memory(row: Row) -> str:
    ratio = "" if row.memory_ratio is None else f" ({row.memory_ratio:.2f} ×)"
    size = None if row.memory is None else row.memory / 2**20
    return NONE if size is None else f"{size:,.{1 if size < 100 else 0}f}{ratio}"
