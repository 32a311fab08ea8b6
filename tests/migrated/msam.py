"""The Momentum-SAM release, from its paper's efficient form: between steps weights stay at ``w - rho * v/||v||``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from migrated.rules import ascent


class _Displaced:
    """Weights that the momentum displaces, ``unit`` times ``radius``."""

    def __init__(self, params: Any, rho: float) -> None:
        self.params, self.rho = list(params), rho
        self.radius = rho
        self.unit = [torch.zeros_like(p) for p in self.params]
        self.momentum = [torch.zeros_like(p) for p in self.params]

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def move_back_from_momentumAscent(self) -> None:  # noqa: N802 - the release's name
        for p, u in zip(self.params, self.unit, strict=True):
            p.add_(u, alpha=self.radius)

    @torch.no_grad()
    def move_up_to_momentumAscent(self) -> None:  # noqa: N802 - the release's name
        for p, u in zip(self.params, self.unit, strict=True):
            p.sub_(u, alpha=self.radius)

    def _displace(self) -> None:
        self.radius, self.unit = self.rho, ascent(self.params, self.momentum, [1.0] * len(self.params))
        self.move_up_to_momentumAscent()


class MSAM(_Displaced):
    """SGD with momentum: ``v = mu v + g + decay * w~`` and ``w = w - lr v``, where g is the gradient at ``w~``."""

    def __init__(
        self, params: Any, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-2, rho: float = 0.3
    ) -> None:
        super().__init__(params, rho)
        self.lr, self.mu, self.decay = lr, momentum, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        for p, v in zip(self.params, self.momentum, strict=True):
            assert p.grad is not None
            v.mul_(self.mu).add_(p.grad + self.decay * p)
        self.radius = self.rho  # the release takes the displacement back by the radius of now
        self.move_back_from_momentumAscent()
        for p, v in zip(self.params, self.momentum, strict=True):
            p.sub_(v, alpha=self.lr)
        self._displace()


class AdamW_MSAM(_Displaced):  # noqa: N801 - the release's name
    """Adam's move, then ``w = (1 - lr * decay) w``; the first moment displaces."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        rho: float = 1.0,
    ) -> None:
        super().__init__(params, rho)
        self.lr, self.betas, self.eps, self.decay, self.t = lr, betas, eps, weight_decay, 0
        self.squares = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        first, second = self.betas
        self.move_back_from_momentumAscent()
        for p, m, s in zip(self.params, self.momentum, self.squares, strict=True):
            assert p.grad is not None
            m.lerp_(p.grad, 1 - first)
            s.lerp_(p.grad.square(), 1 - second)
            root: Tensor = (s / (1 - second**self.t)).sqrt()
            p.sub_(self.lr * m / (1 - first**self.t) / (root + self.eps))
            p.mul_(1 - self.lr * self.decay)
        self._displace()
