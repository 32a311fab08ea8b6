"""``lowland sweep``: searches fields of methods, recipe and task for the best validation metric."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from lowland.cli.display import Lines, display
from lowland.cli.options import DIVERGED, Options, command
from lowland.core.errors import ArgumentError
from lowland.lab import names
from lowland.lab.config import RunConfig
from lowland.lab.training.progress import Update
from lowland.runs.sweep import SweepRecord, TrialRecord


@dataclass(kw_only=True)
class Sweep(Options):
    """Search fields of methods, recipe and task for the best validation metric; the test part chooses nothing.

    A range takes the place of a value: rho=0.02..0.5 draws numbers between the ends, rho=0.02..0.5:log by their
    logarithm, lam=0.0..1.0:step=0.1 in steps, k=2..8 integers, and batch_size=32|64|128 one of the choices. Fields
    after @ belong to the recipe. Quote a method with choices, because | is a pipe:

    lowland sweep --methods plain@lr=0.02..0.5:log 'sampa:rho=0.02..0.5:log,lam=0.0..1.0@lr=0.02..0.5:log'
    --trials 20 --validation 0.1

    Every method gets the same number of trials. At the end stands the command that compares the best ones on the test
    set with other seeds. The same command goes on after an interruption, and several processes that run it at the same
    time, also on several machines that share --out, share the trials.

    Args:
        methods: Methods, each with at least one range; `lowland methods` lists them. The task may have ranges, too:
            digits:noise=0.1|0.4.
        trials: Trials of each method over all processes and restarts, >= 1; by default 20, or the points of a grid.
        sampler: How values are chosen: tpe learns from the trials so far, random does not, grid takes all combinations
            of points.
        grid: Points of a grid in each range, >= 2; a map of two fields needs about 5.
        pruner: End trials that are worse than others after an epoch: median compares with the median of the finished
            trials, hyperband with a share of all. A pruned trial has no final value.
        seeds: Seeds of each trial, >= 1; its value is the mean over them. Pruning looks at the first.
        first_seed: The first of these seeds, >= 5, because the comparison afterwards uses the seeds 0 to 4.
        sampler_seed: Seed of the sampler, >= 0; the same seed gives the same trials.
        storage: Database of the trials, such as sqlite:///sweeps.db or postgresql://user@host/name; by default a file
            in --out.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--method"])] = ()
    trials: int | None = None
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    grid: int | None = None
    pruner: Literal["none", "median", "hyperband"] = "none"
    seeds: int = 1
    first_seed: int = 1000
    sampler_seed: int = 0
    storage: str | None = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Train the missing trials, print the best of each method, and write the page."""
        from lowland.lab.studies.sweeps.door import run  # here: optuna loads slowly, and may be missing
        from lowland.lab.studies.sweeps.samplers import masked
        from lowland.report.sweeps.page import write_page
        from lowland.report.sweeps.sentences import summary

        plan = self._plan()
        total = sum(plan.total(contestant) for contestant in plan.contestants)
        typed = [masked(word) for word in command(argv)]  # for files that are shown to others
        metrics = names.make(plan.task.fill({p.name: p.values.ends[0] for p in plan.task.parameters})).metrics
        with display(console, total, metrics) as lines:
            shown = Trials(lines, [each.text for each in plan.contestants])
            path, record = run(
                plan,
                self.out,
                shown,
                command=typed,
                text=shlex.join(typed),
                comparison=self.comparison,
                on_trial=shown.trial,
            )
        if record is None:
            return 0  # only rank 0 reports
        page = write_page(record, path.with_suffix(".html"))
        console.print(_table(record))
        for text in summary(record):
            console.print(text, markup=False, highlight=False)
        if record.comparison:
            console.print("To compare the best ones on the test set, with seeds that the sweep has not used:")
        for text in (*record.comparison, f"record: {path}", f"page: {page}"):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        diverged = [c for c in record.contestants if c.count("diverged") and not c.finished()]
        return DIVERGED if diverged else 0

    def resumption(self, argv: Sequence[str]) -> list[str]:
        """The command that goes on with the sweep: the same command."""
        return command(argv)

    def comparison(self, record: SweepRecord) -> list[str]:
        """The command lines that compare the best trials on the test set, one for each task."""
        from lowland.lab.studies.sweeps.settings import COMPARED

        tasks: dict[str, list[str]] = {}
        for contestant in record.contestants:
            best = contestant.best(record.metric.higher)
            if best is not None:
                tasks.setdefault(best.task, []).append(best.text)
        return [
            shlex.join(
                ["lowland", "compare", "--task", task, "--methods", *texts, "--seeds", str(COMPARED), *self._shared()]
            )
            for task, texts in tasks.items()
        ]

    def _plan(self) -> Any:
        from lowland.lab.studies.sweeps.plan import Plan
        from lowland.lab.studies.sweeps.settings import SweepSettings
        from lowland.lab.studies.sweeps.template import Template

        if self.budget == "seconds" and self.limit is None:
            raise ArgumentError(
                "limit must be given for a sweep whose budget is in seconds, because all its processes need the same; "
                "give the seconds that one run may train, such as --limit 60"
            )
        settings = SweepSettings(
            trials=self.trials,
            seeds=self.seeds,
            first_seed=self.first_seed,
            sampler=self.sampler,
            points=self.grid,
            sampler_seed=self.sampler_seed,
            pruner=self.pruner,
            storage=self.storage,
        )
        return Plan(
            task=Template.task(self.task),
            contestants=tuple(map(Template.contestant, self.methods)),
            base=self._base,
            settings=settings,
        )

    def _base(self, task: str) -> RunConfig:
        return replace(self, task=task).config(self.first_seed)

    def _shared(self) -> list[str]:
        """The options that the comparison takes over, as they are typed."""
        defaults, typed = Options(), []
        given = {f.name: getattr(self, f.name) for f in fields(Options) if f.name not in ("task", "recipe")}
        changed = {name: value for name, value in given.items() if value != getattr(defaults, name)}
        recipe = {name: value for name, value in asdict(self.recipe).items() if value is not None}
        for name, value in (changed | recipe).items():
            option = f"--{name.replace('_', '-')}"
            flag = isinstance(value, bool) and name in changed
            typed += [option] if flag else [option, str(value)]
        return typed


class Trials:
    """Shows the progress of runs, and a line with the validation metric of each trial that ends.

    Args:
        lines: The display of the runs, whose count is that of the trials.
        contestants: The contestants with their ranges.
    """

    def __init__(self, lines: Lines, contestants: Sequence[str]) -> None:
        self._lines, self._contestants = lines, contestants
        self.begin = lines.begin

    def update(self, update: Update) -> None:
        """Show the progress of the run, without its metric on the test part."""
        self._lines.update(replace(update, score=None))

    def end(self, name: str, line: dict[str, Any], *, kept: bool) -> None:
        """Show nothing, because the trial may have more runs."""

    def trial(self, record: SweepRecord, contest: int, trial: TrialRecord) -> None:
        """Show the outcome of a trial, and whether it is the best so far."""
        from lowland.report.sweeps.sentences import outcome

        done = sum(t.outcome != "running" for each in record.contestants for t in each.trials)
        self._lines.advance(done, outcome(record, contest, trial))


def _table(record: SweepRecord) -> Table:
    """The best trial of each contestant."""
    from lowland.report.sweeps.sentences import style_of, values_text

    style = style_of(record)
    table = Table(box=None, header_style="bold", pad_edge=False)
    headings = ("contestant", "trials", "finished", "pruned", "diverged", style.titled("validation", style.unit))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "contestant" else "right", overflow="fold")
    table.add_column("best values", overflow="fold")
    for each in record.contestants:
        best = each.best(record.metric.higher)
        counts = [str(each.count(outcome)) for outcome in ("finished", "pruned", "diverged")]
        values = "" if best is None else values_text(best)
        table.add_row(
            each.text, str(len(each.trials)), *counts, style.value(None if best is None else best.score), values
        )
    return table
