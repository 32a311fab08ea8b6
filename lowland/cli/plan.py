"""``lowland plan``: which method, in which layout, is fastest on this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from lowland.bench.overhead import machine
from lowland.cli.options import Changes
from lowland.core.errors import ArgumentError
from lowland.lab.planning.plan_task import Training, plan_task
from lowland.parallel import ranks
from lowland.planner.planning import SECONDS
from lowland.report import read_all
from lowland.report.page import write_text
from lowland.report.plans.buys import buys
from lowland.report.plans.page import export, write_page
from lowland.report.plans.record import VERSION, PlanRecord
from lowland.report.plans.words import HEADINGS, cells, recommendation


@dataclass(kw_only=True)
class Plan:
    """Predict the steps of every method on one process and on several, and say which is fastest here and why.

    Measures the task's model for a minute: single passes in every layout, and each method's arithmetic without its
    passes. From these it predicts time, bytes and memory of each method's step in every layout that fits. No method is
    trained. Without torchrun it starts the processes itself; under torchrun it measures the ranks that there are.
    Writes a page with figures, and the record from which it is drawn.

    Args:
        task: digits, cifar10:noise=0.4 or another of `lowland tasks`, or your own: my_task.py:Pose:joints=17,
            package.module:Pose.
        model: A model of the task, my_task.py:Net, or a torchvision or timm name; by default the task's first model.
        methods: Methods, each such as sam or sampa:rho=0.1; all means every listed method that works on the model.
        processes: Numbers of processes to measure, each >= 1; by default those of 1, 2, 4, … up to the CPU cores or
            GPUs that can divide the batch or the probes of a method.
        threads: CPU threads of each process, >= 1; by default the cores are divided.
        seconds: About how long the measuring may take, > 0; the processes need some seconds more to start.
        data: Folder of the data files; by default the environment variable LOWLAND_DATA.
        device: cpu, cuda, or auto for a GPU if there is one.
        out: The page to write; the record is written beside it as .json.
        record: Draw the page from this record instead of measuring.
        export: A folder for the figures as SVG, too.
        runs: Folders with runs of a comparison. They decide whether plain training with twice the steps is the better
            buy than a method; `lowland compare --methods plain equal-cost sam` trains it, too.
        recipe: Optimizer, batch size and precision; by default the task's values (see lowland tasks NAME).
    """

    task: str = "digits"
    model: str | None = None
    methods: tuple[str, ...] = ("all",)
    processes: tuple[int, ...] | None = None
    threads: int | None = None
    seconds: float = SECONDS
    data: Path | None = None
    device: str = "auto"
    out: Path = Path("plan.html")
    record: Path | None = None
    export: Path | None = None
    runs: tuple[Path, ...] = ()
    recipe: Changes = field(default_factory=Changes)

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Measure or read the plan, print it, and write page and record."""
        self._check()
        self._check_alone()
        records = read_all(self.runs)  # before anything is measured
        entries = self._measured(console) if self.record is None else PlanRecord.read(self.record)[1]
        if ranks()[0] > 0:
            return 0  # only rank 0 reports
        plan = PlanRecord.of(entries)
        if records:
            entries["runs"] = buys(records, plan)
            plan = PlanRecord.of(entries)
        written = [write_page(plan, self.out, command=shlex.join(["lowland", *argv]))]
        if self.record is None or records:
            written.append(write_text(self.out.with_suffix(".json"), json.dumps(entries, indent=1) + "\n"))
        if self.export is not None:
            written += export(plan, self.export)
        console.print(table(plan))
        for text in recommendation(plan):
            console.print(text, markup=False, highlight=False)
        for text in plan.runs:
            console.print(text, markup=False, highlight=False)
        for text in plan.notes:
            console.print(f"note: {text}", style="yellow", markup=False, highlight=False)
        for name, reason in plan.left_out.items():
            console.print(f"left out: {name}: {reason}", style="yellow", markup=False, highlight=False)
        for path in written:
            console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
        return 0

    def _check(self) -> None:
        """Refuse wrong values before anything is measured."""
        if not 0 < self.seconds < float("inf"):
            raise ArgumentError(
                f"seconds must be above 0 and finite, but is {self.seconds}; leave --seconds out for a minute"
            )
        if self.threads is not None and self.threads < 1:
            raise ArgumentError(f"threads must be >= 1, but is {self.threads}; leave --threads out to divide the cores")
        if self.out.suffix == ".json":
            raise ArgumentError(f"out must be a page, but is {self.out}, the record's name; write --out plan.html")

    def _check_alone(self) -> None:
        """Refuse options that would be ignored: beside a record, and under torchrun."""
        measuring = ("task", "model", "methods", "processes", "threads", "seconds", "data", "device", "recipe")
        given = [name for name in measuring if getattr(self, name) != getattr(Plan(), name)]
        if self.record is not None and given:
            raise ArgumentError(
                f"record must be given without {', '.join(given)}, because it has been measured already; leave them "
                "out, or leave --record out to measure"
            )
        started = ranks()[1]
        if started > 1 and self.threads is not None:
            raise ArgumentError(
                f"threads must be left out under torchrun, which has started the ranks, but is {self.threads}; set "
                f"OMP_NUM_THREADS={self.threads} before torchrun"
            )
        if started > 1 and self.processes not in (None, (started,)):
            raise ArgumentError(
                f"processes must be left out under torchrun, or be its {started}, but are {list(self.processes or ())};"
                " run lowland plan without torchrun, which starts them itself"
            )

    def _measured(self, console: Console) -> dict[str, Any]:
        """Measure, and return what the record has."""
        training = self.training()
        with _progress(console) as tick:
            plan = plan_task(
                training, self.methods, self.processes, seconds=self.seconds, threads=self.threads, tick=tick
            )
        config = training.config()
        return {
            "version": VERSION,
            "task": config.task_text,
            "model": config.model,
            "recipe": asdict(config.recipe),
            "machine": machine(),
            "seconds": self.seconds,
            "runs": [],
            **plan.to_json(),
        }

    def training(self) -> Training:
        """What the training is made from."""
        changes = {name: value for name, value in asdict(self.recipe).items() if value is not None}
        if changes.get("momentum") == 0:
            changes.setdefault("nesterov", False)
        data = None if self.data is None else str(self.data)
        return Training(task=self.task, model=self.model, recipe=changes, data=data, device=self.device)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar for each part of the measuring; on no terminal, a line when a part begins."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        known: dict[str, Any] = {}

        def tick(text: str, fraction: float) -> None:
            if text not in known:
                known[text] = bars.add_task(text, total=1.0)
                if not console.is_terminal:
                    console.print(f"measuring: {text}", markup=False, highlight=False)
            bars.update(known[text], completed=fraction)

        yield tick


def table(plan: PlanRecord) -> Table:
    """The fastest layout of every method."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in HEADINGS:
        rows.add_column(
            title, justify="left" if title in ("method", "layout", "bound by") else "right", overflow="fold"
        )
    fastest = plan.fastest()
    for one in fastest.values():
        rows.add_row(*cells(one, fastest.get("plain")))
    return rows
