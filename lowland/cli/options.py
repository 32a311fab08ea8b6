"""The options that ``train`` and ``compare`` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tyro

from lowland.cli.docstrings import parse
from lowland.core.errors import ArgumentError
from lowland.lab import names
from lowland.lab.budget import Budget, Kind
from lowland.lab.config import RunConfig
from lowland.lab.contract import recipe_of
from lowland.lab.recipe import Recipe
from lowland.lab.studies.compare import budget
from lowland.parallel import ranks

DIVERGED = 3  # the exit code after a diverged training


def _changes() -> type:
    """A dataclass with every field of a recipe as an option; None keeps the value of the task's recipe."""
    hints, explanations = get_type_hints(Recipe), parse(Recipe).fields
    fields = [
        (
            name,
            Annotated[hint | None, tyro.conf.arg(help=explanations[name], help_behavior_hint="(default: the task's)")],
            None,
        )
        for name, hint in hints.items()
    ]
    return make_dataclass("Recipe", fields, kw_only=True)  # the help text uses this name as a heading


if TYPE_CHECKING:
    Changes = Any
else:
    Changes = _changes()


@dataclass(kw_only=True)
class Options:
    """The options of a training: task, model, budget, devices and recipe.

    Args:
        task: digits, cifar10:noise=0.4 or another of `lowland tasks`, or your own: my_task.py:Pose:joints=17,
            package.module:Pose.
        model: A model of the task, my_task.py:Net, or a torchvision or timm name; by default the task's first model.
        budget: The resource that is equal for all runs: optimizer steps, gradients, or seconds of training.
        limit: The amount of that resource for each run, > 0; by default the amount that plain training uses for the
            epochs of the recipe.
        validation: Fraction of the training part that is held out for validation, in [0, 1), if the data has no
            validation part.
        select: The epoch whose test metric is compared: the last, or the best on the validation part.
        patience: Epochs without a better validation metric after which a training stops, >= 1; by default it never
            stops early.
        data: Folder of the data files; by default the environment variable LOWLAND_DATA.
        out: Folder for the runs; each run gets its own folder in it.
        threads: CPU threads, >= 1; by default PyTorch's choice.
        device: cpu, cuda, or auto for a GPU if there is one.
        mesh: How the ranks that torchrun starts divide the work, such as probe=2,data=2: probe divides the gradients of
            a step, data divides every batch, and replicate divides every batch for methods that perturb separately in
            each group of ranks; by default every batch is divided. A single process computes the same without ranks,
            except for computations that see one rank's part of a batch at a time: BatchNorm, and methods that perturb
            or choose examples on each rank separately. auto is the mesh for which the planner predicts the fastest
            steps (see lowland plan); the run file says which and why.
        executor: What answers gradients that a method asks together: local, one after the other; auto, one pass for all
            of them where the first steps show that this is faster.
        shard: Shard the weights over the data dimension with fully_shard instead of keeping a copy on every rank; each
            evaluation gathers them temporarily.
        tensorboard: Also write TensorBoard event files.
        checkpoint_every: Steps between checkpoints, >= 1; by default half a minute, or longer if writing would take
            more than 2 % of the time.
        recipe: Optimizer and schedule; by default the task's values (see lowland tasks NAME).
    """

    task: str = "digits"
    model: str | None = None
    budget: Kind = "steps"
    limit: float | None = None
    validation: float = 0.0
    select: Literal["last", "best"] = "last"
    patience: int | None = None
    data: Path | None = None
    out: Path = Path("runs")
    threads: int | None = None
    device: str = "auto"
    mesh: str | None = None
    executor: Literal["local", "auto"] = "local"
    shard: bool = False
    tensorboard: bool = False
    checkpoint_every: int | None = None
    recipe: Changes = field(default_factory=Changes)

    def config(self, seed: int = 0) -> RunConfig:
        """The configuration of a plain run with this seed; computes the limit if the user gave none."""
        task = names.make(self.task)
        model = self.model or task.models[0]
        if self.shard and ranks()[1] == 1:
            raise ArgumentError(
                "--shard divides the weights over several processes, but there is one; start lowland by torchrun "
                "--nproc-per-node 2 -m lowland, or leave --shard out"
            )
        given = {name: value for name, value in asdict(self.recipe).items() if value is not None}
        if given.get("momentum") == 0:
            given.setdefault("nesterov", False)
        config = RunConfig(
            task=task,
            model=model,
            method="plain",
            seed=seed,
            recipe=recipe_of(task, model).replace(**given),
            budget=Budget(kind=self.budget, limit=1.0 if self.limit is None else self.limit),
            **{name: getattr(self, name) for name in _PASSED_ON},
        )
        return replace(config, budget=budget(self.budget, self.limit, config, self.out))


_PASSED_ON = (
    "validation", "select", "patience", "data", "threads", "device", "mesh", "executor", "shard", "tensorboard",
    "checkpoint_every",
)  # fmt: skip


def command(argv: Sequence[str]) -> list[str]:
    """The full command line, ready to be run again."""
    return ["lowland", *argv]
