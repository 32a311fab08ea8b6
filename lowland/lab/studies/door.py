"""A comparison from Python: the caller's own task, data, model, loss and methods."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from lowland import report
from lowland.core.errors import ArgumentError
from lowland.lab import names
from lowland.lab.budget import Budget, Kind
from lowland.lab.config import RunConfig
from lowland.lab.recipe import Recipe
from lowland.lab.studies.compare import budget as default_budget
from lowland.lab.studies.compare import compare as run_all
from lowland.lab.studies.compare import page_name, run_name
from lowland.lab.studies.contestants import Contestant, grid
from lowland.lab.studies.study import Study, conduct
from lowland.lab.task import Task
from lowland.lab.training.run import Update
from lowland.methods.base import Method
from lowland.parallel import ranks
from lowland.runs.reader import read_all
from lowland.runs.record import RunRecord


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to.

    Attributes:
        records: One for each run, as its file has it.
        folders: The run folders, in the same order.
        rows: One for each contestant, plain first: figures, gains, p values and costs; see ``lowland.report.Row``.
        page: The HTML page; None where the extra for figures is not installed, or on ranks other than the first.
    """

    records: list[RunRecord]
    folders: list[Path]
    rows: list[report.Row] = field(repr=False)
    page: Path | None
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text


class _Quiet:
    """A line on standard error for each run that ends."""

    def __init__(self, total: int | None, progress: Callable[[Update], None] | None) -> None:
        self._total, self._count, self.update = total, 0, progress or (lambda update: None)

    def begin(self, name: str) -> None:
        """Nothing to say."""

    def end(self, name: str, line: dict[str, Any], *, kept: bool) -> None:
        """One more is done."""
        self._count += 1
        if not kept and ranks()[0] == 0:
            total = "" if self._total is None else f"/{self._total}"
            print(f"[{self._count}{total}] {name}", file=sys.stderr)


def compare(
    task: Task | str,
    methods: Sequence[str | Method | Contestant],
    *,
    model: str | Callable[[], nn.Module] | None = None,
    seeds: int | Sequence[int] = 5,
    recipe: Recipe | None = None,
    budget: Kind = "steps",
    limit: float | None = None,
    out: str | Path = "runs",
    page: bool = True,
    progress: Callable[[Update], None] | None = None,
    **options: Any,
) -> Comparison:
    """Train a task with several methods, several seeds each, on the same data from the same start, and compare.

    Finished runs in ``out`` are kept and unfinished ones resumed, so an interrupted call goes on where it was.

    Args:
        task: A task, or its name such as ``"cifar10:noise=0.4"``.
        methods: Methods as text or as they are, each maybe with a recipe of its own: ``"plain@epochs=16"``.
        model: What ``task.model`` gets, or a class or function that makes a module; None is the task's first.
        seeds: How many, or which.
        recipe: How the model is trained; None is the task's recipe.
        budget: What every run may spend the same of: ``steps``, ``gradients`` or ``seconds``.
        limit: How much; None is what plain training takes for the recipe's epochs.
        out: Folder for the runs, one folder each, and for the page.
        page: Whether to write the page.
        progress: Told about ten times a second how far the current run is.
        options: Further fields of :class:`lowland.lab.RunConfig`, such as ``validation=0.1``, ``select="best"``,
            ``device``, ``mesh``, ``data``.

    Raises:
        ArgumentError: Task, method or option is unknown or breaks its rule.
        ParameterError: A method cannot work on the model; nothing has been trained then.
    """
    task = names.make(task) if isinstance(task, str) else task
    if not isinstance(task, Task):
        raise ArgumentError(f"task must be a lowland.lab.Task or a name, but is {task!r}; see lowland.lab.Task")
    model = task.models[0] if model is None else model
    shared = recipe or task.recipe(model if isinstance(model, str) else task.models[0])
    start = Budget(kind=budget, limit=1.0 if limit is None else limit)
    base = RunConfig(task=task, model=model, method="plain", seed=0, recipe=shared, budget=start, **options)
    base = replace(base, budget=default_budget(budget, limit, base, Path(out)))
    runs = grid(base, methods, seeds)
    folders = run_all(runs, Path(out), _Quiet(len(runs), progress), command=_command())
    if ranks()[0] > 0:
        return Comparison([], folders, [], None, "")
    return _summed_up(runs, folders, Path(out), page=page)


def run_study(
    study: Study, *, out: str | Path = "runs", progress: Callable[[Update], None] | None = None
) -> list[RunRecord]:
    """Train what a study of the caller's own asks for, run after run, until it asks for nothing more.

    ::

        class Halving:                                     # a learning rate is halved while that helps
            def __init__(self, base):
                self.next, self.best = base, math.inf

            def ask(self):
                return self.next

            def tell(self, run, record):
                loss = record.epochs[-1].train_loss
                half = replace(run.recipe, lr=run.recipe.lr / 2)
                self.next = replace(run, recipe=half) if loss < self.best else None
                self.best = min(loss, self.best)

    Finished runs in ``out`` are kept and unfinished ones resumed, so an interrupted call goes on where it was, if the
    study asks for the same runs after the same records.

    Args:
        study: See :class:`lowland.lab.Study`.
        out: Folder for the runs, one folder each.
        progress: Told about ten times a second how far the current run is.

    Returns:
        The records, in the order in which the study has asked.
    """
    quiet = _Quiet(None, progress)
    return [record for _, record in conduct(study, Path(out), quiet, name=run_name, command=_command())]


def _command() -> list[str]:
    """What was typed to start this script, for "how to reproduce"; empty in a notebook and at a prompt."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return ["python", *sys.orig_argv[1:]] if script and "ipykernel" not in sys.modules else []


def _summed_up(runs: list[RunConfig], folders: list[Path], out: Path, *, page: bool) -> Comparison:
    records = read_all(folders)
    rows = report.summarize(records)
    place = out / page_name(runs) if page else None
    if place is not None:
        report.write_page(records, place)
    text = "\n".join(part for part in (report.markdown(rows), report.verdict(rows)) if part)
    return Comparison(records, folders, rows, place, text)
