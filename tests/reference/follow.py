"""The library's engine and a twin side by side: whole trajectories, weight by weight.

Both sides compute in float64 but sum in different orders, so they part by rounding, about 1e-16 a step;
1e-10 leaves room for the steps to amplify it and none for another formula.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from reference import base, drive
from reference.model import MLP, Batch
from reference.twin import Twin
from reference.vectors import Weights

PROBLEM = MLP()
STEPS = 12
SIZES = [12, 9, 7, 12]

BASES = {
    "momentum": (
        base.SGD(momentum=0.9, weight_decay=5e-4),
        drive.sgd(momentum=0.9, weight_decay=5e-4),
    ),
    "nesterov": (
        base.SGD(momentum=0.9, nesterov=True, weight_decay=5e-4),
        drive.sgd(momentum=0.9, nesterov=True, weight_decay=5e-4),
    ),
    "dampening": (
        base.SGD(momentum=0.9, dampening=0.2, weight_decay=5e-4),
        drive.sgd(momentum=0.9, dampening=0.2, weight_decay=5e-4),
    ),
    "adamw": (base.adamw(0.05), drive.adamw(weight_decay=0.05)),
}

# For the methods that are about one of them.
EXTRA_BASES = {
    "sgd": (base.SGD(weight_decay=5e-4), drive.sgd(weight_decay=5e-4)),
    "adam-amsgrad": (
        base.Adam(amsgrad=True, betas=(0.5, 0.6), weight_decay=1e-2),
        lambda params: torch.optim.Adam(params, lr=0.1, amsgrad=True, betas=(0.5, 0.6), weight_decay=1e-2),
    ),
}


def schedule(steps: int, peak: float) -> list[float]:
    """A learning rate that rises, falls, and is never twice the same."""
    return [peak * (0.2 + 0.8 * np.sin(np.pi * (t + 1) / (steps + 2))) for t in range(steps)]


def batches(steps: int, problem: Any = PROBLEM) -> list[Batch]:
    """A different batch for every step; the sizes differ, too."""
    return [problem.batch(t, SIZES[t % len(SIZES)]) for t in range(steps)]


def in_groups(rhos: Sequence[float]) -> Callable[[torch.nn.Module], list[dict[str, Any]]]:
    """Puts every parameter into a group of its own, with a radius of its own."""

    def groups(model: torch.nn.Module) -> list[dict[str, Any]]:
        return [{"params": [p], "rho": rho} for p, rho in zip(model.parameters(), rhos, strict=True)]

    return groups


def assert_follows(
    method: Any,
    twin_class: type[Twin],
    fields: dict[str, Any],
    base_key: str,
    steps: int = STEPS,
    problem: Any = PROBLEM,
    w: Weights | None = None,
    data: Sequence[Batch] | None = None,
    **options: Any,
) -> tuple[drive.Run, Any]:
    """Runs both for `steps` steps, compares loss and weights after each, and returns both.

    `fields` are the twin's, `options` the engine's; `data` takes the place of `batches(steps, problem)`.
    """
    twin_base, optimizer = (BASES | EXTRA_BASES)[base_key]
    w = problem.weights(1) if w is None else w
    run = drive.Run(problem, w, method, optimizer, **options)
    twin = twin_class(problem, w, copy.deepcopy(twin_base), **fields)
    data = batches(steps, problem) if data is None else data
    lrs = schedule(steps, 0.02 if base_key.startswith("adam") else 0.2)
    moved = 0.0
    for batch, lr in zip(data, lrs, strict=True):
        before = twin.w
        loss = twin.step(batch, lr)
        assert run.step(batch, lr) == pytest.approx(loss, rel=1e-10, abs=1e-10)
        drive.assert_same([run.w], [twin.w])
        moved += sum(float(np.abs(a - b).sum()) for a, b in zip(twin.w, before, strict=True))
    assert moved > 0.1  # a trajectory that goes nowhere would prove nothing
    return run, twin
