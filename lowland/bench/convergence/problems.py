"""Convex problems in float64 whose smoothness and whose minimizer are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian as hessian_of
from torch.nn.functional import softplus

from lowland.core.errors import DataError, MissingExtraError

SOLVED = 1e-12  # the largest gradient norm at a minimizer that is computed


class Weights(nn.Module):
    """A model that is its weights.

    Args:
        start: The initial weights, shape ``(d,)``.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A convex loss, the mean over examples, with constants that are exact up to rounding.

    Args:
        name: Its name on the command line and in the record.
        formula: The loss in words.
        losses: The losses of some examples at weights: shapes ``(d,)`` and ``(B, …)`` to ``(B,)``.
        examples: All examples, shape ``(N, …)``.
        start: The initial weights, shape ``(d,)``.
        minimizer: The minimizer of the mean loss, shape ``(d,)``.
        smoothness: L, the least Lipschitz constant of the gradient of the mean loss.
        batch: Examples in a batch; None for all, so that gradients are exact.
    """

    name: str
    formula: str
    losses: Callable[[Tensor, Tensor], Tensor]
    examples: Tensor
    start: Tensor
    minimizer: Tensor
    smoothness: float
    batch: int | None = None

    @property
    def noisy(self) -> bool:
        """Whether gradients are of mini-batches."""
        return self.batch is not None

    @property
    def minimum(self) -> float:
        """The least mean loss."""
        return self.at(self.minimizer)[0]

    def loss_fn(self, model: Weights, batch: Tensor) -> Tensor:
        """The losses of a batch, shape ``(B,)``, for an engine."""
        return self.losses(model.w, batch)

    def at(self, weights: Tensor) -> tuple[float, Tensor]:
        """The mean loss over all examples, and its gradient, shape ``(d,)``."""
        return _value_and_gradient(lambda w: self.losses(w, self.examples).mean(), weights)

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Batches without end: all examples, or in each epoch a new permutation of them, cut into batches."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            if self.batch is None:
                yield self.examples
            else:
                order = torch.randperm(len(self.examples), generator=generator)
                yield from (self.examples[rows] for rows in torch.split(order, self.batch))


def _value_and_gradient(loss: Callable[[Tensor], Tensor], weights: Tensor) -> tuple[float, Tensor]:
    w = weights.detach().clone().requires_grad_(True)
    value = loss(w)
    (gradient,) = torch.autograd.grad(value, w)
    return value.item(), gradient


def _quadratic(curvature: Tensor, weights: Tensor, examples: Tensor) -> Tensor:
    """``1/2 sum_i h_i (w_i - z_i)^2`` for every example z."""
    return (weights - examples).square() @ curvature / 2


def _logistic(weights: Tensor, examples: Tensor) -> Tensor:
    """``log(1 + exp(-m))`` for every example, a row of inputs times its label of 1 or -1, with the margin m."""
    return softplus(-(examples @ weights))


def _start(dimension: int) -> Tensor:
    """The start of the quadratics: equal entries, length sqrt(2).

    A length that is a multiple of the radius would let the weights hit the minimizer of ``||x||^2`` exactly.
    """
    return torch.full((dimension,), math.sqrt(2 / dimension), dtype=torch.float64)


def square() -> Problem:
    """``||x||^2`` in 10 dimensions: L = 2, because the Hessian is 2 I."""
    curvature = torch.full((10,), 2.0, dtype=torch.float64)
    zero = torch.zeros(10, dtype=torch.float64)
    return Problem(
        name="square",
        formula="||x||² in 10 dimensions",
        losses=partial(_quadratic, curvature),
        examples=zero[None],
        start=_start(10),
        minimizer=zero,
        smoothness=2.0,
    )


def valley() -> Problem:
    """A quadratic whose curvatures reach from 0.01 to 1 in 10 dimensions: L = 1, the largest of them."""
    curvature = torch.logspace(-2, 0, 10, dtype=torch.float64)
    zero = torch.zeros(10, dtype=torch.float64)
    return Problem(
        name="valley",
        formula="½ Σ hᵢ xᵢ² with 10 curvatures from 0.01 to 1",
        losses=partial(_quadratic, curvature),
        examples=zero[None],
        start=_start(10),
        minimizer=zero,
        smoothness=curvature.max().item(),
    )


def noisy() -> Problem:
    """``1/2 ||x - z||^2`` over 64 examples z, in mini-batches of 8: L = 1, and the minimizer is the mean of z."""
    generator = torch.Generator().manual_seed(0)
    examples = 0.5 * torch.randn(64, 10, generator=generator, dtype=torch.float64)
    return Problem(
        name="noisy",
        formula="½ ||x − z||² over 64 examples z, in mini-batches of 8",
        losses=partial(_quadratic, torch.ones(10, dtype=torch.float64)),
        examples=examples,
        start=examples.mean(0) + _start(10),
        minimizer=examples.mean(0),
        smoothness=1.0,
        batch=8,
    )


def logistic() -> Problem:
    """Logistic regression on two kinds of iris, versicolor and virginica: 100 sepals, their two lengths and a constant.

    The Hessian at w is the mean of ``s (1 - s) x x^T`` with ``s = 1 / (1 + exp(-m))``. As ``s (1 - s) <= 1/4``, with
    equality at w = 0, L is the largest eigenvalue of ``X^T X / (4 N)`` exactly. The two kinds cannot be separated by
    a plane, so there is a minimizer; Newton's method finds it.

    Raises:
        MissingExtraError: scikit-learn or SciPy is not installed.
        DataError: The minimizer is not found.
    """
    try:
        from sklearn.datasets import load_iris
    except ImportError:
        raise MissingExtraError("scikit-learn", "lab") from None
    bunch: Any = load_iris()
    chosen = torch.from_numpy(bunch.target) > 0
    inputs = torch.from_numpy(bunch.data)[chosen, :2].double()  # of the sepals
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    labels = 2.0 * torch.from_numpy(bunch.target)[chosen].double() - 3  # -1 and 1
    examples = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1) * labels[:, None]
    return Problem(
        name="logistic",
        formula="logistic regression on 100 irises of two kinds, 3 weights",
        losses=_logistic,
        examples=examples,
        start=torch.zeros(3, dtype=torch.float64),
        minimizer=_newton(_logistic, examples),
        smoothness=torch.linalg.eigvalsh(examples.T @ examples)[-1].item() / (4 * len(examples)),
    )


def _newton(losses: Callable[[Tensor, Tensor], Tensor], examples: Tensor) -> Tensor:
    """The root of the gradient of the mean loss, by SciPy from its derivatives, to a norm of ``SOLVED``."""
    try:
        from scipy.optimize import root
    except ImportError:
        raise MissingExtraError("scipy", "lab") from None

    def mean(w: Tensor) -> Tensor:
        return losses(w, examples).mean()

    def gradient(w: Any) -> Any:
        return _value_and_gradient(mean, torch.from_numpy(w))[1].numpy()

    def hessian(w: Any) -> Any:
        return hessian_of(mean, torch.from_numpy(w)).numpy()  # type: ignore[no-untyped-call]

    found = root(gradient, [0.0] * examples.shape[1], jac=hessian, options={"xtol": 1e-15})
    minimizer = torch.from_numpy(found.x)
    size = torch.linalg.vector_norm(torch.from_numpy(gradient(found.x))).item()
    if not size <= SOLVED:
        raise DataError(f"the gradient at the minimizer must be at most {SOLVED}, but is {size}; update SciPy")
    return minimizer


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "square": square,
    "valley": valley,
    "logistic": logistic,
    "noisy": noisy,
}
