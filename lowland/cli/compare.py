"""``lowland compare``: trains several methods and compares them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from lowland.cli.display import Results, display
from lowland.cli.options import DIVERGED, Options, command
from lowland.lab.studies import flatness
from lowland.lab.studies.compare import compare, expand, page_name
from lowland.lab.studies.contestants import grid
from lowland.parallel import ranks
from lowland.report import legend, measures, notes, read_all, rich_table, summarize, verdict, write_page


@dataclass(kw_only=True)
class Compare(Options):
    """Compare methods on a task: several seeds each, with the same data, initial weights and budget.

    Args:
        methods: Methods, each such as sam or sampa:rho=0.1,lam=0.2; `lowland methods` lists them. Your own method comes
            from a file or a package: vasso.py:VaSSO:theta=0.4, package.module:VaSSO. The name all means every listed
            method that works on the model; more methods may follow it: all sam:rho=0.1. The name equal-cost means
            plain training with twice the epochs, with twice the learning rate, and with averaged weights, which a
            method should beat.
        seeds: Number of seeds, >= 1; intervals need at least 2.
        sharpness: Measures of flatness that are taken of the final weights after the trainings, such as worst trace;
            `lowland sharpness` has their settings.
    """

    methods: tuple[str, ...] = ("plain", "sam", "sampa", "looksam", "micro-sam", "arsam")
    seeds: int = 3
    sharpness: tuple[str, ...] = ()

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Train the missing runs, print the table and the verdict, and write the page."""
        measured = flatness.Flatness(measures=self.sharpness)
        if self.sharpness:
            flatness.check(measured)  # before the trainings
        base = self.config()
        methods, omissions = expand(self.methods, base)
        for text in omissions:
            console.print(text, style="yellow", markup=False, highlight=False)
        runs = grid(base, methods, self.seeds)
        with display(console, len(runs), base.task.metrics) as progress:
            folders = compare(runs, self.out, progress, command=command(argv))
        if ranks()[0] > 0:
            return 0  # only rank 0 reports
        if self.sharpness:
            with Results(console) as results:
                flatness.measure_runs(read_all(folders), measured, results, data=self.data, device=self.device)
        records = read_all(folders)
        rows = summarize(records)
        page = self.out / page_name(runs)
        write_page(records, page, command=shlex.join(command(argv)), remarks=omissions)
        console.print(rich_table(rows, console.width))
        for group, shown in measures.tables(rows).items():
            console.print(f"{group} of the final weights")
            console.print(rich_table(rows, console.width, shown))
        for text in (verdict(rows), *notes(records), *omissions, legend(rows), f"page: {page}"):
            if text:
                console.print(text, markup=False, highlight=False, soft_wrap=text.startswith("page"))
        return DIVERGED if any(row.diverged for row in rows) else 0

    def resumption(self, argv: Sequence[str]) -> list[str]:
        """The command that resumes the comparison: the same command."""
        return command(argv)
