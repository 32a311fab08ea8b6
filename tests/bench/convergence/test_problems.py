"""The constants of the problems, against automatic differentiation."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from lowland.bench.convergence.problems import PROBLEMS, SOLVED, Problem, Weights


def hessian(problem: Problem, w: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.autograd.functional.hessian(lambda v: problem.losses(v, problem.examples).mean(), w)
    return result


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_minimizer_is_one(name: str) -> None:
    problem = PROBLEMS[name]()
    value, gradient = problem.at(problem.minimizer)
    assert value == problem.minimum
    assert gradient.norm() <= SOLVED
    assert problem.at(problem.start)[0] > problem.minimum
    assert torch.linalg.eigvalsh(hessian(problem, problem.minimizer))[0] > 0  # so it is the only one


@pytest.mark.parametrize("name", PROBLEMS)
def test_smoothness_is_the_least(name: str) -> None:
    problem = PROBLEMS[name]()
    largest = torch.linalg.eigvalsh(hessian(problem, torch.zeros_like(problem.start)))[-1].item()
    assert largest == pytest.approx(problem.smoothness, rel=1e-12)
    for _ in range(20):
        w = 3 * torch.randn_like(problem.start)
        curvatures = torch.linalg.eigvalsh(hessian(problem, w))
        assert curvatures[0] >= 0
        assert curvatures[-1] <= problem.smoothness * (1 + 1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_engine_sees_the_same_loss(name: str) -> None:
    problem = PROBLEMS[name]()
    model = Weights(problem.start)
    losses = problem.loss_fn(model, problem.examples)
    assert losses.shape == (len(problem.examples),)
    losses.mean().backward()
    value, gradient = problem.at(problem.start)
    assert losses.mean().item() == value
    assert model.w.grad is not None
    assert torch.equal(model.w.grad, gradient)
    assert torch.equal(model.w, problem.start)


def test_the_quadratics_by_hand() -> None:
    square, noisy = PROBLEMS["square"](), PROBLEMS["noisy"]()
    w = torch.arange(10, dtype=torch.float64)
    assert square.at(w)[0] == 285
    assert torch.equal(square.at(w)[1], 2 * w)
    torch.testing.assert_close(noisy.at(w)[1], w - noisy.examples.mean(0))


def test_an_epoch_has_every_example_once_and_the_seed_decides_the_order() -> None:
    problem = PROBLEMS["noisy"]()
    epoch = list(islice(problem.batches(0), 8))
    assert [len(batch) for batch in epoch] == [8] * 8
    assert torch.equal(torch.cat(epoch).sort(0).values, problem.examples.sort(0).values)
    assert torch.equal(epoch[0], next(problem.batches(0)))
    assert not torch.equal(epoch[0], next(problem.batches(1)))
    exact = PROBLEMS["square"]()
    assert all(batch is exact.examples for batch in islice(exact.batches(0), 3))
