"""``lowland survive``: measures how trained models survive quantization, noise, and training on a second task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import Progress

from lowland.cli.options import command
from lowland.core.errors import ArgumentError, StateError
from lowland.lab.survival.settings import Survival
from lowland.lab.survival.survive import survive
from lowland.lab.training.trained import load_run
from lowland.parallel import ranks
from lowland.report import groups, measures, read_all, rich_table, summarize
from lowland.runs.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Survive(Survival):
    """Measure how trained models survive quantization, noise, and training on a second task.

    The values are kept in each run folder, and `lowland report` shows them. Values with equal settings are not measured
    again.

    Args:
        runs: Run folders, or folders of runs.
        again: Measure again what is already known.
        data: Folder of the data files; by default the environment variable LOWLAND_DATA.
        device: cpu, cuda, or auto for a GPU if there is one.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    again: bool = False
    data: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """No check: :meth:`run` checks the settings, whose errors tyro would show in its own format."""

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Measure all finished runs, and print their table."""
        if not self.runs:
            raise ArgumentError("runs must name at least one folder, but is empty; write: lowland survive runs")
        if ranks()[1] > 1:
            raise ArgumentError("lowland survive runs in one process, but there are several; start it without torchrun")
        wanted = Survival(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Survival)})
        records = read_all(self.runs)
        count = 0
        for number, record in enumerate(records, 1):
            count += self._measure(console, record, wanted, f"[{number}/{len(records)}] {record.run}")
        if not count:
            raise ArgumentError("runs must hold a finished run with its weights, but all are left out; see above")
        for heading, members in groups(read_all(self.runs)).items():
            rows = summarize(members)
            shown = measures.tables(rows).get("survival")
            if shown:
                console.print("\n" + ", ".join(filter(None, heading)), style="bold", markup=False, highlight=False)
                console.print(rich_table(rows, console.width, shown))
        return 0

    def _measure(self, console: Console, record: RunRecord, wanted: Survival, name: str) -> bool:
        """Measure one run, and say whether it was; a run that cannot be measured is named and left out."""
        if record.end is None or record.end.diverged:
            reason = "has not finished" if record.end is None else "diverged"
            console.print(f"{name} {reason}, left out", markup=False, highlight=False, soft_wrap=True)
            return False
        try:
            trained = load_run(record.path.parent, data=self.data, device=self.device)
        except (StateError, ArgumentError) as error:  # its weights, its task or its model are no longer there
            console.print(f"{name} left out, {error}", markup=False, highlight=False, soft_wrap=True)
            return False
        measured: list[str] = []
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(name, total=None)

            def show(done: int, total: int, label: str) -> None:
                measured.append(label)
                bar.update(task, completed=done, total=total, description=f"{name}: {label}")

            found = survive(trained, wanted, again=self.again, progress=show)
        kept = "" if measured else " (kept)"
        console.print(f"{name}: {len(found)} values{kept}", markup=False, highlight=False, soft_wrap=True)
        return True

    def resumption(self, argv: Sequence[str]) -> list[str]:
        """The command that goes on; what has been measured again is not measured once more."""
        return command([word for word in argv if word != "--again"])
