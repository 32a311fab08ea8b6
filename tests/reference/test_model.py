"""The ground under the twins: gradients against finite differences, losses against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.bisam import phi, slope, surrogate, surrogate_slope
from reference.model import MLP, Logistic, Quadratic, to_torch
from reference.normalized import Normalized, OnlyNormalization

PROBLEMS = [
    MLP(),
    Quadratic.random(0),
    Logistic(),
    Normalized(),
    Normalized(kind="group"),
    Normalized(kind="batch"),
    OnlyNormalization(),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_gradient_is_the_slope_of_the_loss(problem):
    w, batch, h = problem.weights(1), problem.batch(2), 1e-6
    for tensor, g in zip(w, problem.gradient(w, batch), strict=True):
        for index in np.ndindex(*tensor.shape):
            value = tensor[index]
            tensor[index] = value + h
            above = problem.loss(w, batch)
            tensor[index] = value - h
            below = problem.loss(w, batch)
            tensor[index] = value
            # central differences: h^2 truncation and eps/h rounding, both below 1e-9 here
            assert (above - below) / (2 * h) == pytest.approx(g[index], abs=1e-8)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_torch_module_is_the_same_function(problem):
    w, batch = problem.weights(1), problem.batch(2)
    model = problem.module(w)
    losses = problem.loss_fn(model, to_torch(batch))
    losses.mean().backward()
    np.testing.assert_allclose(losses.detach().numpy(), problem.losses(w, batch), rtol=1e-12, atol=1e-13)
    for p, g in zip(model.parameters(), problem.gradient(w, batch), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("problem", [Quadratic.random(3), Logistic()], ids=lambda p: type(p).__name__)
def test_smoothness_bounds_the_gradient_change(problem):
    batch, rng = problem.batch(0), np.random.default_rng(0)
    smoothness, ratios = problem.smoothness(batch), []
    for _ in range(200):
        x = rng.normal(size=problem.weights()[0].shape)
        y = x + 1e-2 * rng.normal(size=x.shape)
        change = np.linalg.norm(problem.gradient([x], batch)[0] - problem.gradient([y], batch)[0])
        ratios.append(change / np.linalg.norm(x - y))
    assert 0.3 * smoothness < max(ratios) <= smoothness * (1 + 1e-9)


def test_module_is_double():
    assert all(p.dtype is torch.float64 for p in MLP().module(MLP().weights()).parameters())


@pytest.mark.parametrize("kind", ["tanh", "log"])
def test_phi_bounds_the_step_and_slopes_as_said(kind):
    z, h = np.linspace(-6.0, 6.0, 200), 1e-6
    assert (phi(z, kind, 0.3) <= (z > 0)).all()
    assert phi(np.zeros(1), kind, 0.3)[0] == pytest.approx(0.0, abs=1e-15)
    differences = (phi(z + h, kind, 0.3) - phi(z - h, kind, 0.3)) / (2 * h)
    np.testing.assert_allclose(differences, slope(z, kind, 0.3), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["tanh", "log"])
@pytest.mark.parametrize("mu", [0.5, 1.0, 4.0])
def test_surrogate_s_gradient_is_autograd_s(kind, mu):
    problem, alpha = MLP(), 0.3
    w, (x, y) = problem.weights(1), problem.batch(2)
    model = problem.module(w)
    inputs, targets = to_torch((x, y))
    logits = model(inputs)
    margins = logits - logits.gather(1, targets[:, None])
    gamma = torch.log(torch.expm1(torch.ones((), dtype=torch.float64)))
    bounds = (alpha * margins).tanh() if kind == "tanh" else 1.0 - torch.nn.functional.softplus(gamma - margins)
    losses = (mu * bounds).logsumexp(1) / mu
    losses.mean().backward()
    values = problem.logits(w, x)
    np.testing.assert_allclose(surrogate(values, y, mu, kind, alpha), losses.detach().numpy(), rtol=1e-12)
    by_hand = problem.pull_back(w, x, surrogate_slope(values, y, mu, kind, alpha))
    for p, g in zip(model.parameters(), by_hand, strict=True):
        np.testing.assert_allclose(g, p.grad.numpy(), rtol=1e-12, atol=1e-14)
