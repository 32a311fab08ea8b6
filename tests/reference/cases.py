"""The problem, base optimizers and learning rates on which invariants are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from reference.drive import Run, adamw, sgd, trajectory
from reference.model import MLP, Batch
from reference.vectors import Weights

SAME = 1e-11
PROBLEM = MLP()
LRS = [0.1, 0.2, 0.15, 0.05, 0.1, 0.3, 0.1, 0.02, 0.1, 0.1]
MOMENTUM = sgd(momentum=0.9, weight_decay=5e-4)
BASES = {
    "sgd": sgd(),
    "momentum": MOMENTUM,
    "nesterov": sgd(momentum=0.9, nesterov=True, weight_decay=5e-4),
    "dampening": sgd(momentum=0.9, dampening=0.3, weight_decay=5e-4),
    "adamw": adamw(weight_decay=0.05),
}


class Spare(MLP):
    """An MLP with a parameter that its loss never reaches."""

    def module(self, w: Weights) -> torch.nn.Module:
        model = super().module(w)
        model.register_parameter("spare", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
        return model


def rates(steps: int) -> list[float]:
    """Learning rates that change from step to step."""
    return [LRS[t % len(LRS)] for t in range(steps)]


def some(steps: int = len(LRS), problem: Any = PROBLEM) -> list[Batch]:
    """A different batch for every step."""
    return [problem.batch(t) for t in range(steps)]


def path_of(
    method: Any,
    batches: Sequence[Batch],
    lrs: Sequence[float] | None = None,
    *,
    problem: Any = PROBLEM,
    optimizer: Any = MOMENTUM,
    **options: Any,
) -> list[Weights]:
    """The weights after every step of a method, from the same start."""
    run = Run(problem, problem.weights(1), method, optimizer, **options)
    return trajectory(run, batches, lrs or rates(len(batches)))


def probes(run: Run, batches: Sequence[Batch], lrs: Sequence[float] | None = None) -> Iterator[int]:
    """Steps through the batches and says how many probes each step asked."""
    for batch, lr in zip(batches, lrs or rates(len(batches)), strict=True):
        before = run.engine.cost.probes
        run.step(batch, lr)
        yield run.engine.cost.probes - before
