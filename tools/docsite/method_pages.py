"""A page for each method, from its docstring, its plan and the tables of docs/results.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from docsite import quotes
from docsite.figures import steps_figure
from docsite.markup import inline
from docsite.trace import steps_of
from lowland.cli.docstrings import Docstring, parse
from lowland.cli.methods import defaults, gradients, paper
from lowland.methods import METHODS
from lowland.methods.base import Perturbing
from lowland.planner.costs import REQUIRED, STEPS, measure, specimen

SECTIONS = {  # of the docstring, by their headings on the page, in the page's order
    "Use": "When to use it",
    "Avoid": "When not to use it",
}
LATER = {"Invariants": "Invariants", "Differs": "Differences from the paper or its code", "Reference": "Reference"}
IN_PARTS = """lowland.Criterion(
    lambda model, batch: model(batch[0]),
    lambda outputs, batch: torch.nn.functional.cross_entropy(outputs, batch[1], reduction="none"),
)"""  # for a method that needs the outputs
LEGEND = (
    "Blue: a gradient at the weights. Orange: a gradient at displaced weights. Grey: a forward pass alone. A box is as "
    "wide as its part of the batch, and filled as far as the pass differentiates the tensors. On the page of every "
    "method the axis has the length of ten steps of SAM."
)


def pages() -> Iterator[tuple[str, str]]:
    """The path and the Markdown of each page."""
    for key in METHODS:
        yield f"methods/{key}.md", "\n\n".join(page(key)) + "\n"


def page(key: str) -> Iterator[str]:
    """The parts of the page of one method."""
    kind, told = METHODS[key], parse(METHODS[key], inline)
    name = kind.__name__
    yield f"---\ntitle: {key}\ndescription: {parse(kind).title!r}\n---"
    yield f"# {key}: {name} {{ #lowland.{name} data-toc-label='{key}' }}"
    yield told.title
    yield f"`{key}` on the command line, `lowland.{name}` in Python. {_paper(key)}"
    if told.rule:
        yield "## Rule"
        yield from told.rule
    yield "## Cost"
    yield from _cost(key, told)
    for section, heading in SECTIONS.items():
        yield f"## {heading}"
        yield told.sections[section]
    yield from _example(key)
    yield from _fields(key, told)
    yield from _results(key)
    for section, heading in LATER.items():
        if section in told.sections:
            yield f"## {heading}"
            yield told.sections[section]


def _paper(key: str) -> str:
    """The paper in short, with a link to arXiv."""
    short = paper(METHODS[key])
    text, _, number = short.partition(", arXiv ")
    return f"Paper: [{text}](https://arxiv.org/abs/{number})." if number else f"Paper: {text}."


def _cost(key: str, told: Docstring) -> Iterator[str]:
    """The figure of ten steps, the measured costs, and the cost by the method's rule."""
    first, steps = steps_of(key)
    yield steps_figure(key)
    last = first + len(steps) - 1
    yield f"Steps {first} to {last} of {STEPS} in the tiny training that measures costs. {LEGEND}\n{{ .caption }}"
    costs = measure(specimen(key))
    rows = {
        "gradients per step": gradients(costs),
        "of them one after the other": f"{costs.sequential:.2f}",
        "vectors kept between steps, in multiples of the parameters P": f"{costs.resident:.1f}",
        "peak memory beyond plain training, in P": f"{costs.peak:.1f}",
        "all-reduces of P per step under data parallelism": f"{costs.reduces:.2f}",
    }
    method = specimen(key)
    if isinstance(method, Perturbing):
        local = measure(dataclasses.replace(method, ascent_gradient="local")).reduces
        rows['the same with `ascent_gradient="local"`'] = f"{local:.2f}"
    yield "\n".join(["| measured | |", "|---|---:|", *(f"| {what} | {value} |" for what, value in rows.items())])
    yield f"By its rule: {told.sections['Cost']}"


def _call(key: str) -> str:
    """The method as Python makes it, with the fields that have no default."""
    written = {"examples": "len(dataset)"}
    fields = ", ".join(f"{name}={written.get(name, value)}" for name, value in REQUIRED.get(key, {}).items())
    return f"lowland.{METHODS[key].__name__}({fields})"


def _example(key: str) -> Iterator[str]:
    yield "## In code"
    optimizer = specimen_optimizer(key)
    loss = f"loss_fn = {IN_PARTS}\n" if key == "functional-sam" else ""
    engine = f"engine = lowland.Engine({_call(key)}, model, optimizer, loss_fn)"
    yield f"```python\noptimizer = {optimizer}\n{loss}{engine}\n```"
    if key != "plain":
        yield f"```sh\nlowland compare --task digits --methods plain {key} --seeds 5\n```"


def specimen_optimizer(key: str) -> str:
    """The base optimizer of the example."""
    adam = "torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)"
    return adam if key == "adasam" else "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"


def _fields(key: str, told: Docstring) -> Iterator[str]:
    yield "## Fields"
    values = defaults(METHODS[key])
    yield "\n\n".join(f"`{name} = {value}`\n:   {told.fields[name]}" for name, value in values.items())


def _results(key: str) -> Iterator[str]:
    """The rows of this method in docs/results.md, with links to their sections."""
    found = quotes.of_method(key)
    if not found:
        return
    yield "## Measured against plain training"
    shown = (*quotes.SHOWN[1:4], "time per step")
    lines = [f"| {' | '.join(['comparison', *shown])} |", "|---|---:|---:|---:|---:|"]
    for table, row in found:
        titles, values = quotes.cells(table.header.split("\n")[0]), quotes.cells(row)
        where = f"[{table.heading}](../{table.link})" + (f", {table.budget.lower()}" if table.budget else "")
        lines.append(f"| {' | '.join([where, *(values[titles.index(title)] for title in shown)])} |")
    yield "\n".join(lines)
    yield (
        "▲ better and ▼ worse than plain training after the correction for several comparisons; ○ is open. [When SAM "
        "does not help](../when_not.md) says how to read such gains."
    )
