"""Makes the parts of a run from its configuration: the loader, the method and the config line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lowland.core.errors import ArgumentError
from lowland.lab.config import RunConfig
from lowland.lab.contract import datasets_of
from lowland.lab.data.loader import Loader
from lowland.lab.identity import config_line, shapes
from lowland.lab.task import Task
from lowland.lab.training.defaults import Training, method_defaults
from lowland.lab.training.trainer import fresh_model
from lowland.methods import make
from lowland.methods.base import Method
from lowland.parallel import World

_cached_parts: list[tuple[Task, Path | None, Mapping[str, Any]]] = []  # the data of the last task

_cached_loader: list[tuple[tuple[Any, ...], Mapping[str, Any], Loader]] = []  # the last loader


def parts_of(config: RunConfig) -> Mapping[str, Any]:
    """The data of a run's task for its seed; consecutive runs with equal data share it."""
    task, data = config.task.seeded(config.seed), config.data or os.environ.get("LOWLAND_DATA")
    root = None if data is None else Path(data)
    for cached_task, cached_root, parts in _cached_parts:
        if _same(cached_task, task) and cached_root == root:
            return parts
    _cached_parts[:] = [(task, root, datasets_of(task, root))]
    return _cached_parts[0][2]


def _same(one: Task, other: Task) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except RuntimeError:  # fields that are tensors have no single truth value
        return False


def loader_of(config: RunConfig, batch_part: tuple[int, int] = (0, 1)) -> Loader:
    """The loader of a run, which gives full batches only.

    With full batches every step costs the same, and all gradients average over equally many examples, also for a
    method that keeps a batch. Each epoch leaves out other examples. A loader has no state, so consecutive runs with
    the same seed share it.

    Args:
        config: The run.
        batch_part: The part of every batch that this rank gets: its index and the number of parts.
    """
    parts, recipe = parts_of(config), config.recipe
    key = (
        recipe.batch_size,
        config.seed,
        config.validation,
        config.on(),
        recipe.channels_last,
        batch_part,
        config.task.cut,
    )
    for cached_key, cached_parts, cached in _cached_loader:
        if cached_key == key and cached_parts is parts:
            return cached
    loader = Loader(
        parts,
        recipe.batch_size,
        config.seed,
        validation=config.validation,
        device=config.on(),
        channels_last=recipe.channels_last,
        drop_last=True,
        batch_part=batch_part,
        cut=config.task.cut,
    )
    _cached_loader[:] = [(key, parts, loader)]
    return loader


def check_select(config: RunConfig, loader: Loader) -> None:
    """Refuse ``select="best"`` and ``patience`` without a validation part.

    Raises:
        ArgumentError: There is no validation part.
    """
    name = "select" if config.select == "best" else "patience" if config.patience is not None else None
    if name is not None and "validation" not in loader.parts:
        raise ArgumentError(
            f"{name} needs a validation part, because no epoch is chosen on the test part, but there is none; give "
            "validation, the fraction of the training part to hold out, such as 0.1"
        )


@lru_cache(maxsize=8)
def _shapes(config: RunConfig) -> str:
    return _shapes_of_new(config)


def _shapes_of_new(config: RunConfig) -> str:
    """The shapes of the run's model, of which every run must have its own.

    Raises:
        ArgumentError: The function that makes the model returns one that it has made before, or shares its weights.
    """
    model, another = fresh_model(config), fresh_model(config)
    own = {id(p) for p in model.parameters() if p.requires_grad}
    shared = [name for name, p in another.named_parameters() if id(p) in own]
    if shared:
        raise ArgumentError(
            f"model {config.model_text} must be made anew for every run, but two of them share the weights "
            f"{shared[0]}, so each run would begin where another has ended; make the module inside of the function, "
            "or return copy.deepcopy(module)"
        )
    return shapes(model)


def line_of(
    config: RunConfig, loader: Loader, method: Method, *, command: Sequence[str] = (), world: World | None = None
) -> dict[str, Any]:
    """The config line of a run; the arguments are those of :func:`~lowland.lab.identity.config_line`."""
    # The shapes do not depend on the fields replaced here, so the cache holds one entry for all runs of a comparison.
    plain = replace(config, method="plain", contestant=None, seed=0, recipe=type(config.recipe)())
    try:
        digest = _shapes(plain)
    except TypeError:  # the task is not hashable
        digest = _shapes_of_new(plain)
    return config_line(config, method, digest, steps_per_epoch=len(loader), command=command, world=world)


def complete(config: RunConfig, loader: Loader) -> Method:
    """Make the method of a run; fields that its text omits get defaults for the task and the recipe.

    Args:
        config: The run.
        loader: The loader of the run.
    """
    if isinstance(config.method, Method):
        return config.method
    training = Training(steps_per_epoch=len(loader), examples=loader.positions, lr=config.recipe.lr)

    def fill(key: str) -> dict[str, Any]:
        return {**config.task.defaults(key, config.model_text), **method_defaults(key, training)}

    return make(config.method, fill=fill)
