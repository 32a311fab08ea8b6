"""``lowland methods``: list the methods with their costs, or explain one of them."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowland.cli.docstrings import Docstring, parse
from lowland.core.errors import LowlandError
from lowland.methods import GEOMETRIES, METHODS, kind_of, outside, spell
from lowland.methods.base import Method, Perturbing
from lowland.planner.costs import REQUIRED, Costs, measure, specimen

NOTE = (
    "The cheapest methods come first. The costs are measured while a tiny model trains. Gradients per step: all "
    "gradients; of them in turn: those on the critical path, if other devices compute independent gradients at the "
    "same time. fwd: forward passes without a gradient, each of which costs a third of a gradient. of weights: each "
    "gradient weighted by the fraction of tensors that it covers. Memory beyond plain training, in multiples of the "
    "parameters P: kept between steps / peak. All-reduces of P under data parallelism. On other problems adaptive "
    "methods cost more, and random methods vary; late starts halfway here. lowland methods NAME explains one method."
)
WIDE = 100  # terminal width from which the table shows the fields
NARROW = 80  # terminal width from which the table shows papers, memory and all-reduces
PAGE = 100  # the largest width of a page
SECTIONS = {
    "Cost": "Cost, by its rule",
    "Invariants": "Invariants",
    "Use": "When to use it",
    "Avoid": "When not to use it",
    "Differs": "Differences from the paper or its code",
    "Reference": "Reference",
}


@dataclass(kw_only=True)
class Methods:
    """List the methods with their papers and measured costs, the cheapest first; or explain one method.

    Args:
        name: The method to explain: its rule, fields, cost, invariants and use; also your own, such as
            vasso.py:VaSSO or package.module:VaSSO.
    """

    name: tyro.conf.Positional[str | None] = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Print the table, or the page of one method."""
        if self.name is None:
            for name in outside.OUTSIDE.installed():
                kind_of(name)
            with console.status("measuring the cost of each method"):
                shown = table(console.width)
            console.print(shown)
            console.print(NOTE, markup=False, highlight=False)
            return 0
        kind_of(self.name)
        for line in page(self.name, min(console.width, PAGE)):
            console.print(line, soft_wrap=True)
        return 0


def table(width: int) -> Table:
    """The table of methods; below 100 columns without fields, below 80 without papers, memory and all-reduces."""
    rows = Table(box=box.SIMPLE_HEAD, padding=(0, int(width >= WIDE), 0, 0), pad_edge=False, show_edge=False)
    titles = [
        "method",
        "paper",
        "fields",
        "gradients\nper step",
        "of them\nin turn",
        "memory, P\nkept/peak",
        "all-\nreduces",
    ]
    hidden = set() if width >= WIDE else {"fields"} if width >= NARROW else {"fields", "paper", *titles[5:]}
    visible = [title not in hidden for title in titles]
    for title in compress(titles, visible):
        is_text = title in ("method", "paper", "fields")
        rows.add_column(
            title,
            style="bold" if title == "method" else "",
            justify="left" if is_text else "right",
            overflow="fold" if title == "fields" else "ellipsis",
            no_wrap=title != "fields",
        )
    for key, costs in by_cost().items():
        memory = f"{costs.resident:.1f} / {costs.peak:.1f}"
        numbers = [gradients(costs).replace(" (", "\n("), f"{costs.sequential:.2f}", memory, f"{costs.reduces:.2f}"]
        cells = [key, _folded(paper(METHODS[key])), _fields(METHODS[key]), *numbers]
        rows.add_row(*map(Text, compress(cells, visible)))
    for key in METHODS.keys() - by_cost().keys():  # user-defined methods that need arguments
        rows.add_row(*map(Text, compress([key, paper(METHODS[key]), "", *["–"] * 4], visible)))
    return rows


def by_cost() -> dict[str, Costs]:
    """The measured costs of all methods by key, sorted by total gradients, then by sequential gradients."""
    measured = {key: costs for key in METHODS if (costs := _counted(key)) is not None}
    return dict(sorted(measured.items(), key=lambda item: (round(item[1].price, 3), round(item[1].sequential, 3))))


def _counted(key: str) -> Costs | None:
    """The measured costs of a method; None where the tiny training cannot run the method with its defaults."""
    try:
        return measure(specimen(key))
    except (LowlandError, TypeError):
        if METHODS[key].__module__.startswith("lowland."):
            raise
        return None


def gradients(costs: Costs) -> str:
    """Gradients per step as text: their number, forward passes, and the number weighted by the tensors covered.

    Example:
        >>> gradients(measure(specimen("esam")))
        '1.50 +1 fwd (1.1 of weights)'
    """
    forwards = f" +{costs.forwards:.2g} fwd" if costs.forwards > 0.005 else ""
    sparse = f" ({costs.weights:.2g} of weights)" if costs.weights < costs.gradients - 0.005 else ""
    return f"{costs.gradients:.2f}{forwards}{sparse}"


def page(key: str, width: int) -> Iterator[Text]:
    """The lines of the page that explains one method."""
    kind, docstring = METHODS[key], parse(METHODS[key])
    yield Text(f"{key}: {kind.__name__}", style="bold")
    yield Text("")
    yield from _wrapped(docstring.title, width)
    for paragraph in docstring.rule:
        yield Text("")
        yield from _wrapped(paragraph, width)
    yield from _heading("Fields")
    yield from _explained(kind, docstring, width)
    yield from _heading("Measured cost")
    yield from _wrapped(_measured(key), width, "    ")
    for name, heading in SECTIONS.items():
        if name in docstring.sections:
            yield from _heading(heading)
            yield from _wrapped(docstring.sections[name], width, "    ")
    missing = [name for name in SECTIONS if name not in docstring.sections and name != "Differs"]
    if missing:
        yield Text("")
        yield from _wrapped(f"The docstring of {kind.__name__} has no section {', '.join(missing)}.", width)


def paper(kind: type[Method]) -> str:
    """Authors, year and arXiv number, from the docstring's Reference section.

    Example:
        >>> paper(METHODS["looksam"])
        'Liu et al. 2022, arXiv 2203.02714'
    """
    reference = parse(kind).sections.get("Reference", "")
    if not reference:
        return "no reference"
    authors = reference.partition(":")[0].split(", ")
    year = re.search(r"\b(19|20)\d\d\b", reference)
    arxiv = re.search(r"arXiv \d{4}\.\d{4,5}", reference)
    who = authors[0] + (" et al." if len(authors) > 2 else f", {authors[1]}" if len(authors) == 2 else "")
    return ", ".join([f"{who} {year.group() if year else ''}".strip(), *([arxiv.group()] if arxiv else [])])


def _folded(text: str) -> str:
    """A paper in short lines: authors and year, in two lines if they are long, and the arXiv number.

    Example:
        >>> _folded("Oikonomou, Loizou 2025, arXiv 2503.02225").split("\\n")
        ['Oikonomou, Loizou', '2025,', 'arXiv 2503.02225']
    """
    who, comma, number = text.partition(", arXiv")
    lines = who.rsplit(" ", 1) if len(who) > 20 else [who]
    return "\n".join(lines) + (f",\narXiv{number}" if comma else "")


def defaults(kind: type[Method]) -> dict[str, str]:
    """The defaults of a method's fields, spelled as in a method's text."""
    names: dict[Any, str] = {made(): name for name, made in GEOMETRIES.items()}
    given = {f.name: f.default for f in dataclasses.fields(kind) if f.init}
    return {n: spell(v) if isinstance(v, Method) else str(names.get(v, v)) for n, v in given.items()}


def _fields(kind: type[Method]) -> str:
    """The fields on one line, without the usual geometry and the usual ascent gradient."""
    usual = {("geometry", "l2"), ("ascent_gradient", "mean")}
    named = {name: value for name, value in defaults(kind).items() if (name, value) not in usual}
    return ", ".join(f"{name}={value}" for name, value in named.items())


def _explained(kind: type[Method], docstring: Docstring, width: int) -> Iterator[Text]:
    """The fields of a method with their defaults and explanations."""
    names = {name: f"{name} = {value}" for name, value in defaults(kind).items()}
    indent = 4 + max(map(len, names.values()), default=0) + 2
    for name, text in names.items():
        first, *rest = textwrap.wrap(docstring.fields.get(name, "not explained"), width - indent)
        yield Text.assemble("    ", (text, "bold"), " " * (indent - 4 - len(text)), first)
        yield from (Text(" " * indent + line) for line in rest)


def _measured(key: str) -> str:
    """The paragraph about the measured cost of a method."""
    costs, required = _counted(key), REQUIRED.get(key, {})
    if costs is None:
        return "Not measured, because the method needs fields that the tiny training cannot fill."
    with_required = f", with {', '.join(f'{name}={value}' for name, value in required.items())}" if required else ""
    return (
        f"{gradients(costs)} gradients per step in total, {costs.sequential:.2f} one after another on the critical "
        f"path; {costs.resident:.1f} P of memory kept between steps, at most {costs.peak:.1f} P beyond plain "
        f"training; {costs.reduces:.2f} all-reduces of P under data parallelism{_local_reduces(key)}. Measured while a "
        f"tiny model trained{with_required}; P is the size of the parameters."
    )


def _local_reduces(key: str) -> str:
    """The all-reduces with a local ascent gradient, as text; empty for a method that has none."""
    method = specimen(key)
    if not isinstance(method, Perturbing):
        return ""
    return f", {measure(dataclasses.replace(method, ascent_gradient='local')).reduces:.2f} with ascent_gradient=local"


def _heading(text: str) -> list[Text]:
    return [Text(""), Text(f"{text}:", style="bold")]


def _wrapped(text: str, width: int, indent: str = "") -> list[Text]:
    """A paragraph as wrapped lines; a literal block keeps its line breaks and indents continuations."""
    if text.startswith("    "):
        wrap = textwrap.TextWrapper(width, subsequent_indent=" " * 12)
        return [Text(line) for paragraph_line in text.split("\n") for line in wrap.wrap(paragraph_line)]
    return [Text(line) for line in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)]
