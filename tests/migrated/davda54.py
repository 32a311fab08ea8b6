"""davda54/sam, from its README: two passes, two calls; the base optimizer steps at the weights of before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from migrated.rules import ascent, gradients, moved, reached


class SAM:
    """``first_step`` moves to ``w + e``, ``second_step`` moves back and steps; ``step`` does both around a closure."""

    def __init__(
        self,
        params: Any,
        base_optimizer: Any,
        rho: float = 0.05,
        adaptive: bool = False,
        rounded: bool = False,
        **options: Any,
    ) -> None:
        groups = list(params)
        groups = groups if isinstance(groups[0], dict) else [{"params": groups}]
        self.base_optimizer = base_optimizer([{"rho": rho, **group} for group in groups], **options)
        self.how = {"adaptive": adaptive, "rounded": rounded}  # see ascent
        self.away: AbstractContextManager[None] | None = None

    def zero_grad(self) -> None:
        self.base_optimizer.zero_grad()

    def first_step(self, zero_grad: bool = False) -> None:
        found = reached(self.base_optimizer)
        weights = [p for p, _ in found]
        shifts = ascent(weights, gradients(weights), [g["rho"] for _, g in found], **self.how)
        self.away = moved(weights, shifts)
        self.away.__enter__()
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        assert self.away is not None
        self.away.__exit__(None, None, None)
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any]) -> None:
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            closure()
        self.second_step()
