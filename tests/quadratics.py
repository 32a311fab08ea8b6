"""Losses whose flatness is known by hand, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowland import Loss

DIAGONAL = torch.tensor([4.0, 1.0, -0.5, 2.0, 3.0], dtype=torch.float64)


class Point(nn.Module):
    """Weights of their own, in two tensors; the examples only scale the loss."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(values[:2].clone())
        self.rest = nn.Parameter(values[2:].clone())

    @property
    def flat(self) -> Tensor:
        return torch.cat([self.first, self.rest])


def point(*values: float) -> Point:
    return Point(torch.tensor(values, dtype=torch.float64))


class Quadratic:
    """``scale_i * (x^T A x / 2 + b^T x)``, one loss per example."""

    def __init__(self, matrix: Tensor, linear: Tensor | None = None) -> None:
        self.matrix, self.linear = matrix, torch.zeros_like(matrix[0]) if linear is None else linear

    def value(self, x: Tensor) -> Tensor:
        return x @ self.matrix @ x / 2 + self.linear @ x

    def __call__(self, model: Any, batch: Tensor) -> Tensor:
        return batch * self.value(model.flat)

    def mean(self, model: Any, batch: Tensor) -> Tensor:
        return self(model, batch).mean()

    def counted(self, model: Any, batch: Tensor) -> Loss:
        """The examples count as much as they scale."""
        return Loss(self(model, batch).sum(), batch.sum())


def symmetric(seed: int, size: int = 5) -> Tensor:
    """A random symmetric matrix whose largest eigenvalue is clearly the largest magnitude."""
    draw = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return draw @ draw.T / size - 0.1 * torch.eye(size, dtype=torch.float64)


ONE = [torch.ones(1, dtype=torch.float64)]
