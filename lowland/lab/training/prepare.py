"""What a configuration stands for: its task, its batches, its method."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.recipe import keys
from lowland.lab.tasks import NoiseKind, Task, load
from lowland.lab.training.costs import EXAMPLES, STEPS, gradients_per_step
from lowland.lab.training.defaults import Training, method_defaults
from lowland.methods import make
from lowland.methods.base import Method


def task_of(config: RunConfig) -> Task:
    """The task that a configuration names; its label noise differs from seed to seed.

    The last one is kept: the runs of a comparison share it, and without label noise so do all seeds.
    """
    data = config.data or os.environ.get("LOWLAND_DATA")
    return _loaded(
        config.task,
        None if data is None else Path(data),
        config.noise,
        config.noise_kind,
        config.seed if config.noise else 0,
    )


@lru_cache(maxsize=1)
def _loaded(name: str, data: Path | None, noise: float, kind: NoiseKind, seed: int) -> Task:
    return load(name, data=data, noise=noise, noise_kind=kind, noise_seed=seed)


def loader_of(config: RunConfig, task: Task, share: tuple[int, int] = (0, 1)) -> Loader:
    """The batches of a run, in the order that its seed gives.

    All are full, so that every step costs the same and a gradient means as much for a method that keeps a batch as
    for one that does not. What an epoch leaves out is drawn anew each time.
    """
    layout = config.recipe.channels_last
    recipe, place = config.recipe, config.on()
    return Loader(task, recipe.batch_size, config.seed, device=place, channels_last=layout, drop_last=True, share=share)


def complete(config: RunConfig, steps_per_epoch: int, examples: int) -> Method:
    """The method that a configuration's text stands for, with open fields filled by the recipe.

    What a recipe gives in epochs or shares of the training becomes a number of steps, so the length of the training
    must be known. Under a budget of steps it is the budget. A budget of gradients is divided by the gradients that the
    method takes per step, and so is one of seconds, which by default is worth the recipe's epochs of plain training.
    The divisor is counted while a tiny model trains, with the same shares of its training; adaptive methods may take
    more here, and numbers of steps in the text are not scaled. It is an estimate, and the run file has what it gave.

    Args:
        config: The run.
        steps_per_epoch: Batches in an epoch, >= 1.
        examples: Size of the training set, >= 1.
    """
    training = Training(
        model=config.model,
        steps=_budgeted(config, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        examples=examples,
        lr=config.recipe.lr,
    )
    if config.budget.kind != "steps" and keys(config.method) != ["plain"]:
        price = gradients_per_step(_filled(config.method, _tiny(training)))
        training = replace(training, steps=max(1, round(training.steps / price)))
    return _filled(config.method, training)


def _filled(method: str, training: Training) -> Method:
    return make(method, fill=lambda key: method_defaults(key, training))


def _budgeted(config: RunConfig, steps_per_epoch: int) -> int:
    """How many steps the budget allows at one gradient each."""
    if config.budget.kind == "seconds":
        return config.recipe.epochs * steps_per_epoch
    return math.ceil(config.budget.limit)


def _tiny(training: Training) -> Training:
    """The training of :mod:`lowland.lab.training.costs`, divided into as many epochs."""
    epoch = round(STEPS * training.steps_per_epoch / training.steps)
    return replace(training, steps=STEPS, steps_per_epoch=max(1, epoch), examples=EXAMPLES)
