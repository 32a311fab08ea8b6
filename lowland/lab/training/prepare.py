"""What a configuration stands for: its batches, its method, its first line."""

from __future__ import annotations

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
from lowland.lab.task import Task
from lowland.lab.training.defaults import Training, method_defaults
from lowland.lab.training.trainer import fresh_model
from lowland.methods import make
from lowland.methods.base import Method
from lowland.parallel import World

_kept: list[tuple[Task, Path | None, Mapping[str, Any]]] = []  # the data of the last task, which runs share

_loaders: list[tuple[tuple[Any, ...], Mapping[str, Any], Loader]] = []  # the last one


def parts_of(config: RunConfig) -> Mapping[str, Any]:
    """The data of a run's task, as its seed sees it; loaded once for the runs of a comparison that share it."""
    task, data = config.task.seeded(config.seed), config.data or os.environ.get("LOWLAND_DATA")
    root = None if data is None else Path(data)
    for known, place, parts in _kept:
        if _same(known, task) and place == root:
            return parts
    _kept[:] = [(task, root, task.datasets(root))]
    return _kept[0][2]


def _same(one: Task, other: Task) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except RuntimeError:  # fields that are tensors
        return False


def loader_of(config: RunConfig, share: tuple[int, int] = (0, 1)) -> Loader:
    """The batches of a run, in the order that its seed gives.

    All are full, so that every step costs the same and a gradient means as much for a method that keeps a batch as
    for one that does not. What an epoch leaves out is drawn anew each time. A loader keeps no position, so the runs of
    one seed share theirs.
    """
    parts, recipe = parts_of(config), config.recipe
    key = (recipe.batch_size, config.seed, config.validation, config.on(), recipe.channels_last, share, config.task.cut)
    for known, data, loader in _loaders:
        if known == key and data is parts:
            return loader
    made = Loader(
        parts,
        recipe.batch_size,
        config.seed,
        validation=config.validation,
        device=config.on(),
        channels_last=recipe.channels_last,
        drop_last=True,
        share=share,
        cut=config.task.cut,
    )
    _loaders[:] = [(key, parts, made)]
    return made


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

    Args:
        config: The run.
        loader: Its batches.
    """
    if isinstance(config.method, Method):
        return config.method
    training = Training(steps_per_epoch=len(loader), examples=loader.positions, lr=config.recipe.lr)

    def fill(key: str) -> dict[str, Any]:
        return {**config.task.defaults(key, config.model_text), **method_defaults(key, training)}

    return make(config.method, fill=fill)
