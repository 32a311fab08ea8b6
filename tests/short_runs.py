"""Short trainings of a task: with a method, resumed after a kill, and on two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.task import Task
from lowland.lab.training import checkpoint, run

METHODS = ("plain", "sam", "sampa", "looksam:k=2", "micro-sam:m=2")
"""One method of each kind: one probe, two after the other, two together, a cycle of steps, and parts of a batch."""


class Kill(Exception):  # noqa: N818 - no error of the library
    """A run dies right after a checkpoint."""


def config(task: Task, method: str = "sam", *, steps: int = 4, batch: int = 8, **changes: Any) -> RunConfig:
    """A short run of a task with its own recipe."""
    recipe = task.recipe(task.models[0]).replace(epochs=1, batch_size=batch, precision="fp32")
    made = RunConfig(
        task=task, model=task.models[0], method=method, seed=0, recipe=recipe, budget=Budget(limit=steps), device="cpu"
    )
    return replace(made, **changes)


def trained(folder: Path, made: RunConfig, deadly: int | None = None, *, resume: bool = False) -> Any:
    """Train in this process, or on all ranks of a group; die after the checkpoint at step ``deadly``."""
    real = checkpoint.save

    def save(*args: Any, step: int, **options: Any) -> None:
        real(*args, step=step, **options)
        if step == deadly:
            raise Kill

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.checkpoint, "save", save)
        if torch.distributed.is_initialized():  # what torchrun tells its processes
            patch.setenv("RANK", str(torch.distributed.get_rank()))
            patch.setenv("WORLD_SIZE", str(torch.distributed.get_world_size()))
        try:
            return run.train(made, folder, resume=resume)
        except Kill:
            return None


def assert_resumes(folder: Path, made: RunConfig) -> None:
    """A run that is killed at its second step and resumed has the weights and metrics of one that was not."""
    made = replace(made, checkpoint_every=2)
    undisturbed = trained(folder / "undisturbed", made)
    assert trained(folder / "killed", made, deadly=2) is None
    resumed = trained(folder / "killed", made, resume=True)
    assert resumed["weights_sha256"] == undisturbed["weights_sha256"]
    assert resumed["test"] == undisturbed["test"]
