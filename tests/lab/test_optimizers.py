"""LARS and LAMB: against their formulas in NumPy, in place of nothing, with SAMPa's lookahead, and resumed."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lowland
from lowland.core.errors import ArgumentError
from lowland.engine import lookahead
from lowland.lab.optimizers import LAMB, LARS


def problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[list[torch.Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=dtype))
    grads = [[torch.randn(p.shape, generator=draw, dtype=dtype) for p in model.parameters()] for _ in range(4)]
    return model, grads


def run(optimizer: torch.optim.Optimizer, model: nn.Module, grads: list[list[torch.Tensor]]) -> None:
    for step in grads:
        for p, g in zip(model.parameters(), step, strict=True):
            p.grad = g.clone()
        optimizer.step()


def weights(model: nn.Module) -> list[Any]:
    return [p.detach().numpy().copy() for p in model.parameters()]


def norm(x: Any) -> float:
    return math.sqrt(float((x * x).sum()))


def lars(w: Any, grads: list[Any], lr: float, momentum: float, decay: float, trust: float) -> Any:
    v = np.zeros_like(w)
    for g in grads:
        if w.ndim > 1:
            v = momentum * v + lr * trust * norm(w) / (norm(g) + decay * norm(w)) * (g + decay * w)
        else:
            v = momentum * v + lr * g
        w = w - v
    return w


def lamb(w: Any, grads: list[Any], lr: float, betas: tuple[float, float], decay: float, eps: float) -> Any:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        u = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        if w.ndim > 1:
            u = u + decay * w
            u = u * norm(w) / norm(u)
        w = w - lr * u
    return w


def test_lars_follows_its_formula() -> None:
    model, grads = problem()
    start = weights(model)
    run(LARS(model.parameters(), lr=2.0, momentum=0.8, weight_decay=0.1, trust=0.01), model, grads)
    for i, (w, found) in enumerate(zip(start, weights(model), strict=True)):
        np.testing.assert_allclose(found, lars(w, [g[i].numpy() for g in grads], 2.0, 0.8, 0.1, 0.01), rtol=1e-12)


def test_lamb_follows_its_formula() -> None:
    model, grads = problem()
    start = weights(model)
    run(LAMB(model.parameters(), lr=0.1, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6), model, grads)
    for i, (w, found) in enumerate(zip(start, weights(model), strict=True)):
        expected = lamb(w, [g[i].numpy() for g in grads], 0.1, (0.8, 0.95), 0.1, 1e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_step_of_lamb_is_as_long_as_the_learning_rate_says() -> None:
    model, grads = problem()
    before = weights(model)
    run(LAMB(model.parameters(), lr=0.25), model, grads[:1])
    for w, found in zip(before, weights(model), strict=True):
        if w.ndim > 1:
            assert norm(found - w) == pytest.approx(0.25 * norm(w), rel=1e-12)


@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_zeros_and_missing_gradients(kind: Any) -> None:
    zero, still, quiet = (nn.Parameter(torch.full((2, 2), value)) for value in (0.0, 1.0, 1.0))
    zero.grad, quiet.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer = kind([zero, still, quiet], lr=0.1, weight_decay=0.0)
    optimizer.step()
    assert torch.isfinite(zero).all()
    assert (zero < 0).all()
    assert torch.equal(still, torch.ones(2, 2))
    assert torch.equal(quiet, torch.ones(2, 2))
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0


@pytest.mark.parametrize("make", [lambda p: LARS(p, lr=1.0), lambda p: LAMB(p, lr=0.1)], ids=["lars", "lamb"])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_lookahead_is_the_next_step(make: Any, steps: int) -> None:
    model, grads = problem()
    optimizer = make(model.parameters())
    run(optimizer, model, grads[:steps])
    params = list(model.parameters())
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    moves = lookahead.displacement(optimizer, params, grads[steps])
    for old, now in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(old, now)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    run(optimizer, model, [grads[steps]])
    for move, old, now in zip(moves, before, weights(model), strict=True):
        np.testing.assert_allclose(move.numpy(), now - old, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("make", [lambda p: LARS(p, lr=1.0), lambda p: LAMB(p, lr=0.1)], ids=["lars", "lamb"])
def test_its_state_resumes(make: Any) -> None:
    model, grads = problem()
    optimizer = make(model.parameters())
    run(optimizer, model, grads[:2])
    twin = copy.deepcopy(model)
    other = make(twin.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, model, grads[2:])
    run(other, twin, grads[2:])
    for one, two in zip(weights(model), weights(twin), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "make", [lambda p: LARS(p, lr=0.1, trust=0.1), lambda p: LAMB(p, lr=0.1)], ids=["lars", "lamb"]
)
@pytest.mark.parametrize("method", [lowland.SAM(rho=0.1), lowland.SAMPa(rho=0.1), lowland.LookSAM(rho=0.1, k=2)])
def test_methods_train_with_it(make: Any, method: lowland.Method) -> None:
    model, _ = problem()
    optimizer = make(model.parameters())

    def loss_fn(net: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    engine = lowland.Engine(method, model, optimizer, loss_fn)
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(16, 3, generator=draw, dtype=torch.float64)
    batch = (inputs, (inputs[:, 0] > 0).long())
    losses = []
    for _ in range(30):
        losses.append(float(engine.backward(batch)))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_arguments() -> None:
    p = [nn.Parameter(torch.zeros(2))]
    for make, message in [
        (lambda: LARS(p, lr=-1.0), "lr must be a number >= 0"),
        (lambda: LARS(p, momentum=1.0), r"momentum must be in \[0, 1\)"),
        (lambda: LARS(p, trust=0.0), "trust must be > 0"),
        (lambda: LAMB(p, betas=(0.9, 1.0)), r"betas must be in \[0, 1\)"),
        (lambda: LAMB(p, eps=0.0), "eps must be > 0"),
        (lambda: LAMB(p, weight_decay=-1.0), "weight_decay must be a number >= 0"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            make()
