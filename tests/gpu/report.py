"""The table of results, what they say about the expectations, and the JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import lowland
from gpu.checks import Figure, Result

Results = Mapping[str, Sequence[Result]]  # of every section
COLORS = {"ok": "green", "failed": "bold red", "skipped": "yellow", "measured": "cyan"}


@dataclass(frozen=True)
class Verdict:
    """What the results say about one expectation.

    Args:
        section: The section.
        expectation: The expectation.
        confirmed: Whether all checks met it; None if none was made.
        ok: How many checks met it.
        failed: The names of the checks that did not.
        skipped: The names of the checks that were not made, which is why a confirmation may be partial.
        worst: The largest figure.
    """

    section: str
    expectation: str
    confirmed: bool | None
    ok: int
    failed: list[str]
    skipped: list[str]
    worst: float | None

    def __str__(self) -> str:
        word = {True: "CONFIRMED", False: "NOT CONFIRMED", None: "NOT CHECKED"}[self.confirmed]
        word += " IN PART:" if self.confirmed and self.skipped else ":"
        counts = f"{self.ok} ok, {len(self.failed)} failed, {len(self.skipped)} skipped"
        worst = "" if self.worst is None else f", largest figure {self.worst:.3g}"
        return f"{word} {self.section}, {self.expectation} ({counts}{worst})"


def verdicts(results: Results) -> list[Verdict]:
    """A verdict on every expectation, in their order."""
    found = []
    for section, of_section in results.items():
        for expectation in dict.fromkeys(r.expectation for r in of_section if r.expectation):
            of_one = [r for r in of_section if r.expectation == expectation]
            ok, failed, skipped = ([r for r in of_one if r.outcome == o] for o in ("ok", "failed", "skipped"))
            confirmed = False if failed else True if ok else None
            figures = [r.figure for r in of_one if isinstance(r.figure, int | float)]
            names = [r.name for r in failed], [r.name for r in skipped]
            found.append(Verdict(section, expectation, confirmed, len(ok), *names, max(figures, default=None)))
    return found


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """Results in rows: one for all checks of an expectation that are ok, or skipped for one reason; else one each."""
    rows: dict[Any, list[Result]] = {}
    for number, r in enumerate(results):
        own = number if r.outcome in ("failed", "measured") else None
        rows.setdefault((r.expectation, r.outcome, r.reason, own), []).append(r)
    return list(rows.values())


def title(alike: Sequence[Result]) -> str:
    """The name of a row: of its check, or the number of its checks and what is expected of them."""
    first = alike[0]
    return first.name if len(alike) == 1 else f"{len(alike)} checks: {first.expectation or first.name + ', …'}"


def largest(alike: Sequence[Result]) -> str:
    """The figure of a row: of its check, or the largest one of its checks, and whose it is."""
    numbers = [r for r in alike if isinstance(r.figure, int | float)]
    if len(alike) == 1 or not numbers:
        return shown(alike[0].figure, alike[0].unit)
    most = max(numbers, key=lambda r: r.figure)
    return f"at most {shown(most.figure, most.unit)} ({most.name})"


def shown(figure: Figure, unit: str = "") -> str:
    """A figure as text."""
    if figure is None:
        return ""
    if isinstance(figure, Mapping):
        return ", ".join(f"{name} {shown(value, unit)}" for name, value in figure.items())
    return f"{figure:.3g} {unit}".strip()


def show(results: Results, console: Console) -> None:
    """Print the table, the failures and skips with their reasons, and the verdicts."""
    table = Table("section", "check", "result", "figure", title="lowland on this machine")
    for section, of_section in results.items():
        for alike in grouped(of_section):
            outcome = alike[0].outcome
            color = COLORS[outcome]
            table.add_row(section, escape(title(alike)), f"[{color}]{outcome}[/]", escape(largest(alike)))
        table.add_section()
    console.print(table)
    for section, of_section in results.items():
        for alike in grouped(of_section):
            if alike[0].reason:
                text = f"{alike[0].outcome} {section}: {title(alike)}: {alike[0].reason}"
                console.print(text, markup=False, highlight=False)
    for verdict in verdicts(results):
        console.print(str(verdict), markup=False, highlight=False)


def machine() -> dict[str, Any]:
    """The versions and devices that the figures belong to."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "lowland": lowland.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
        "gpus": gpus,
    }


def save(results: Results, seconds: Mapping[str, float], path: Path) -> None:
    """Write machine, results, verdicts and the seconds of every section as JSON."""
    sections = {
        name: {"seconds": seconds[name], "checks": [asdict(r) for r in of_section]}
        for name, of_section in results.items()
    }
    text = {"machine": machine(), "sections": sections, "expectations": [asdict(v) for v in verdicts(results)]}
    path.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
