"""A task with the batches, models, configurations and losses that its checks need."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowland.core.batch import Batches
from lowland.core.errors import ArgumentError
from lowland.core.loss import Terms, terms
from lowland.lab import models
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.contract import datasets_of, recipe_of
from lowland.lab.data.wrapped import dataset
from lowland.lab.task import Task
from lowland.lab.training.evaluate import criterion_of

EXAMPLES = 8  # the largest batch of the checks


@dataclass(frozen=True)
class Trial:
    """A task with a model and a data folder for its checks.

    Args:
        task: The task.
        model: The name of the model.
        root: The folder of data files; None if there is none.
    """

    task: Task
    model: str
    root: Path | None

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The parts of the data as lowland data sets."""
        return {name: dataset(name, part) for name, part in datasets_of(self.task.seeded(0), self.root).items()}

    @cached_property
    def batches(self) -> Batches:
        """The object that cuts the task's batches."""
        return Batches(self.task.cut)

    def batch(self, part: str, seed: int | None = None) -> Any:
        """A batch of the first examples of a part; ``seed`` is the seed of the augmentation, None is without it."""
        data = self.parts[part]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return data.batch(torch.arange(min(EXAMPLES, len(data))), generator)

    def net(self, seed: int = 0) -> nn.Module:
        """A new model, as a run with this seed makes it."""
        config = self.config("plain", seed)
        return self.task.seeded(seed).initialize(models.seeded(config.maker()[0], seed))

    def config(self, method: str, seed: int = 0) -> RunConfig:
        """The configuration of a run on the CPU with the task's own recipe."""
        recipe = recipe_of(self.task, self.model)
        budget = Budget(limit=1.0)
        return RunConfig(
            task=self.task, model=self.model, method=method, seed=seed, recipe=recipe, budget=budget, device="cpu"
        )

    def losses(self) -> dict[str, Callable[[nn.Module, Any], Terms]]:
        """The functions of model and batch that compute the task's losses, by the names of its methods."""
        recipe, size = recipe_of(self.task, self.model), self.batches.known_size
        found: dict[str, Callable[[nn.Module, Any], Terms]] = {
            "loss": lambda model, batch: terms(self.task.loss(model, batch), size(batch)),
            "training_loss": lambda model, batch: terms(self.task.training_loss(model, batch, recipe), size(batch)),
        }
        parts = criterion_of(self.task, recipe)
        if parts is not None:
            found["training_criterion"] = lambda model, batch: terms(parts(model, batch), size(batch))
        return found

    def half(self) -> int:
        """A part size just above half a batch, so that a batch is cut into two parts of different sizes."""
        return self.batches.size(self.batch("test")) // 2 + 1

    def uncut(self) -> str | None:
        """The reason why a batch or its loss cannot be cut, and the consequences; None if both can be cut."""
        batch, task_name = self.batch("test"), type(self.task).__name__
        if self.batches.known_size(batch) is None:
            return (
                f"a batch of {task_name} cannot be cut, so accumulate, several ranks and methods that choose examples "
                "refuse it; give cut, an object with size(batch) and take(batch, index)"
            )
        means = [name for name, loss in self.losses().items() if loss(self.net().eval(), batch).count is None]
        if not means:
            return None
        return (
            f"{means[0]} of {task_name} is a mean, which cannot be cut, so accumulate and methods that choose examples "
            "refuse it; return one loss per example, or lowland.Loss(total, count)"
        )


def trial_of(task: Task, model: str | None = None, root: str | Path | None = None) -> Trial:
    """Make a trial of a task.

    Args:
        task: The task.
        model: The name of the model; None is the first of ``task.models``.
        root: The folder of data files; None is the environment variable ``LOWLAND_DATA``.

    Raises:
        ArgumentError: ``task`` is not a task.
    """
    if not isinstance(task, Task):
        raise ArgumentError(f"task must be a lowland.lab.Task, but is {task!r}; pass an object, such as Pose()")
    place = root or os.environ.get("LOWLAND_DATA")
    return Trial(task, model or task.models[0], None if place is None else Path(place))
