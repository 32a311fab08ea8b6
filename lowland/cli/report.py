"""``lowland report``: rebuilds tables and the page from run files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from lowland.core.errors import ArgumentError
from lowland.report import (
    export,
    groups,
    legend,
    measures,
    notes,
    read_all,
    rich_table,
    summarize,
    verdict,
    write_page,
)
from lowland.report.sweeps.page import write_page as write_sweep
from lowland.report.sweeps.sentences import summary
from lowland.runs.sweep import read as read_sweep


@dataclass(kw_only=True)
class Report:
    """Rebuild table and page from runs.

    Args:
        runs: Run folders, or folders of runs; or the record of a sweep, sweep-….json, whose page is written then.
        out: The page to write.
        title: Its heading; left out, made from the runs.
        export: A folder for the tables as Markdown and the figures as SVG, too.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    out: Path = Path("report.html")
    title: str | None = None
    export: Path | None = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Read the runs, print the tables, and write the page."""
        if not self.runs:
            raise ArgumentError("runs must name at least one folder, but is empty; write: lowland report runs")
        if any(path.suffix == ".json" for path in self.runs):
            return self._sweep(console)
        records = read_all(self.runs)
        for heading, members in groups(records).items():
            rows = summarize(members)
            console.print("\n" + ", ".join(filter(None, heading)), style="bold", markup=False, highlight=False)
            console.print(rich_table(rows, console.width))
            for group, shown in measures.tables(rows).items():
                console.print(f"{group} of the final weights")
                console.print(rich_table(rows, console.width, shown))
            for text in (verdict(rows), *notes(members), legend(rows)):
                if text:
                    console.print(text, markup=False, highlight=False)
        path = write_page(records, self.out, title=self.title)
        console.print(f"page: {path}", markup=False, highlight=False, soft_wrap=True)
        for file in export(records, self.export) if self.export is not None else ():
            console.print(f"exported: {file}", markup=False, highlight=False, soft_wrap=True)
        return 0

    def _sweep(self, console: Console) -> int:
        """Print the sentences of a sweep, and write its page."""
        if len(self.runs) > 1 or self.title is not None or self.export is not None:
            raise ArgumentError(
                "runs must be the record of one sweep alone, without title and export, but there is more; write: "
                f"lowland report {self.runs[0]}"
            )
        record = read_sweep(self.runs[0])
        for text in summary(record):
            console.print(text, markup=False, highlight=False)
        console.print(f"page: {write_sweep(record, self.out)}", markup=False, highlight=False, soft_wrap=True)
        return 0
