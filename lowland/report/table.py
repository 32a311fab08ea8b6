"""The comparison as a table: Markdown for documents, rich for the terminal; the page has the same columns."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core.errors import MissingExtraError
from lowland.report.summary import Row
from lowland.report.values import NONE, Form, form, number

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDE = 100  # columns of a terminal that hold every cell on one line
NARROW = 80  # columns below which a row of cells would be cut off
STYLES = {"better": "green", "worse": "red", "open": "", None: ""}
MARKS = {"better": "▲", "worse": "▼", "open": "○", None: ""}

HELP = {
    "method": (
        "Below its name, the hyperparameters that the name does not say (rho is the length of the perturbation), and "
        "what its recipe has different."
    ),
    "score": "Mean over seeds ± its 95 % t-interval.",
    "gradients": "All of them / one after another, where independent ones run side by side.",
    "work": "Gradients / seconds of all steps together, relative to the baseline's.",
    "memory": "The most that one step holds at once: weights, gradients, activations and what the method keeps.",
    "sharpness": (
        "How much the training loss rises, on average, when the weights take a short step along the gradient of a "
        "micro-batch. The lower, the flatter; it says nothing about the test set by itself."
    ),
}


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: For styling.
        title: Its heading, with a line break where it may be split.
        cell: Its text for a row.
        help: What it holds, in a line for readers who see it for the first time; empty where the title says it.
    """

    name: str
    title: str
    cell: Callable[[Row], str]
    help: str = ""

    @property
    def heading(self) -> str:
        """The title on one line."""
        return self.title.replace("-\n", "").replace("\n", " ")


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns these rows can fill: nothing relative without a baseline, nothing that was not measured."""
    base = next((row.label for row in rows if row.baseline and row.seeds), None)
    style = form(rows)
    found = [Column("method", "method", lambda row: row.contestant, HELP["method"]), Column("seeds", "seeds", _seeds)]
    found += _scores(rows, style)
    if base is not None:
        title = style.titled(f"gain over\n{base}", style.points)
        found.append(Column("difference", title, lambda row: _difference(row, style), _help_gain(rows, style)))
    found += _costs(rows, base)
    if any(row.sharpness is not None for row in rows):
        found.append(
            Column("sharpness", "m-sharp-\nness", lambda row: number(row.sharpness, "{:#.3g}"), HELP["sharpness"])
        )
    return found


def _scores(rows: Sequence[Row], style: Form) -> list[Column]:
    metric = style.metric
    several = any(row.score and row.score.half is not None for row in rows)
    told = [HELP["score"] if several else "", "" if metric.higher else "Lower is better."]
    title = style.titled(f"test\n{metric.name}", style.unit)
    if not any(row.last for row in rows):
        return [Column("score", title, lambda row: _score(row, style), " ".join(filter(None, told)))]
    told.append("At the epoch that was best on the validation part; the end of the training stands beside it.")
    return [
        Column("score", title, lambda row: _score(row, style), " ".join(filter(None, told))),
        Column("last", style.titled("at the\nend", style.unit), lambda row: _last(row, style)),
    ]


def _costs(rows: Sequence[Row], base: str | None) -> list[Column]:
    timed = any(row.time is not None for row in rows)
    found = [
        Column("gradients", "gradients\nper step", _gradients, HELP["gradients"]),
        Column(
            "time",
            "time\nper step",
            _time if timed else _milliseconds,
            f"The median over seeds, relative to {base}'s." if timed else "The median over seeds.",
        ),
    ]
    if longer(rows):
        found.append(Column("work", "whole\ntraining", _work, HELP["work"]))
    if any(row.memory is not None for row in rows):
        found.append(Column("memory", "peak\nmemory, MiB", _memory, HELP["memory"]))
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
        cells[0] = Text(_named(row), style="bold")
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
        blocks += [Text(_named(row, width), style="bold"), grid]
    return Group(*blocks)


def legend(rows: Sequence[Row]) -> str:
    """What the signs of the table mean."""
    shown = {column.name: column.help for column in columns(rows)}
    return " ".join(filter(None, [shown["score"], shown.get("difference"), f"Gradients: {_lower(shown['gradients'])}"]))


def own_recipe(row: Row) -> str:
    """What differs in a row's recipe from the baseline's and is not in its name: ``lr=0.005, optimizer=amsgrad``."""
    named = {part.partition("=")[0] for part in row.contestant.partition("@")[2].split(",")}
    return spelled({name: value for name, value in row.recipe.items() if name not in named})


def unsaid_fields(row: Row) -> str:
    """The hyperparameters of a row's method that its name does not say: ``rho=0.05, geometry=l2``."""
    named = {part.partition("=")[0] for part in re.split("[:,]", row.contestant.partition("@")[0])}
    return spelled({name: value for name, value in row.fields.items() if name not in named})


def spelled(fields: Mapping[str, Any]) -> str:
    """Fields as text: ``rho=0.05, geometry=l2``."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in fields.items())


def value_text(value: Any) -> str:
    """A value of a recipe or a method as people write it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def longer(rows: Sequence[Row]) -> bool:
    """Whether contestants trained for different numbers of steps, so that the cost of a step is not the whole cost."""
    base = next((row for row in rows if row.baseline), None)
    if base is None or not base.steps:
        return False
    return any(row.steps and row.work and not 0.98 < row.steps / base.steps < 1.02 for row in rows)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _help_gain(rows: Sequence[Row], style: Form) -> str:
    tested = sum(row.p is not None for row in rows)
    corrected = f" after Holm's correction for {tested} comparisons" if tested > 1 else ""
    several = any(row.difference and row.difference.half is not None for row in rows)
    interval = " ± its 95 % t-interval, each by itself" if several else ""
    said = f"Paired by seed{interval}. ▲ better and ▼ worse: p < 0.05{corrected}; ○ open."
    return said if style.metric.higher else f"{said} A gain is positive where the {style.metric.name} is lower."


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


def _named(row: Row, width: int = 14) -> str:
    """A contestant's name and its own recipe, cut where a reader would."""
    own = own_recipe(row)
    return "\n".join(_wrapped(row.contestant, width) + (textwrap.wrap(own, max(width, 14)) if own else []))


def _wrapped(method: str, width: int) -> list[str]:
    """A method text cut after colons and commas, so that narrow terminals break it where a reader would."""
    spaced = method.replace(":", ": ").replace(",", ", ").replace("@", " @")
    return [line.replace(" ", "") for line in textwrap.wrap(spaced, width, break_on_hyphens=False)] or [method]


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)} of {len(row.seeds) + len(row.unfinished)}" if row.unfinished else f"{len(row.seeds)}"


def _score(row: Row, style: Form) -> str:
    if row.diverged:
        return f"diverged in {len(row.diverged)} of {len(row.seeds)}"
    if row.score is None:
        return "unfinished" if row.unfinished and not row.seeds else NONE
    return style.interval(row.score)


def _last(row: Row, style: Form) -> str:
    return NONE if row.last is None else style.interval(row.last)


def _difference(row: Row, style: Form) -> str:
    return NONE if row.difference is None else f"{style.interval(row.difference, sign=True)} {MARKS[row.effect]}"


def _gradients(row: Row) -> str:
    return NONE if row.gradients is None else f"{row.gradients:.2f} / {number(row.sequential, '{:.2f}')}"


def _time(row: Row) -> str:
    return number(row.time, "{:.2f} ×")


def _milliseconds(row: Row) -> str:
    return number(None if row.seconds is None else 1000 * row.seconds, "{:.3g} ms")


def _work(row: Row) -> str:
    return NONE if row.work is None else f"{row.work:.2f} × / {number(row.duration, '{:.2f} ×')}"


def _memory(row: Row) -> str:
    ratio = "" if row.memory_ratio is None else f" ({row.memory_ratio:.2f} ×)"
    size = None if row.memory is None else row.memory / 2**20
    return NONE if size is None else f"{size:,.{1 if size < 100 else 0}f}{ratio}"
