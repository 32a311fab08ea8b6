"""One run, complete: what decides its trajectory, and where it is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.lab import names
from lowland.lab.budget import Budget
from lowland.lab.recipe import Recipe, resolved
from lowland.lab.task import Task
from lowland.methods import spell
from lowland.methods.base import Method
from lowland.parallel import parse, place

Select = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: equal configurations give equal weights, bit for bit, on the same machine.

    Args:
        task: The task; its text in the run file is ``names.spell(task)``.
        model: What ``task.model`` gets, ``file.py:Net``, ``package.module:Net``, or a function that makes a module.
        method: Method as text, such as ``sampa:rho=0.1``, or a method.
        seed: Of initialization, data order, augmentation, label noise and the method's own draws.
        recipe: Optimizer and schedule.
        budget: What the run may spend.
        contestant: What the run is called in a comparison, such as ``plain@epochs=16``; None is the method's text.
        validation: Share of the training part that is kept for validation, in [0, 1), where the data has no such part.
        select: Which epoch's figure stands for the run: the ``last``, or the ``best`` on validation.
        patience: Epochs without a better figure on validation after which training stops, >= 1; None never stops.
        data: Folder of the data files; None is the environment variable ``LOWLAND_DATA``.
        threads: Of PyTorch on the CPU, >= 1; None leaves its choice.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
        mesh: How the ranks that torchrun starts share the work, such as ``probe=2,data=2``; None divides every batch.
            On a single process it changes nothing but what a rank's share of a batch alone would have changed.
        shard: Whether ``fully_shard`` divides the weights over the data dimension; otherwise every rank has all.
        tensorboard: Whether to write event files.
        checkpoint_every: Steps between checkpoints, >= 1; None saves by the clock, every half minute or less often.
        keep: Checkpoints kept, >= 1.
    """

    task: Task
    model: str | Callable[[], nn.Module]
    method: str | Method
    seed: int
    recipe: Recipe
    budget: Budget
    contestant: str | None = None
    validation: float = 0.0
    select: Select = "last"
    patience: int | None = None
    data: Path | None = None
    threads: int | None = None
    device: str = "auto"
    mesh: str | None = None
    shard: bool = False
    tensorboard: bool = False
    checkpoint_every: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise ArgumentError(
                f"task must be a lowland.lab.Task, but is {self.task!r}; a name becomes one by lowland.lab.load(name)"
            )
        checks.integer("seed", self.seed, 0, "number seeds from 0")
        checks.one_of("select", self.select, ("last", "best"))
        if self.mesh is not None:
            parse(self.mesh)
        checks.integer("keep", self.keep, 1, "2 survives a damaged checkpoint")
        if self.checkpoint_every is not None:
            checks.integer("checkpoint_every", self.checkpoint_every, 1, "None saves by the clock")
        if self.threads is not None:
            checks.integer("threads", self.threads, 1, "None leaves the choice to PyTorch")
        if self.patience is not None:
            checks.integer("patience", self.patience, 1, "None never stops early")
        if self.shard and self.mesh is not None and "data" not in parse(self.mesh):
            raise ArgumentError(
                f"shard needs a data dimension, over which it divides the weights, but mesh is {self.mesh!r}; write "
                f"{self.mesh},data=2"
            )
        object.__setattr__(self, "recipe", resolved(self.recipe, self.on()))

    @property
    def task_text(self) -> str:
        """The task as text, such as ``cifar10:noise=0.4``."""
        return names.spell(self.task)

    @property
    def model_text(self) -> str:
        """The model's name, or the place of the function that makes it."""
        if isinstance(self.model, str):
            return self.model
        return f"{self.model.__module__}:{getattr(self.model, '__qualname__', type(self.model).__qualname__)}"

    @property
    def method_text(self) -> str:
        """The method as text; one that has no text, such as one with a schedule, as Python writes it."""
        if isinstance(self.method, str):
            return self.method
        try:
            return spell(self.method)
        except ArgumentError:
            return repr(self.method)

    @property
    def label(self) -> str:
        """What the run is called in a comparison."""
        return self.contestant or self.method_text

    def maker(self) -> tuple[Callable[[], nn.Module], Any]:
        """How the model is made, and what makes it where that is not the task."""
        if isinstance(self.model, str):
            return names.model_maker(self.task.seeded(self.seed), self.model)
        if isinstance(self.model, nn.Module):
            raise ArgumentError(
                "model must be a name, or a function that makes a fresh module for every run, but is a module; pass "
                "its class, or a function that returns Net(…)"
            )
        return self.model, self.model

    def on(self) -> torch.device:
        """The device this run trains on."""
        return place(self.device)
