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
    """What to train, and under which budget.

    Args:
        task: digits, cifar10:noise=0.4 or another of `lowland tasks`, or your own: my_task.py:Pose:joints=17,
            package.module:Pose.
        model: A model of the task, my_task.py:Net, or a torchvision or timm name; left out, the task's first.
        budget: What every run may spend the same of: optimizer steps, gradients, or seconds of training.
        limit: How much of it, > 0; left out, what plain training takes for the epochs of the recipe.
        validation: Share of the training part that is kept for validation, in [0, 1), where the data has no such part.
        select: Which epoch's test figure is compared: the last, or the best on validation.
        patience: Epochs without a better figure on validation after which a training stops; left out, it never does.
        data: Folder of the data files; left out, the environment variable LOWLAND_DATA.
        out: Folder for the runs, one folder each.
        threads: CPU threads, >= 1; left out, PyTorch's choice.
        device: cpu, cuda, or auto for a GPU where there is one.
        mesh: How the ranks that torchrun starts share the work, such as probe=2,data=2: probe divides the gradients of
            a step, data every batch, replicate every batch for a method that perturbs in each group for itself; left
            out, every batch is divided. A single process computes the same without ranks, but for what sees a rank's
            share alone: BatchNorm, and methods that perturb or choose examples on each rank for itself.
        shard: Divide the weights over the data dimension, with fully_shard, instead of a copy on every rank; each
            evaluation gathers them for a while.
        tensorboard: Write TensorBoard event files, too.
        checkpoint_every: Steps from checkpoint to checkpoint, >= 1; left out, half a minute, or longer where writing
            them would take more than 2 % of the time.
        recipe: Optimizer and schedule; what is left out is the task's (see lowland tasks NAME).
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
            recipe=task.recipe(model).replace(**given),
            budget=Budget(kind=self.budget, limit=1.0 if self.limit is None else self.limit),
            **{name: getattr(self, name) for name in _PASSED_ON},
        )
        return replace(config, budget=budget(self.budget, self.limit, config, self.out))


_PASSED_ON = (
    "validation", "select", "patience", "data", "threads", "device", "mesh", "shard", "tensorboard", "checkpoint_every",
)  # fmt: skip


def command(argv: Sequence[str]) -> list[str]:
    """The full command line, ready to be run again."""
    return ["lowland", *argv]
