"""Situations that several methods are put into: watched passes, an overflow, parameters that do not take part."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import lowland
from reference.cases import MOMENTUM, PROBLEM, Spare, some
from reference.drive import Run, arrays, to_torch
from reference.model import Batch
from reference.vectors import Weights, add


def points_of(run: Run, batch: Batch, lr: float = 0.1, problem: Any = PROBLEM) -> list[Weights]:
    """How far from the weights every pass of one step stands."""
    at, before = [], run.w

    def watching(model, batch):
        at.append(add(arrays(model.parameters()), before, -1.0))
        return problem.loss_fn(model, batch)

    run.engine.loss_fn = run.engine.work.loss_fn = watching
    run.step(batch, lr)
    return at


def overflow(method: Any, steps: int, skipped: int = 0) -> tuple[lowland.Engine, dict[str, Any]]:
    """An engine under a GradScaler whose last of `steps` steps overflows, and its memory before that step.

    The first `skipped` passes of that step are still finite.
    """
    left: list[int] = []

    def loss_fn(model, batch):
        broken = bool(left) and left[0] == 0
        if left and not broken:
            left[0] -= 1
        return PROBLEM.loss_fn(model, batch) * (float("inf") if broken else 1.0)

    model = PROBLEM.module(PROBLEM.weights(1)).float()
    optimizer = MOMENTUM(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    engine, before = lowland.Engine(method, model, optimizer, loss_fn, scaler=scaler), {}
    for t in range(steps):
        if t == steps - 1:
            left.append(skipped)
            before = dict(engine.memory)
        x, y = to_torch(PROBLEM.batch(t))
        engine.backward((x.float(), y))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return engine, before


def assert_leaves_alone_what_does_not_take_part(method: Any, steps: int = 10) -> Run:
    """A parameter that the loss does not reach, and one that is frozen; returns the run of the latter."""
    run = Run(Spare(), PROBLEM.weights(1), method, MOMENTUM)
    for batch in some(steps):
        run.step(batch, 0.1)
    assert run.model.spare.grad is None
    assert torch.equal(run.model.spare, torch.ones(3, dtype=torch.float64))

    def freeze(model):
        model[0].weight.requires_grad_(False)
        return model.parameters()

    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM, groups=freeze)
    for batch in some(steps):
        run.step(batch, 0.1)
    assert run.model[0].weight.grad is None
    assert not run.model[0].weight.requires_grad
    np.testing.assert_array_equal(run.w[0], PROBLEM.weights(1)[0])
    return run
