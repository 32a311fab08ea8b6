"""The configuration of one run: the settings that decide its trajectory, and the device and folders it uses."""

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
Executor = Literal["local", "auto"]
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of one run. On one machine, equal configurations give bit-identical weights.

    Args:
        task: The task; its text in the run file is ``names.spell(task)``.
        model: A model name for ``task.model``, ``file.py:Net``, ``package.module:Net``, or a function that makes a
            module.
        method: A method as text, such as ``sampa:rho=0.1``, or as an object.
        seed: The seed of initialization, data order, augmentation, label noise and the method's random choices.
        recipe: The optimizer and its schedule.
        budget: The steps, gradients or seconds that the run may use.
        contestant: The name of the run in a comparison, such as ``plain@epochs=16``; None is the method's text.
        validation: The fraction of the training part that is held out for validation, in [0, 1), if the data has no
            validation part.
        select: The epoch whose metrics a comparison uses: the ``last``, or the ``best`` on the validation part.
        patience: Training stops after this many epochs without a better validation metric, >= 1; None never stops.
        data: The folder of the data files; None is the environment variable ``LOWLAND_DATA``.
        threads: The number of PyTorch's CPU threads, >= 1; None keeps PyTorch's choice.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.
        mesh: How the ranks that torchrun starts divide the work, such as ``probe=2,data=2``; None divides every batch,
            and "auto" is the mesh for which the planner predicts the fastest steps.
            A single process computes the same without ranks, except for computations that see one rank's part of a
            batch at a time: BatchNorm, and methods that perturb or choose examples on each rank separately.
        executor: What answers probes that a method asks together: "local", one after the other; "auto", one pass for
            all of them where the first steps show that this is faster. The results differ by rounding.
        shard: Shard the weights over the data dimension with ``fully_shard``; otherwise every rank has all weights.
        tensorboard: Write TensorBoard event files.
        checkpoint_every: The number of steps between checkpoints, >= 1; None saves every half minute, or less often
            if writing takes more than 2 % of the time.
        keep: The number of checkpoints to keep, >= 1.
        trial: Whether the run is a trial of a sweep; reports have a table of their own for trials.
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
    executor: Executor = "local"
    shard: bool = False
    tensorboard: bool = False
    checkpoint_every: int | None = None
    keep: int = 2
    trial: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise ArgumentError(
                f"task must be a lowland.lab.Task, but is {self.task!r}; make a task from its name with "
                "lowland.lab.load(name)"
            )
        checks.integer("seed", self.seed, 0, "number seeds from 0")
        checks.one_of("select", self.select, ("last", "best"))
        checks.one_of("executor", self.executor, ("local", AUTO))
        if self.given_mesh is not None:
            parse(self.given_mesh)
        checks.integer("keep", self.keep, 1, "2 survives a damaged checkpoint")
        if self.checkpoint_every is not None:
            checks.integer("checkpoint_every", self.checkpoint_every, 1, "None saves by the clock")
        if self.threads is not None:
            checks.integer("threads", self.threads, 1, "None leaves the choice to PyTorch")
        if self.patience is not None:
            checks.integer("patience", self.patience, 1, "None never stops early")
        if self.shard and self.given_mesh is not None and "data" not in parse(self.given_mesh):
            raise ArgumentError(
                f"shard needs a data dimension, over which it divides the weights, but mesh is {self.mesh!r}; write "
                f"{self.mesh},data=2"
            )
        object.__setattr__(self, "recipe", resolved(self.recipe, self.on()))

    @property
    def given_mesh(self) -> str | None:
        """The mesh that was given; None where it is the default, or where the planner chooses it."""
        return None if self.mesh == AUTO else self.mesh

    @property
    def task_text(self) -> str:
        """The task as text, such as ``cifar10:noise=0.4``."""
        return names.spell(self.task)

    @property
    def model_text(self) -> str:
        """The model's name, or module and name of the function that makes it."""
        if isinstance(self.model, str):
            return self.model
        return f"{self.model.__module__}:{getattr(self.model, '__qualname__', type(self.model).__qualname__)}"

    @property
    def method_text(self) -> str:
        """The method as text; its ``repr`` if it has no text, such as a method with a schedule."""
        if isinstance(self.method, str):
            return self.method
        try:
            return spell(self.method)
        except ArgumentError:
            return repr(self.method)

    @property
    def label(self) -> str:
        """The name of the run in a comparison."""
        return self.contestant or self.method_text

    def maker(self) -> tuple[Callable[[], nn.Module], Any]:
        """A function that makes the model, and the external class or function behind it (None for the task's models).

        Raises:
            ArgumentError: ``model`` is a module, or cannot be loaded.
        """
        if isinstance(self.model, str):
            return names.model_maker(self.task.seeded(self.seed), self.model)
        if isinstance(self.model, nn.Module):
            raise ArgumentError(
                "model must be a name, or a function that makes a fresh module for every run, but is a module; pass "
                "its class, or a function that returns Net(…)"
            )
        return self.model, self.model

    def on(self) -> torch.device:
        """The torch device of this run; on several ranks with GPUs, the rank's own GPU."""
        return place(self.device)
