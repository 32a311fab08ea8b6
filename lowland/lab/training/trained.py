"""Reads a finished run back: its task, its data and its model with the final weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowland.core.errors import StateError
from lowland.lab import names
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.identity import sources
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task
from lowland.lab.training import checkpoint
from lowland.lab.training.average import PREFIX
from lowland.lab.training.evaluate import fingerprint
from lowland.lab.training.prepare import loader_of
from lowland.lab.training.trainer import fresh_model
from lowland.runs.reader import read
from lowland.runs.record import RunRecord


@dataclass(frozen=True)
class Trained:
    """A finished run with its final weights: those that the run evaluated, so with ``ema`` their moving average.

    Args:
        record: The record of the run.
        config: The configuration of the run; its method is the text ``plain``, because nothing is trained.
        task: The task for the run's seed.
        model: The model with the final weights, in evaluation mode.
        loader: The data of the run, with the validation part of its seed.
    """

    record: RunRecord
    config: RunConfig
    task: Task
    model: nn.Module
    loader: Loader


def load_run(
    folder: str | Path,
    *,
    task: Task | None = None,
    model: Callable[[], nn.Module] | None = None,
    data: Path | None = None,
    device: str = "auto",
) -> Trained:
    """Read a finished run and verify that its weights are those that the run file names.

    Args:
        folder: The run folder.
        task: The task of the run, if it cannot be made from its recorded text, such as a class of a notebook.
        model: The function that makes the model, if it cannot be found by its recorded name.
        data: The folder of the data files; None is the environment variable ``LOWLAND_DATA``.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.

    Raises:
        DataError: The folder has no run file.
        StateError: The run has not finished, its checkpoints are missing, or its task, model or weights are not the
            recorded ones any more.
    """
    record = read(folder)
    place = record.path.parent
    if record.end is None:
        raise StateError(f"runs must have finished, but {place} has not; go on with it first: {record.command}")
    config = _config(record, task, model, data, device)
    net = fresh_model(config)
    newest = checkpoint.latest(place, lambda message: None)
    if newest is None:
        raise StateError(
            f"runs must have a checkpoint, but {place} has none, so its weights are lost; train it again in another "
            "folder"
        )
    _, tensors = checkpoint.load(newest)
    _load(net, tensors, place)
    found = fingerprint(net)
    if found != record.end.weights_sha256:
        raise StateError(
            f"the weights of {place} must have the hash {record.end.weights_sha256[:8]} that its run file names, but "
            f"have {found[:8]}; the checkpoint is not that of the end of the run, so train it again in another folder"
        )
    return Trained(record, config, config.task.seeded(config.seed), net.to(config.on()).eval(), loader_of(config))


def _config(
    record: RunRecord, task: Task | None, model: Callable[[], nn.Module] | None, data: Path | None, device: str
) -> RunConfig:
    """The configuration of the recorded run, without its method.

    Raises:
        StateError: ``task`` is another task than the recorded one, or its code or that of the model has changed.
    """
    task = names.make(record.task) if task is None else task
    if names.spell(task) != record.task:
        raise StateError(
            f"task must be that of the run, {record.task}, but is {names.spell(task)}; pass the run's task"
        )
    known = {field.name for field in dataclasses.fields(Recipe)}
    recipe: dict[str, Any] = {name: value for name, value in record.recipe.items() if name in known}
    config = RunConfig(
        task=task,
        model=model or record.model,
        method="plain",
        seed=record.seed,
        recipe=Recipe(**recipe),
        budget=Budget(kind="steps", limit=1.0),
        validation=record.validation,
        data=data,
        device=device,
    )
    current = sources(config)
    changed = [
        what for what in ("task", "model") if what in record.sources and current.get(what) != record.sources[what]
    ]
    if changed:
        what = changed[0]
        raise StateError(
            f"the code of the {what} must be that of the run in {record.path.parent}, with the hash "
            f"{record.sources[what]}, but has {current.get(what)}, so other values would be measured; restore the "
            "file, or train the run again"
        )
    return config


def _load(model: nn.Module, tensors: dict[str, Tensor], place: Path) -> None:
    """Load the evaluated weights: the moving average where the run kept one."""
    saved = {n.removeprefix(checkpoint.MODEL): t for n, t in tensors.items() if n.startswith(checkpoint.MODEL)}
    saved |= {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    own = model.state_dict()
    wrong = [n for n in own.keys() | saved.keys() if n not in own or n not in saved or own[n].shape != saved[n].shape]
    if wrong:
        raise StateError(
            f"the model must be that of the run in {place}, but {sorted(wrong)[0]} is missing or has another shape; "
            "use the task and the model with which it was trained"
        )
    model.load_state_dict(saved)
