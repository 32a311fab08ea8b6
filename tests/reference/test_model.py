"""The ground under the twins: gradients against finite differences, losses against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.model import MLP, Logistic, Quadratic, to_torch

PROBLEMS = [MLP(), Quadratic.random(0), Logistic()]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_gradient_is_the_slope_of_the_loss(problem):
    w, batch, h = problem.weights(1), problem.batch(2), 1e-6
    for tensor, slope in zip(w, problem.gradient(w, batch), strict=True):
        for index in np.ndindex(*tensor.shape):
            value = tensor[index]
            tensor[index] = value + h
            above = problem.loss(w, batch)
            tensor[index] = value - h
            below = problem.loss(w, batch)
            tensor[index] = value
            # central differences: h^2 truncation and eps/h rounding, both below 1e-9 here
            assert (above - below) / (2 * h) == pytest.approx(slope[index], abs=1e-8)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
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
