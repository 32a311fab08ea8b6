"""Comparisons and studies from Python, with the caller's own task, model and methods."""

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
from lowland.lab.contract import recipe_of
from lowland.lab.recipe import Recipe
from lowland.lab.studies.compare import budget as default_budget
from lowland.lab.studies.compare import compare as run_all
from lowland.lab.studies.compare import page_name, run_name
from lowland.lab.studies.contestants import Contestant, grid
from lowland.lab.studies.study import Study, conduct
from lowland.lab.task import Task
from lowland.lab.training.progress import Update
from lowland.methods.base import Method
from lowland.parallel import ranks
from lowland.runs.reader import read_all
from lowland.runs.record import RunRecord


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison; as text, the table and the verdict.

    Attributes:
        records: The records of the runs, read from the run files; empty on ranks other than the first.
        folders: The run folders, in the same order.
        rows: One row per contestant, plain first: scores, gains, p values and costs; see ``lowland.report.Row``.
        page: The path of the HTML page; None with ``page=False``, and on ranks other than the first.
        text: The table in Markdown and the verdict.
    """

    records: list[RunRecord]
    folders: list[Path]
    rows: list[report.Row] = field(repr=False)
    page: Path | None
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text


class _Lines:
    """A display that prints one line to standard error for each run that ends."""

    def __init__(self, total: int | None, progress: Callable[[Update], None] | None) -> None:
        self._total, self._count, self.update = total, 0, progress or (lambda update: None)

    def begin(self, name: str) -> None:
        """Print nothing."""

    def end(self, name: str, line: dict[str, Any], *, kept: bool) -> None:
        """Count the run, and print its name if it was trained now."""
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
    """Train a task with several methods and several seeds each, with the same data and initial weights, and compare.

    Finished runs in ``out`` are kept and unfinished runs are resumed, so an interrupted call can be repeated.

    Args:
        task: A task, or its text such as ``"cifar10:noise=0.4"``.
        methods: Methods as text or as objects; a text can change recipe fields: ``"plain@epochs=16"``.
        model: A model name for ``task.model``, or a class or function that makes a module; None is the task's first
            model.
        seeds: The number of seeds, or the seeds themselves.
        recipe: The training settings; None is the task's recipe.
        budget: The resource that is equal for all runs: ``steps``, ``gradients`` or ``seconds``.
        limit: The amount of that resource; None is the amount that plain training uses for the recipe's epochs.
        out: The folder for the run folders and the page.
        page: Whether to write the page.
        progress: Called about ten times a second with the progress of the current run.
        options: Further fields of :class:`lowland.lab.RunConfig`, such as ``validation=0.1``, ``select="best"``,
            ``device``, ``mesh``, ``data``.

    Raises:
        ArgumentError: A task, method or option is unknown or breaks its rule.
        ParameterError: A method cannot work on the model. No run is trained then.
        UsageError: A method cannot work with the optimizer. No run is trained then.
    """
    base = base_config(task, model, recipe, budget, limit, Path(out), **options)
    runs = grid(base, methods, seeds)
    folders = run_all(runs, Path(out), _Lines(len(runs), progress), command=_command())
    if ranks()[0] > 0:
        return Comparison([], folders, [], None, "")
    return _result(runs, folders, Path(out), page=page)


def base_config(
    task: Task | str,
    model: str | Callable[[], nn.Module] | None,
    recipe: Recipe | None,
    budget: Kind,
    limit: float | None,
    out: Path,
    **options: Any,
) -> RunConfig:
    """The configuration of a plain run that the runs of a study share; the arguments are those of :func:`compare`.

    Raises:
        ArgumentError: A task or an option is unknown or breaks its rule.
    """
    task = names.make(task) if isinstance(task, str) else task
    if not isinstance(task, Task):
        raise ArgumentError(f"task must be a lowland.lab.Task or a name, but is {task!r}; see lowland.lab.Task")
    model = task.models[0] if model is None else model
    shared = recipe or recipe_of(task, model if isinstance(model, str) else task.models[0])
    start = Budget(kind=budget, limit=1.0 if limit is None else limit)
    base = RunConfig(task=task, model=model, method="plain", seed=0, recipe=shared, budget=start, **options)
    return replace(base, budget=default_budget(budget, limit, base, out))


def run_study(
    study: Study, *, out: str | Path = "runs", progress: Callable[[Update], None] | None = None
) -> list[RunRecord]:
    """Train the runs that a study asks for, one after the other, until it asks for no more.

    ::

        class Halving:                                     # halves the learning rate while the loss falls
            def __init__(self, base):
                self.next, self.best = base, math.inf

            def ask(self):
                return self.next

            def tell(self, run, record):
                loss = record.epochs[-1].train_loss
                half = replace(run.recipe, lr=run.recipe.lr / 2)
                self.next = replace(run, recipe=half) if loss < self.best else None
                self.best = min(loss, self.best)

    Finished runs in ``out`` are kept and unfinished runs are resumed. So an interrupted call can be repeated if the
    study asks for the same runs after the same records.

    Args:
        study: The study; see :class:`lowland.lab.Study`.
        out: The folder for the run folders.
        progress: Called about ten times a second with the progress of the current run.

    Returns:
        The records of the runs, in order.
    """
    lines = _Lines(None, progress)
    return [record for _, record in conduct(study, Path(out), lines, name=run_name, command=_command())]


def _command() -> list[str]:
    """What was typed to start this script, for "how to reproduce"; empty in a notebook and at a prompt."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return ["python", *sys.orig_argv[1:]] if script and "ipykernel" not in sys.modules else []


def _result(runs: list[RunConfig], folders: list[Path], out: Path, *, page: bool) -> Comparison:
    records = read_all(folders)
    rows = report.summarize(records)
    place = out / page_name(runs) if page else None
    if place is not None:
        report.write_page(records, place)
    text = "\n".join(part for part in (report.markdown(rows), report.verdict(rows)) if part)
    return Comparison(records, folders, rows, place, text)
