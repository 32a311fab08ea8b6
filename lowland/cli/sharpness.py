"""``lowland sharpness``: measures how flat the loss is around the final weights of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from lowland.cli.display import Results
from lowland.core.errors import ArgumentError
from lowland.lab.studies.flatness import Flatness, measure_runs
from lowland.report import groups, measures, read_all, rich_table, summarize, write_page


@dataclass(frozen=True, kw_only=True)
class Sharpness(Flatness):
    """Measure how flat the loss is around the final weights of finished runs.

    The values are written to each run's folder; those that are there with equal settings are kept.

    Args:
        runs: Run folders, or folders of runs.
        out: The page to write.
        data: Folder of the data files; by default the environment variable LOWLAND_DATA.
        device: cpu, cuda, or auto for a GPU if there is one.
        again: Measure again what is there.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    out: Path = Path("report.html")
    data: Path | None = None
    device: str = "auto"
    again: bool = False

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Measure the runs, print the table of the values, and write the page."""
        if not self.runs:
            raise ArgumentError("runs must name at least one folder, but is empty; write: lowland sharpness runs")
        with Results(console) as progress:
            count = measure_runs(
                read_all(self.runs), self, progress, data=self.data, device=self.device, again=self.again
            )
        if not count:
            raise ArgumentError("runs must hold a finished run with its weights, but all are left out; see above")
        records = read_all(self.runs)
        for heading, members in groups(records).items():
            rows = summarize(members)
            for group, shown in measures.tables(rows).items():
                console.print(
                    f"\n{', '.join(filter(None, heading))}: {group} of the final weights",
                    style="bold", markup=False, highlight=False,
                )  # fmt: skip
                console.print(rich_table(rows, console.width, shown))
        path = write_page(records, self.out)
        console.print(f"page: {path}", markup=False, highlight=False, soft_wrap=True)
        return 0
