"""What ``train`` and ``compare`` share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lowland.lab.budget import Budget, Kind
from lowland.lab.config import RunConfig
from lowland.lab.recipe import Recipe, default_model, method_recipe, recipe
from lowland.lab.studies.compare import budget
from lowland.lab.tasks import NoiseKind

DIVERGED = 3  # the exit code where a training broke down


@dataclass(kw_only=True)
class Options:
    """What to train, and under which budget.

    Args:
        task: digits, fashion-mnist, cifar10 or cifar100.
        model: mlp, convnet, resnet20, resnet56, wrn-16-4, or a torchvision or timm name; left out, the task's own.
        budget: What every run may spend the same of: optimizer steps, gradients, or seconds of training.
        limit: How much of it, > 0; left out, what plain training takes for the epochs of the recipe.
        noise: Share of wrong training labels, in [0, 1).
        noise_kind: symmetric: any other class; asymmetric: the class it is easily mistaken for.
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
        recipe: Optimizer and schedule; the defaults are those of task and model.
    """

    task: str = "digits"
    model: str | None = None
    budget: Kind = "steps"
    limit: float | None = None
    noise: float = 0.0
    noise_kind: NoiseKind = "symmetric"
    data: Path | None = None
    out: Path = Path("runs")
    threads: int | None = None
    device: str = "auto"
    mesh: str | None = None
    shard: bool = False
    tensorboard: bool = False
    checkpoint_every: int | None = None
    recipe: Recipe

    def config(self, method: str = "plain", seed: int = 0) -> RunConfig:
        """The run of that method and seed, its default limit worked out."""
        config = RunConfig(
            task=self.task,
            model=self.model or default_model(self.task),
            method=method,
            seed=seed,
            recipe=self.recipe,
            budget=Budget(kind=self.budget, limit=1.0 if self.limit is None else self.limit),
            noise=self.noise,
            noise_kind=self.noise_kind,
            data=self.data,
            threads=self.threads,
            device=self.device,
            mesh=self.mesh,
            shard=self.shard,
            tensorboard=self.tensorboard,
            checkpoint_every=self.checkpoint_every,
        )
        found = budget(self.budget, self.limit, config, self.out)
        return replace(config, budget=found, recipe=method_recipe(self.recipe, method))


def default_recipe(argv: Sequence[str]) -> Recipe:
    """The recipe for the task, model and device in ``argv``, read before the command line is parsed.

    So the help and the defaults are those of the very task, and every field of a recipe is an option.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--model")
    parser.add_argument("--device", default="auto")
    try:
        found, _ = parser.parse_known_args(list(argv))
    except argparse.ArgumentError:  # an option without its value; tyro will say so
        return Recipe()
    return recipe(found.task, found.model or default_model(found.task), _device(found.device))


def command(argv: Sequence[str]) -> list[str]:
    """What was typed, as it can be typed again."""
    return ["lowland", *argv]


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name if name.startswith("cuda") and torch.cuda.is_available() else "cpu"
