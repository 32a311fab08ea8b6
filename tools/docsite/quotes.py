"""Tables of docs/results.md, of which other pages quote rows. The figures are typed there and nowhere else."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown.extensions.toc import slugify

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results.md"
SHOWN = ("method", "test accuracy, %", "gain over plain, points", "gradients per step", "m-sharpness")
# In a page: <!-- quote: The whole family, on wrong labels | Equal steps | plain sam wsam -->
QUOTE = re.compile(r"^<!-- quote: ([^|]+) \| ([^|]*)\| ([\w -]+) -->$", re.MULTILINE)


class Table(NamedTuple):
    """A table of methods.

    Args:
        heading: The heading of its section.
        budget: What the paragraph above it begins with, such as "Equal steps"; empty if it begins with something else.
        header: Its first two lines.
        rows: Its rows by the method's key.
    """

    heading: str
    budget: str
    header: str
    rows: dict[str, str]

    @property
    def link(self) -> str:
        """A link to the section, relative to the root of the documentation."""
        return f"results.md#{slugify(self.heading, '-')}"


@cache
def tables() -> tuple[Table, ...]:
    """All tables of comparisons, whose rows are methods, in the page's order."""
    found, heading, budget, lines = [], "", "", RESULTS.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("## ", "### ")):
            heading, budget = line.lstrip("# "), ""
        elif match := re.match(r"Equal (steps|gradients)(, on [\w ]+)?", line):
            budget = match[0]
        elif line.startswith("| method |") and set(SHOWN) <= set(cells(line)):
            rows = {}
            for row in lines[number + 2 :]:
                if not row.startswith("| `"):
                    break
                rows[row.split("`")[1]] = row
            found.append(Table(heading, budget, "\n".join(lines[number : number + 2]), rows))
    return tuple(found)


def quoted(text: str) -> str:
    """A page in which each quotation is replaced by the rows that it names, in the columns that matter there."""

    def rows(match: re.Match[str]) -> str:
        heading, budget, keys = (part.strip() for part in match.groups())
        (table, *_) = [t for t in tables() if t.heading == heading and t.budget == budget and keys.split()[0] in t.rows]
        titles = cells(table.header.split("\n")[0])
        lines = [*table.header.split("\n"), *(table.rows[key] for key in keys.split())]
        chosen = [[cells(line)[titles.index(title)] for title in SHOWN] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in chosen)

    return QUOTE.sub(rows, text)


def cells(line: str) -> list[str]:
    """The cells of a row."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def of_method(key: str) -> list[tuple[Table, str]]:
    """The tables that have a row of this method, with the row."""
    return [(table, table.rows[key]) for table in tables() if key in table.rows and key != "plain"]
