"""What a configuration stands for: its task, its batches, its method."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from lowland.lab.config import RunConfig
from lowland.lab.loader import Loader
from lowland.lab.recipes import method_defaults
from lowland.lab.tasks import NoiseKind, Task, load
from lowland.method import Method
from lowland.methods import make


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


def loader_of(config: RunConfig, task: Task) -> Loader:
    """The batches of a run, in the order that its seed gives.

    All are full, so that every step costs the same and a gradient means as much for a method that keeps a batch as
    for one that does not. What an epoch leaves out is drawn anew each time.
    """
    layout = config.recipe.channels_last
    return Loader(task, config.recipe.batch_size, config.seed, device=config.on(), channels_last=layout, drop_last=True)


def complete(config: RunConfig, steps_per_epoch: int) -> Method:
    """The method that a configuration's text stands for, with open fields filled by the recipe."""
    make(config.method)  # an unknown name is refused before defaults for it are looked up
    key, epochs = config.method.partition(":")[0], float(config.recipe.epochs)
    if config.budget.kind != "seconds":  # how long training really is, at one gradient per step
        epochs = config.budget.limit / steps_per_epoch
    defaults = method_defaults(config.task, config.model, key, steps_per_epoch, epochs)
    return make(config.method, **defaults)
