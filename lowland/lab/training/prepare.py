"""What a configuration stands for: its task, its batches, its method."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.tasks import NoiseKind, Task, load
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

    Args:
        config: The run.
        steps_per_epoch: Batches in an epoch, >= 1.
        examples: Size of the training set, >= 1.
    """
    training = Training(model=config.model, steps_per_epoch=steps_per_epoch, examples=examples, lr=config.recipe.lr)
    return make(config.method, fill=lambda key: method_defaults(key, training))
