"""Runs a comparison: several methods and seeds with equal budgets and the same data in the same order."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lowland.core.errors import ArgumentError, ParameterError, UsageError
from lowland.lab.budget import Budget, Kind
from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.identity import differences
from lowland.lab.recipe import method_recipe
from lowland.lab.studies.contestants import equal_cost, grid
from lowland.lab.studies.study import Display, Grid, conduct
from lowland.lab.training.clock import Clock
from lowland.lab.training.prepare import check_select, complete, line_of, loader_of
from lowland.lab.training.trainer import Trainer, settings
from lowland.methods import METHODS
from lowland.methods.plain import Plain
from lowland.parallel import broadcast
from lowland.runs.file import RUN_FILE, history

ALL = "all"  # the name that means all methods that work on the model
EQUAL_COST = "equal-cost"  # the name that means the plain contestants of equal cost
TIMED = 60  # the number of plain steps that are timed for the default budget in seconds


def expand(methods: Sequence[str], base: RunConfig) -> tuple[list[str], list[str]]:
    """Replace ``all`` by every key of METHODS that works on the model and with the optimizer.

    ``equal-cost`` is replaced by the contestants of :func:`~lowland.lab.studies.contestants.equal_cost`. If ``all`` is
    in the list, a method may be listed twice. A method that is listed by its own name is never left out; if it does not
    work, :func:`compare` raises its error.

    Args:
        methods: Methods as text, ``all``, or ``equal-cost``.
        base: The configuration that the runs share.

    Returns:
        The methods, and a sentence for each method that is left out.
    """
    methods = [text for method in methods for text in (equal_cost(base) if method == EQUAL_COST else [method])]
    if ALL not in methods:
        return methods, []
    left_out = {key: reason for key in METHODS if key not in methods and (reason := _refusal(key, base))}
    expanded = (text for method in methods for text in (METHODS if method == ALL else [method]))
    usable = [text for text in dict.fromkeys(expanded) if text not in left_out]
    return usable, [f"{ALL} is without {key}: {reason}." for key, reason in left_out.items()]


def _refusal(key: str, base: RunConfig) -> str | None:
    """The message of the error with which a method refuses the model or the optimizer; None if it works."""
    try:
        check_method(grid(base, [key], 1)[0])
    except (ParameterError, UsageError) as error:
        return str(error)
    return None


def check_method(config: RunConfig) -> None:
    """Refuse a method that cannot work on the model, by making a trainer without taking a step.

    Raises:
        ArgumentError: The method is unknown, or a field breaks its rule.
        ParameterError: The method cannot work on the model.
        UsageError: The method cannot work with the optimizer.
    """
    with torch.random.fork_rng(devices=[config.on()] if config.on().type == "cuda" else []):
        Trainer(config, complete(config, loader_of(config)))


def compare(runs: Sequence[RunConfig], out: Path, display: Display, *, command: Sequence[str] = ()) -> list[Path]:
    """Train the missing runs of a comparison: finished runs are kept, unfinished runs are resumed.

    The name of a run's folder ends with a hash of the run's identity: task and model with their sources, recipe,
    method, budget and lowland's version. So a run of another recipe or another model width is never reused.

    Args:
        runs: The runs, from :func:`grid`.
        out: The folder that gets one folder per run.
        display: Shows the progress.
        command: The command line, for the run files.

    Returns:
        The run folders.

    Raises:
        ArgumentError: A method is unknown, or two texts mean the same method. No run is trained then.
        ParameterError: A method cannot work on the model. No run is trained then.
        UsageError: A method cannot work with the optimizer. No run is trained then.
    """
    lines = _lines(runs)
    _check_duplicates(lines)
    names = {id(config): str(line["run"]) for config, line in zip(runs, lines, strict=True)}
    missing = {config.label: config for config in runs if history(out / names[id(config)]).end is None}
    for config in missing.values():
        check_method(config)
    done = conduct(Grid(runs), out, display, name=lambda config: names[id(config)], command=command)
    return [folder for folder, _ in done]


def budget(kind: Kind, limit: float | None, base: RunConfig, out: Path) -> Budget:
    """The budget of a comparison; by default the amount that plain training uses for the recipe's epochs.

    The default in seconds is measured once on this machine; later calls read it from the runs in ``out``.

    Args:
        kind: The resource that is limited.
        limit: The amount; None is the default.
        base: The configuration that the runs share; its budget is ignored.
        out: The folder of the runs.
    """
    if limit is not None:
        return Budget(kind=kind, limit=limit)
    steps = base.recipe.epochs * len(loader_of(base))
    if kind != "seconds":
        return Budget(kind=kind, limit=steps)
    timed = replace(base, method="plain", budget=Budget(kind=kind, limit=1.0))
    recorded = _recorded_limit(timed, out)
    return Budget(kind=kind, limit=broadcast(recorded or float(f"{steps * _plain_step(timed):.3g}")))


def _check_duplicates(lines: Sequence[dict[str, Any]]) -> None:
    """Refuse two texts of the same method, such as sam and sam:rho=0.05.

    Raises:
        ArgumentError: Two texts mean the same method.
    """
    checked: list[dict[str, Any]] = []
    for line in (line for line in lines if line["seed"] == lines[0]["seed"]):
        for other in checked:
            if not differences(other, line):
                raise ArgumentError(
                    f"methods must differ, but {other['method']['text']} and {line['method']['text']} are the same "
                    "here; leave one out"
                )
        checked.append(line)


def _lines(runs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """The config lines of all runs, in the same order."""
    lines: list[dict[str, Any]] = []
    loaders: dict[tuple[int, int, bool], Loader] = {}
    for config in runs:
        key = (config.seed, config.recipe.batch_size, config.recipe.channels_last)
        if key not in loaders:  # keep the loaders of one seed only
            loaders = {key: loader_of(config)} | {k: v for k, v in loaders.items() if k[0] == config.seed}
        check_select(config, loaders[key])
        lines.append(line_of(config, loaders[key], complete(config, loaders[key])))
    return lines


def run_name(config: RunConfig) -> str:
    """The name of a run's folder."""
    return str(_lines([config])[0]["run"])


def page_name(runs: Sequence[RunConfig]) -> str:
    """The page's file name: task, model, and a hash of the runs, so that different comparisons have different pages."""
    first = runs[0]
    compared = json.dumps(sorted({(r.label, r.seed, repr(r.recipe), repr(r.budget), r.select) for r in runs}))
    readable = re.sub(r"[^A-Za-z0-9._=+-]", "_", f"{Path(first.task_text).name}-{Path(first.model_text).name}")
    return f"{readable[:120]}-{hashlib.sha256(compared.encode()).hexdigest()[:8]}.html"


def _recorded_limit(config: RunConfig, out: Path) -> float | None:
    """The limit of a run in ``out`` that differs from this run at most in method, seed and limit; None without one."""
    free, lines = ("method", "sources.method", "seed", "budget.limit"), {config.recipe: _lines([config])[0]}
    for file in sorted(out.glob(f"*/{RUN_FILE}")):
        recorded = history(file.parent).config
        if recorded is None:
            continue
        recipe = method_recipe(config.recipe, str(recorded["method"].get("text")))
        if recipe not in lines:
            lines[recipe] = _lines([replace(config, recipe=recipe)])[0]
        if all(name.startswith(free) for name, _, _ in differences(recorded, lines[recipe])):
            return float(recorded["budget"]["limit"])
    return None


def _plain_step(config: RunConfig) -> float:
    """The median time of a plain step in seconds."""
    with settings(config):
        trainer, loader, clock = Trainer(config, Plain()), loader_of(config), Clock(config.on())
        batches: Iterator[Any] = chain.from_iterable(loader.batches(epoch) for epoch in count())
        clock.start()
        for batch in islice(batches, TIMED):
            trainer.step(batch, 0.0)
            clock.lap()
        clock.settle()
    return median(clock.laps)
