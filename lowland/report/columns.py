"""The columns of a comparison: their titles, their cells and their explanations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowland.report.summary import Row
from lowland.report.values import NONE, NumberFormat, number, number_format

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
    """One column of the table of a comparison.

    Args:
        name: The key by which pages style the column.
        title: The heading, with line breaks where the heading may be split.
        cell: Turns a row into the text of the cell.
        help: The explanation of the column; empty where the title suffices.
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
    """The columns that these rows can fill; relative columns need a baseline, the others a measurement."""
    base = next((row.label for row in rows if row.baseline and row.seeds), None)
    style = number_format(rows)
    shown = [Column("method", "method", lambda row: row.contestant, HELP["method"]), Column("seeds", "seeds", _seeds)]
    shown += _scores(rows, style)
    if base is not None:
        title = style.titled(f"gain over\n{base}", style.points)
        shown.append(Column("difference", title, lambda row: _difference(row, style), _help_gain(rows, style)))
    shown += _costs(rows, base)
    if any(row.sharpness is not None for row in rows):
        shown.append(
            Column("sharpness", "m-sharp-\nness", lambda row: number(row.sharpness, "{:#.3g}"), HELP["sharpness"])
        )
    return shown


def _scores(rows: Sequence[Row], style: NumberFormat) -> list[Column]:
    metric = style.metric
    several = any(row.score and row.score.half is not None for row in rows)
    sentences = [HELP["score"] if several else "", "" if metric.higher else "Lower is better."]
    title = style.titled(f"test\n{metric.name}", style.unit)
    if not any(row.last for row in rows):
        return [Column("score", title, lambda row: _score(row, style), " ".join(filter(None, sentences)))]
    sentences.append("At the epoch that was best on the validation part; the end of the training stands beside it.")
    return [
        Column("score", title, lambda row: _score(row, style), " ".join(filter(None, sentences))),
        Column("last", style.titled("at the\nend", style.unit), lambda row: _last(row, style)),
    ]


def _costs(rows: Sequence[Row], base: str | None) -> list[Column]:
    timed = any(row.time is not None for row in rows)
    shown = [
        Column("gradients", "gradients\nper step", _gradients, HELP["gradients"]),
        Column(
            "time",
            "time\nper step",
            _time if timed else _milliseconds,
            f"The median over seeds, relative to {base}'s." if timed else "The median over seeds.",
        ),
    ]
    if longer(rows):
        shown.append(Column("work", "whole\ntraining", _work, HELP["work"]))
    if any(row.memory is not None for row in rows):
        shown.append(Column("memory", "peak\nmemory, MiB", _memory, HELP["memory"]))
    return shown


def legend(rows: Sequence[Row]) -> str:
    """The explanations of the figures and signs in the table, one line per column."""
    explained = [column for column in columns(rows) if column.name in ("score", "difference", "gradients", "work")]
    return "\n".join(f"{column.heading}: {_lower(column.help)}" for column in explained if column.help)


def own_recipe(row: Row) -> str:
    """The recipe fields that differ from the baseline's and that the contestant's name omits: ``lr=0.005``."""
    named = {part.partition("=")[0] for part in row.contestant.partition("@")[2].split(",")}
    return spelled({name: value for name, value in row.recipe.items() if name not in named})


def unsaid_fields(row: Row) -> str:
    """The hyperparameters of the method that the contestant's name omits: ``rho=0.05, geometry=l2``."""
    named = {part.partition("=")[0] for part in re.split("[:,]", row.contestant.partition("@")[0])}
    return spelled({name: value for name, value in row.fields.items() if name not in named})


def spelled(fields: Mapping[str, Any]) -> str:
    """Fields as text: ``rho=0.05, geometry=l2``."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in fields.items())


def value_text(value: Any) -> str:
    """A value of a recipe or a method as text: ``yes``, ``0.05``, ``1,024``."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def longer(rows: Sequence[Row]) -> bool:
    """Whether the contestants trained for different numbers of steps, so that cost per step does not compare."""
    base = next((row for row in rows if row.baseline), None)
    if base is None or not base.steps:
        return False
    return any(row.steps and row.work and not 0.98 < row.steps / base.steps < 1.02 for row in rows)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _help_gain(rows: Sequence[Row], style: NumberFormat) -> str:
    tested = sum(row.p is not None for row in rows)
    corrected = f" after Holm's correction for {tested} comparisons" if tested > 1 else ""
    several = any(row.difference and row.difference.half is not None for row in rows)
    interval = " ± its 95 % t-interval, each by itself" if several else ""
    text = f"Paired by seed{interval}. ▲ better and ▼ worse: p < 0.05{corrected}; ○ open."
    return text if style.metric.higher else f"{text} A gain is positive where the {style.metric.name} is lower."


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)} of {len(row.seeds) + len(row.unfinished)}" if row.unfinished else f"{len(row.seeds)}"


def _score(row: Row, style: NumberFormat) -> str:
    if row.diverged:
        return f"diverged in {len(row.diverged)} of {len(row.seeds)}"
    if row.undefined:
        return f"undefined in {len(row.undefined)} of {len(row.seeds)}"
    if row.score is None:
        return "unfinished" if row.unfinished and not row.seeds else NONE
    return style.interval(row.score)


def _last(row: Row, style: NumberFormat) -> str:
    return NONE if row.last is None else style.interval(row.last)


def _difference(row: Row, style: NumberFormat) -> str:
    return NONE if row.difference is None else f"{style.interval(row.difference, sign=True)} {MARKS[row.effect]}"


def _gradients(row: Row) -> str:
    return NONE if row.gradients is None else f"{row.gradients:.2f} / {number(row.sequential, '{:.2f}')}"


def _time(row: Row) -> str:
    return number(row.time, "{:.2f} ×")


def _milliseconds(row: Row) -> str:
    return number(None if row.seconds is None else 1000 * row.seconds, "{:.3g} ms")


def _work(row: Row) -> str:
    return NONE if row.work is None else f"{row.work:.2f} / {number(row.duration, '{:.2f}')} ×"


def _memory(row: Row) -> str:
    ratio = "" if row.memory_ratio is None else f" ({row.memory_ratio:.2f} ×)"
    size = None if row.memory is None else row.memory / 2**20
    return NONE if size is None else f"{size:,.{1 if size < 100 else 0}f}{ratio}"
