"""What a configuration stands for: its batches, its method, its first line."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lowland.core.errors import ArgumentError
from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.identity import config_line, shapes
from lowland.lab.recipe import keys
from lowland.lab.task import Task
from lowland.lab.training.costs import EXAMPLES, STEPS, gradients_per_step
from lowland.lab.training.defaults import Training, method_defaults
from lowland.lab.training.trainer import fresh_model
from lowland.methods import make
from lowland.methods.base import Method
from lowland.parallel import World

_kept: list[tuple[Task, Path | None, Mapping[str, Any]]] = []  # the data of the last task, which runs share


def parts_of(config: RunConfig) -> Mapping[str, Any]:
    """The data of a run's task, as its seed sees it; loaded once for the runs of a comparison that share it."""
    task, data = config.task.seeded(config.seed), config.data or os.environ.get("LOWLAND_DATA")
    root = None if data is None else Path(data)
    for known, place, parts in _kept:
        if type(known) is type(task) and known == task and place == root:
            return parts
    _kept[:] = [(task, root, task.datasets(root))]
    return _kept[0][2]


def loader_of(config: RunConfig, share: tuple[int, int] = (0, 1)) -> Loader:
    """The batches of a run, in the order that its seed gives.

    All are full, so that every step costs the same and a gradient means as much for a method that keeps a batch as
    for one that does not. What an epoch leaves out is drawn anew each time.
    """
    recipe = config.recipe
    return Loader(
        parts_of(config),
        recipe.batch_size,
        config.seed,
        validation=config.validation,
        device=config.on(),
        channels_last=recipe.channels_last,
        drop_last=True,
        share=share,
        cut=config.task.cut,
    )


def check_select(config: RunConfig, loader: Loader) -> None:
    """Refuse to choose an epoch where there is no validation part to choose it on.

    Raises:
        ArgumentError: There is none.
    """
    name = "select" if config.select == "best" else "patience" if config.patience is not None else None
    if name is not None and "validation" not in loader.parts:
        raise ArgumentError(
            f"{name} needs a validation part, since the test part chooses nothing, but there is none; give validation, "
            "the share of the training part to keep for it, such as 0.1"
        )


@lru_cache(maxsize=8)
def _shapes(config: RunConfig) -> str:
    return shapes(fresh_model(config))


def line_of(
    config: RunConfig, loader: Loader, method: Method, *, command: Sequence[str] = (), world: World | None = None
) -> dict[str, Any]:
    """The first line of a run's file."""
    # The model's shapes do not depend on what is replaced here, so that it is made once for a comparison.
    plain = replace(config, method="plain", contestant=None, seed=0, recipe=type(config.recipe)())
    try:
        found = _shapes(plain)
    except TypeError:  # a task that has no hash
        found = shapes(fresh_model(plain))
    return config_line(config, method, found, steps_per_epoch=len(loader), command=command, world=world)


def complete(config: RunConfig, loader: Loader) -> Method:
    """The method that a configuration's text stands for, with open fields filled by the recipe.

    What a recipe gives in epochs or shares of the training becomes a number of steps, so the length of the training
    must be known. Under a budget of steps it is the budget. A budget of gradients is divided by the gradients that the
    method takes per step, and so is one of seconds, which by default is worth the recipe's epochs of plain training.
    The divisor is counted while a tiny model trains, with the same shares of its training; adaptive methods may take
    more here, and numbers of steps in the text are not scaled. It is an estimate, and the run file has what it gave.

    Args:
        config: The run.
        loader: Its batches.
    """
    training = Training(
        steps=_budgeted(config, len(loader)),
        steps_per_epoch=len(loader),
        examples=loader.positions,
        lr=config.recipe.lr,
    )
    if isinstance(config.method, Method):
        return config.method
    if config.budget.kind != "steps" and keys(config.method) != ["plain"]:
        price = gradients_per_step(_filled(config, _tiny(training)))
        training = replace(training, steps=max(1, round(training.steps / price)))
    return _filled(config, training)


def _filled(config: RunConfig, training: Training) -> Method:
    def fill(key: str) -> dict[str, Any]:
        return {**config.task.defaults(key, config.model_text), **method_defaults(key, training)}

    assert isinstance(config.method, str)
    return make(config.method, fill=fill)


def _budgeted(config: RunConfig, steps_per_epoch: int) -> int:
    """How many steps the budget allows at one gradient each."""
    if config.budget.kind == "seconds":
        return config.recipe.epochs * steps_per_epoch
    return math.ceil(config.budget.limit)


def _tiny(training: Training) -> Training:
    """The training of :mod:`lowland.lab.training.costs`, divided into as many epochs."""
    epoch = round(STEPS * training.steps_per_epoch / training.steps)
    return replace(training, steps=STEPS, steps_per_epoch=max(1, epoch), examples=EXAMPLES)
