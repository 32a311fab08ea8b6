"""Several methods times several seeds, under one budget, on the same data in the same order."""

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
from lowland.lab.studies.contestants import grid
from lowland.lab.studies.study import Display, Grid, conduct
from lowland.lab.training.clock import Clock
from lowland.lab.training.prepare import check_select, complete, line_of, loader_of
from lowland.lab.training.trainer import Trainer, settings
from lowland.methods import METHODS
from lowland.methods.plain import Plain
from lowland.parallel import broadcast
from lowland.runs.file import RUN_FILE, history

ALL = "all"  # among the methods of a comparison: every one there is
TIMED = 60  # plain steps from which the default of a budget in seconds is taken


def expand(methods: Sequence[str], base: RunConfig) -> tuple[list[str], list[str]]:
    """The methods that are meant, where ``all`` stands for every key of METHODS that works on the model.

    With ``all`` among them, methods may be named twice. One that is named itself is never left out: what it has against
    the model is an error then, from :func:`compare`.

    Args:
        methods: Methods as text, or ``all``.
        base: What the runs share.

    Returns:
        The methods, and a sentence for each that ``all`` leaves out.
    """
    if ALL not in methods:
        return list(methods), []
    left_out = {key: reason for key in METHODS if key not in methods and (reason := _objection(key, base))}
    meant = (text for method in methods for text in (METHODS if method == ALL else [method]))
    kept = [text for text in dict.fromkeys(meant) if text not in left_out]
    return kept, [f"{ALL} is without {key}: {reason}." for key, reason in left_out.items()]


def _objection(key: str, base: RunConfig) -> str | None:
    """What a method has against the model or the optimizer, in its own words; None where it works."""
    try:
        _check_method(grid(base, [key], 1)[0])
    except (ParameterError, UsageError) as error:
        return str(error)
    return None


def _check_method(config: RunConfig) -> None:
    """Refuse a method that cannot work on the model: an engine is made, and nothing computed."""
    with torch.random.fork_rng(devices=[config.on()] if config.on().type == "cuda" else []):
        Trainer(config, complete(config, loader_of(config)))


def compare(runs: Sequence[RunConfig], out: Path, display: Display, *, command: Sequence[str] = ()) -> list[Path]:
    """Do what is missing of a comparison: finished runs are kept, unfinished ones resumed.

    A run's folder has a hash of all that makes it this run in its name: task and model with their sources, recipe,
    method, budget and lowland's version. So what another recipe or another width has trained is never taken for it.

    Args:
        runs: What :func:`grid` made.
        out: The folder that gets one folder per run.
        display: Shows the progress.
        command: What was typed, for the record.

    Returns:
        The run folders.

    Raises:
        ArgumentError: A method is unknown, or named twice in other words.
        ParameterError: A method cannot work on the model; nothing has been trained then, either.
        UsageError: A method cannot work with the optimizer; the same.
    """
    lines = _lines(runs)
    _check_twice(lines)
    names = {id(config): str(line["run"]) for config, line in zip(runs, lines, strict=True)}
    missing = {config.label: config for config in runs if history(out / names[id(config)]).end is None}
    for config in missing.values():
        _check_method(config)
    done = conduct(Grid(runs), out, display, name=lambda config: names[id(config)], command=command)
    return [folder for folder, _ in done]


def budget(kind: Kind, limit: float | None, base: RunConfig, out: Path) -> Budget:
    """The budget of a comparison; without a limit, what plain training takes for the recipe's epochs.

    In seconds that is measured, on this machine and once: later calls find it in the runs in ``out``.

    Args:
        kind: What is limited.
        limit: How much; None stands for the default.
        base: What the runs share; its budget is not looked at.
        out: Where the runs are, or will be.
    """
    if limit is not None:
        return Budget(kind=kind, limit=limit)
    steps = base.recipe.epochs * len(loader_of(base))
    if kind != "seconds":
        return Budget(kind=kind, limit=steps)
    timed = replace(base, method="plain", budget=Budget(kind=kind, limit=1.0))
    found = _recorded_limit(timed, out)
    return Budget(kind=kind, limit=broadcast(found or float(f"{steps * _plain_step(timed):.3g}")))


def _check_twice(lines: Sequence[dict[str, Any]]) -> None:
    """Refuse one run under two names, such as sam and sam:rho=0.05.

    Raises:
        ArgumentError: There is one.
    """
    first: list[dict[str, Any]] = []
    for line in (line for line in lines if line["seed"] == lines[0]["seed"]):
        for other in first:
            if not differences(other, line):
                raise ArgumentError(
                    f"methods must differ, but {other['method']['text']} and {line['method']['text']} are the same "
                    "here; leave one out"
                )
        first.append(line)


def _lines(runs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """The first lines of all runs, seed after seed as they come."""
    lines: list[dict[str, Any]] = []
    loaders: dict[tuple[int, int, bool], Loader] = {}
    for config in runs:
        key = (config.seed, config.recipe.batch_size, config.recipe.channels_last)
        if key not in loaders:
            loaders = {key: loader_of(config)} | {k: v for k, v in loaders.items() if k[0] == config.seed}
        check_select(config, loaders[key])
        lines.append(line_of(config, loaders[key], complete(config, loaders[key])))
    return lines


def run_name(config: RunConfig) -> str:
    """The name of a run's folder."""
    return str(_lines([config])[0]["run"])


def page_name(runs: Sequence[RunConfig]) -> str:
    """The page's file name: task, model, and a hash of who is compared, so that no comparison overwrites another's."""
    first = runs[0]
    compared = json.dumps(sorted({(r.label, r.seed, repr(r.recipe), repr(r.budget), r.select) for r in runs}))
    readable = re.sub(r"[^A-Za-z0-9._=+-]", "_", f"{Path(first.task_text).name}-{Path(first.model_text).name}")
    return f"{readable[:120]}-{hashlib.sha256(compared.encode()).hexdigest()[:8]}.html"


def _recorded_limit(config: RunConfig, out: Path) -> float | None:
    """The limit of runs in ``out`` that differ from this one in method, its recipe, seed and limit alone."""
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
    """Seconds of a plain step, the median of some."""
    with settings(config):
        trainer, loader, clock = Trainer(config, Plain()), loader_of(config), Clock(config.on())
        batches: Iterator[Any] = chain.from_iterable(loader.batches(epoch) for epoch in count())
        clock.start()
        for batch in islice(batches, TIMED):
            trainer.step(batch, 0.0)
            clock.lap()
    return median(clock.laps)
