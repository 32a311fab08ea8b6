"""What the old rules share: the step to a worse point and back, and BatchNorm's statistics left alone meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def ascent(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    radii: Sequence[float],
    *,
    adaptive: bool = False,
    rounded: bool = False,
) -> list[Tensor]:
    """``e = rho * T^2 g / (||T g|| + 1e-12)``, where T is ``|w|`` if adaptive, else 1; the norm is over all tensors.

    With ``rounded`` the norms of the tensors, and what is made of them, are float32 numbers, as in pytorch_optimizer.
    """
    sizes = [w.detach().abs() if adaptive else torch.ones_like(w) for w in weights]
    norms = torch.stack([(t * g).norm() for t, g in zip(sizes, grads, strict=True)])
    norm = (norms.float() if rounded else norms).square().sum().sqrt()
    return [t * t * g * (r / (norm + 1e-12)) for t, g, r in zip(sizes, grads, radii, strict=True)]


@contextmanager
def moved(weights: Sequence[Tensor], shifts: Sequence[Tensor]) -> Iterator[None]:
    """The weights are displaced inside, and as before afterwards."""
    saved = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for weight, shift in zip(weights, shifts, strict=True):
            weight.add_(shift)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, saved, strict=True):
                weight.copy_(value)


@contextmanager
def momentum_zero(model: nn.Module) -> Iterator[None]:
    """BatchNorm's momentum is 0 inside: the running mean and variance stay, the number of batches counts on."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    old = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0
    yield
    for layer, value in zip(layers, old, strict=True):
        layer.momentum = value


def reached(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    """The parameters that have a gradient, each with its group."""
    return [(p, group) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies of their gradients."""
    return [w.grad.detach().clone() for w in weights if w.grad is not None]
