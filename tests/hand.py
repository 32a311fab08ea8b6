"""What tests by hand share: a base optimizer, a loss, and comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def square(model: Any, batch: Any) -> Tensor:
    return model(batch).square().mean(1)


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def close(found: Any, expected: Any, atol: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def norm(v: list[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in v]).sum().sqrt() + 1e-12


def linear(out: int = 1) -> nn.Linear:
    """The same layer at every call, from three features, in float64."""
    torch.manual_seed(0)
    return nn.Linear(3, out).double()


def sam_gradient(params: list[Tensor], loss: Any, rho: float) -> list[Tensor]:
    """SAM's gradient of ``loss()``; the weights are restored."""
    first = torch.autograd.grad(loss(), params)
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, first, strict=True):
            p.add_(rho * g / norm(list(first)))
    second = list(torch.autograd.grad(loss(), params))
    with torch.no_grad():
        for p, b in zip(params, before, strict=True):
            p.copy_(b)
    return second
