"""Runs the library's engine on a twin's problem, so that both can be compared weight by weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import lowland
from reference.model import Batch
from reference.vectors import Weights

Optimizers = Callable[[Any], torch.optim.Optimizer]


def to_torch(batch: Batch) -> tuple[torch.Tensor, ...]:
    """The arrays of a batch as tensors, also where it carries more than inputs and targets."""
    return tuple(torch.from_numpy(x.copy()) for x in batch)


def sgd(**options: Any) -> Optimizers:
    return lambda params: torch.optim.SGD(params, lr=0.1, **options)


def adamw(**options: Any) -> Optimizers:
    return lambda params: torch.optim.AdamW(params, lr=0.1, **options)


class Run:
    """The engine, its model and its optimizer, stepped like a twin: `step(batch, lr)`, then `w`."""

    def __init__(
        self,
        problem: Any,
        w: Weights,
        method: Any,
        optimizer: Optimizers = sgd(),  # noqa: B008
        *,
        groups: Callable[[torch.nn.Module], Any] = lambda model: model.parameters(),
        loss_fn: Callable[..., torch.Tensor] | None = None,
        **options: Any,
    ):
        self.model = problem.module(w)
        self.optimizer = optimizer(groups(self.model))
        self.engine = lowland.Engine(method, self.model, self.optimizer, loss_fn or problem.loss_fn, **options)

    @property
    def w(self) -> Weights:
        return [p.detach().numpy().copy() for p in self.model.parameters()]

    @property
    def grad(self) -> Weights:
        """What the method handed to the base optimizer in the last step."""
        return [p.grad.numpy().copy() for p in self.model.parameters()]

    def step(self, batch: Batch, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss = self.engine.backward(to_torch(batch))
        self.optimizer.step()
        return float(loss)


def trajectory(run: Any, batches: Sequence[Batch], lrs: Sequence[float]) -> list[Weights]:
    """The weights after every step, of a `Run` or of a twin."""
    path = []
    for batch, lr in zip(batches, lrs, strict=True):
        run.step(batch, lr)
        path.append([np.array(p) for p in run.w])
    return path


def assert_same(path: Sequence[Weights], other: Sequence[Weights], tolerance: float = 1e-10) -> None:
    """Every weight of every step agrees, relative plus absolute."""
    assert len(path) == len(other) > 0
    for t, (a, b) in enumerate(zip(path, other, strict=True)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if x.shape == y.shape and (np.abs(x - y) <= tolerance + tolerance * np.abs(y)).all():
                continue  # numpy's own check says more, but takes long
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=f"step {t}, tensor {i}")


def assert_differ(path: Sequence[Weights], other: Sequence[Weights]) -> None:
    """The counterpart of `assert_same`: what a test is about does make a difference."""
    pairs = [pair for a, b in zip(path, other, strict=True) for pair in zip(a, b, strict=True)]
    assert max(float(np.abs(x - y).max()) for x, y in pairs) > 1e-6


def vec(w: Weights) -> list[torch.Tensor]:
    """Arrays as the library's Vec."""
    return [torch.from_numpy(np.array(x)) for x in w]


def arrays(v: Sequence[torch.Tensor]) -> Weights:
    return [x.detach().numpy().copy() for x in v]
