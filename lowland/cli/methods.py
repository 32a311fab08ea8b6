"""``lowland methods``: what there is, and what it costs."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from lowland.errors import UnknownNameError
from lowland.lab.costs import Costs, measure
from lowland.method import Method
from lowland.methods import GEOMETRIES, METHODS

NOTE = (
    "Costs are counted while a tiny model trains, not typed in: gradients per step in total, and one after another "
    "with devices to spare; memory in multiples of the parameters P, kept from step to step and at most beyond "
    "plain training; all-reduces of P per step under data parallelism. Adaptive methods spend more on other problems."
)


@dataclass(kw_only=True)
class Methods:
    """List the methods with their papers, fields and measured costs; or show one of them.

    Args:
        name: The method to show in full.
    """

    name: tyro.conf.Positional[str | None] = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Print the table, or the page of one method."""
        if self.name is None:
            console.print(table())
            console.print(NOTE, markup=False, highlight=False)
            return 0
        if self.name not in METHODS:
            raise UnknownNameError("method", self.name, METHODS)
        kind = METHODS[self.name]
        costs = _cells(measure(kind()))
        lines = [
            f"{self.name}: {kind.__name__}({_fields(kind)})",
            inspect.getdoc(kind) or "",
            f"Measured: {costs[0]} gradients per step (in total / one after another); {costs[1]} P of memory "
            f"(kept / at most beyond plain); {costs[2]} all-reduces of P.",
        ]
        console.print("\n\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        return 0


def table() -> Table:
    """Every method in a row."""
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    found.add_column("method", style="bold", no_wrap=True)
    found.add_column("paper", overflow="fold")
    found.add_column("fields", overflow="fold")
    for title in ("gradients\ntotal / seq.", "memory, P\nkept / peak", "all-\nreduces"):
        found.add_column(title, justify="right", no_wrap=True)
    for key, kind in METHODS.items():
        found.add_row(key, paper(kind), _fields(kind), *_cells(measure(kind())))
    return found


def paper(kind: type[Method]) -> str:
    """Who, when and where, from the docstring's Reference.

    Example:
        >>> paper(METHODS["looksam"])
        'Liu et al. 2022, arXiv 2203.02714'
    """
    _, _, reference = " ".join((inspect.getdoc(kind) or "").split()).rpartition("Reference: ")
    authors = reference.partition(":")[0].split(", ")
    year = re.search(r"\b(19|20)\d\d\b", reference)
    arxiv = re.search(r"arXiv \d{4}\.\d{4,5}", reference)
    who = authors[0] + (" et al." if len(authors) > 2 else f", {authors[1]}" if len(authors) == 2 else "")
    return ", ".join([f"{who} {year.group() if year else ''}".strip(), *([arxiv.group()] if arxiv else [])])


def _fields(kind: type[Method]) -> str:
    names: dict[Any, str] = {kind: name for name, kind in GEOMETRIES.items()}
    fields = dataclasses.fields(kind)
    return ", ".join(f"{f.name}={names.get(type(f.default), f.default)}" for f in fields)


def _cells(costs: Costs) -> list[str]:
    return [
        f"{costs.gradients:.2f} / {costs.sequential:.2f}",
        f"{costs.resident:.1f} / {costs.peak:.1f}",
        f"{costs.reduces:.2f}",
    ]
