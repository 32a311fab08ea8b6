"""The GSAM release, from its README and paper: ``g_s - alpha * (g - proj_{g_s} g)``, and radii that are scheduled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from migrated.rules import ascent, gradients, momentum_zero, moved


@dataclass
class _Scheduler:
    """A value that rises from ``init_value`` in the warm-up and falls from ``max_value`` to ``min_value`` after it."""

    T_max: int
    max_value: float
    min_value: float = 0.0
    init_value: float = 0.0
    warmup_steps: int = 0
    optimizer: torch.optim.Optimizer | None = None
    t: int = 0

    def step(self) -> float:
        value = self._value(self.t)
        self.t += 1
        for group in self.optimizer.param_groups if self.optimizer else ():
            group["lr"] = value
        return value

    def _value(self, t: int) -> float:
        if t < self.warmup_steps:
            return self.init_value + (self.max_value - self.init_value) * t / self.warmup_steps
        return self._fall((t - self.warmup_steps) / (self.T_max - self.warmup_steps))

    def _fall(self, share: float) -> float:
        raise NotImplementedError


class LinearScheduler(_Scheduler):
    def _fall(self, share: float) -> float:
        return self.max_value - (self.max_value - self.min_value) * share


class CosineScheduler(_Scheduler):
    def _fall(self, share: float) -> float:
        return self.min_value + (self.max_value - self.min_value) * (1 + math.cos(math.pi * share)) / 2


@dataclass
class ProportionScheduler:
    """``(value - min_value) / (max_value - min_value) = (lr - min_lr) / (max_lr - min_lr)``."""

    pytorch_lr_scheduler: Any
    max_lr: float
    min_lr: float
    max_value: float
    min_value: float

    def step(self) -> float:
        share = (self.pytorch_lr_scheduler.get_last_lr()[0] - self.min_lr) / (self.max_lr - self.min_lr)
        return self.min_value + (self.max_value - self.min_value) * share


class GSAM:
    """``step`` runs both passes on the batch of ``set_closure`` and steps the base optimizer."""

    def __init__(
        self,
        params: Any,
        base_optimizer: torch.optim.Optimizer,
        model: nn.Module,
        gsam_alpha: float,
        rho_scheduler: Any,
        adaptive: bool = False,
    ) -> None:
        self.params, self.base_optimizer, self.model = list(params), base_optimizer, model
        self.alpha, self.scheduler, self.adaptive = gsam_alpha, rho_scheduler, adaptive
        self.update_rho_t()

    def update_rho_t(self) -> None:
        self.rho = self.scheduler.step()

    def set_closure(self, loss_fn: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> None:
        def passed() -> tuple[Tensor, Tensor]:
            self.base_optimizer.zero_grad()
            outputs = self.model(inputs)
            loss = loss_fn(outputs, targets)
            loss.backward()
            return outputs, loss.detach()

        self.passed = passed

    def step(self) -> tuple[Tensor, Tensor]:
        answer = self.passed()
        plain = gradients(self.params)
        shifts = ascent(self.params, plain, [self.rho] * len(plain), adaptive=self.adaptive)
        with moved(self.params, shifts), momentum_zero(self.model):
            self.passed()
        sharp = gradients(self.params)
        inner = sum((g * s).sum() for g, s in zip(plain, sharp, strict=True))
        along = inner / sum(s.square().sum() for s in sharp)
        for p, g, s in zip(self.params, plain, sharp, strict=True):
            p.grad = s - self.alpha * (g - along * s)
        self.base_optimizer.step()
        return answer
