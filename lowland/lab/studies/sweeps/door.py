"""Sweeps from Python, with the caller's own task, model and methods."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from lowland.core.errors import ArgumentError
from lowland.lab import names
from lowland.lab.budget import Kind
from lowland.lab.config import RunConfig
from lowland.lab.recipe import Recipe
from lowland.lab.studies.compare import run_name
from lowland.lab.studies.door import base_config
from lowland.lab.studies.study import Display, conduct
from lowland.lab.studies.sweeps.plan import Plan, check
from lowland.lab.studies.sweeps.samplers import quiet
from lowland.lab.studies.sweeps.settings import COMPARED, SweepSettings
from lowland.lab.studies.sweeps.sweep import Sweep
from lowland.lab.studies.sweeps.template import Template
from lowland.lab.task import Task
from lowland.lab.training.progress import Update
from lowland.parallel import world
from lowland.report.sweeps.page import write_page
from lowland.report.sweeps.sentences import outcome, summary
from lowland.runs.sweep import SweepRecord, TrialRecord


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep; as text, a line for each contestant, the best first.

    Attributes:
        record: All trials; None on ranks other than the first.
        best: The best trial of each contestant as a contestant of a comparison, such as ``sam:rho=0.11@lr=0.2``, the
            best first.
        page: The path of the HTML page; None with ``page=False``, and on ranks other than the first.
        file: The path of the record, which :func:`lowland.runs.sweep.read` reads.
    """

    record: SweepRecord | None = field(repr=False)
    best: list[str]
    page: Path | None
    file: Path

    def __str__(self) -> str:
        return "" if self.record is None else "\n".join(summary(self.record))


class _Silent:
    """A display that passes the progress on."""

    def __init__(self, progress: Callable[[Update], None] | None) -> None:
        self.update = progress or (lambda update: None)

    def begin(self, name: str) -> None:
        """Show nothing."""

    def end(self, name: str, line: dict[str, Any], *, kept: bool) -> None:
        """Show nothing, because a line shows the trial."""


def sweep(
    task: Task | str,
    methods: Sequence[str],
    *,
    validation: float = 0.0,
    trials: int | None = None,
    model: str | Callable[[], nn.Module] | None = None,
    settings: SweepSettings | None = None,
    recipe: Recipe | None = None,
    budget: Kind = "steps",
    limit: float | None = None,
    out: str | Path = "runs",
    page: bool = True,
    progress: Callable[[Update], None] | None = None,
    **options: Any,
) -> SweepResult:
    """Search the ranges of each method for the best validation metric, each with the same number of trials.

    ::

        result = lab.sweep("digits", ["sam:rho=0.02..0.5:log@lr=0.05..0.4:log"], trials=20, validation=0.1)
        lab.compare("digits", ["plain", *result.best], seeds=5, validation=0.1)

    The test part chooses nothing. Finished trials in ``out`` are kept and an unfinished trial is resumed, so an
    interrupted call can be repeated; calls at the same time share the trials.

    Args:
        task: A task, or its text, also with ranges, such as ``"digits:noise=0.1|0.4"``.
        methods: Contestants as text, each with a range or choices in the place of a value.
        validation: The fraction of the training part that is held out, if the data has no validation part.
        trials: The number of trials of each contestant; None is 20, or the points of a grid.
        model: A model name for ``task.model``, or a class or function that makes a module; None is the task's first
            model.
        settings: Sampler, pruner, seeds and storage; None is TPE without pruning. Its ``trials`` give way to
            ``trials``.
        recipe: The training settings; None is the task's recipe.
        budget: The resource that is equal for all runs: ``steps``, ``gradients`` or ``seconds``.
        limit: The amount of that resource; None is the amount that plain training uses for the recipe's epochs.
        out: The folder for the run folders, the record and the page.
        page: Whether to write the page.
        progress: Called about ten times a second with the progress of the current run.
        options: Further fields of :class:`lowland.lab.RunConfig`, such as ``select="best"``, ``device``, ``data``.

    Raises:
        ArgumentError: A range, a method or an option breaks its rule, or there is no validation part.
        MissingExtraError: optuna is not installed.
    """
    settings = settings or SweepSettings()
    if trials is not None:
        settings = replace(settings, trials=trials)

    def base(text: str) -> RunConfig:
        if budget == "seconds" and limit is None:
            raise ArgumentError(
                "limit must be given for a sweep whose budget is in seconds, because all its processes need the same; "
                "give the seconds that one run may train"
            )
        own = text if isinstance(task, str) else task
        config = base_config(own, model, recipe, budget, limit, Path(out), validation=validation, **options)
        return replace(config, seed=settings.first_seed)

    template = Template.task(task) if isinstance(task, str) else Template(names.spell(task), ())
    plan = Plan(task=template, contestants=tuple(map(Template.contestant, methods)), base=base, settings=settings)
    named = model if model is None or isinstance(model, str) else getattr(model, "__name__", repr(model))
    own = {"out": str(out)} if str(out) != "runs" else {}
    given = {"limit": limit, **own, "validation": validation, **options}
    extra = "" if named is None else f", model={named if callable(model) else repr(named)}"
    extra += "" if recipe is None else f", recipe=lab.{recipe!r}"
    extra += "" if budget == "steps" else f", budget={budget!r}"
    extra += "".join(f", {name}={value!r}" for name, value in given.items() if value)
    path, record = run(
        plan, Path(out), _Silent(progress), on_trial=_print, comparison=lambda record: _calls(record, extra)
    )
    if record is None:
        return SweepResult(None, [], None, path)
    place = write_page(record, path.with_suffix(".html")) if page else None
    return SweepResult(record, [trial.text for _, trial in record.winners()], place, path)


def run(
    plan: Plan, out: Path, display: Display, *, command: Sequence[str] = (), **more: Any
) -> tuple[Path, SweepRecord | None]:
    """Check a plan and train its trials, until all have ended or run in other processes.

    Args:
        plan: What is searched.
        out: The folder of the runs.
        display: Shows the progress of each run.
        command: The command line, for the run files.
        more: Further arguments of :class:`Sweep`.

    Returns:
        The path of the record, and the record; None on ranks other than the first.
    """
    check(plan)
    first = plan.first(plan.contestants[0])
    with quiet(), world(first.mesh, first.device):
        study = Sweep(plan, out, **more)
        try:
            conduct(study, out, display, name=run_name, watch=study.watch, command=command)
            return study.path, study.write(importance=True) if study.is_first else None
        finally:
            study.close()


def _print(record: SweepRecord, contest: int, trial: TrialRecord) -> None:
    print(outcome(record, contest, trial), file=sys.stderr)


def _calls(record: SweepRecord, options: str) -> list[str]:
    """The calls that compare the best trials on the test set, one for each task."""
    tasks: dict[str, list[str]] = {}
    for _, trial in record.winners():
        tasks.setdefault(trial.task, []).append(trial.text)
    return [f"lab.compare({task!r}, {texts!r}, seeds={COMPARED}{options})" for task, texts in tasks.items()]
