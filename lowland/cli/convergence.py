"""``lowland convergence``: SAM and SAMPa on convex problems, beside what is proved."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lowland.bench.convergence.study import Setting, study, total
from lowland.core.errors import ArgumentError
from lowland.report.convergence.page import export, write_page
from lowland.report.convergence.record import Study
from lowland.report.convergence.words import HEADINGS, cells, setting, title, verdict
from lowland.report.page import write_text


@dataclass(kw_only=True)
class Convergence:
    """Follow SAM, SAMPa and naive parallelizations on convex problems with a fixed radius; check what is proved.

    Prints a table for each problem: the distance to the minimizer, the mean squared gradient norm, its bound by the
    theorem, and whether the theorem holds in every step. Writes a page with figures, and the record from which it is
    drawn. The same command writes the same files on one machine.

    Args:
        steps: Steps of a trajectory, >= 100.
        rho: Radius of all methods, > 0.
        lr: Step size on all problems, > 0; by default half of the largest one that SAMPa's theorem allows,
            min(1, 1 / L) / 2.
        seeds: Trajectories with mini-batches or random directions, >= 1.
        out: The page to write; the record is written beside it as .json.
        record: Draw the page from this record instead of computing.
        export: A folder for the figures as SVG, too.
    """

    steps: int = 500
    rho: float = 0.1
    lr: float | None = None
    seeds: int = 3
    out: Path = Path("convergence.html")
    record: Path | None = None
    export: Path | None = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Compute or read the study, print it, and write page and record."""
        if self.out.suffix == ".json":
            raise ArgumentError(
                f"out must be a page, but is {self.out}, the record's name; write --out convergence.html"
            )
        result = self._computed(console) if self.record is None else Study.read(self.record)
        written = [write_page(result, self.out, command=shlex.join(["lowland", *argv]))]
        if self.record is None:
            written.append(write_text(self.out.with_suffix(".json"), result.text()))
        if self.export is not None:
            written += export(result, self.export)
        for problem in result.problems:
            console.print(_table(result, problem.name, title(problem)))
            console.print(setting(problem), markup=False, highlight=False)
        console.print("\n" + verdict(result), markup=False, highlight=False)
        for path in written:
            console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
        return 0

    def _computed(self, console: Console) -> Study:
        chosen = Setting(steps=self.steps, rho=self.rho, lr=self.lr, seeds=self.seeds)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("convergence", total=total(chosen))
            return study(chosen, lambda: progress.advance(bar))


def _table(result: Study, problem: str, heading: str) -> Table:
    rows = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", pad_edge=False)
    for name in HEADINGS:
        rows.add_column(name, justify="left" if name == "method" else "right", overflow="fold")
    for trace in result.of(problem):
        rows.add_row(*cells(trace))
    return rows
