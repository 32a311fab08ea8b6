"""Oikonomou, Loizou, "Sharpness-Aware Minimization: General Analysis and Improved Rates" (Unified SAM)."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import TINY, Weights, norm


class UnifiedSAM(Twin):
    """The paper's update (ICLR 2025, arXiv 2503.02225), with lambda_t a number, `1/t` or `1 - 1/t`, t from 1:

    e = rho (1 - lambda_t + lambda_t / ||g||) g,   direction g(w + e; B)

    """

    def setup(self, lam: float | str = 1.0) -> None:
        self.lam, self.t = lam, 0

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        self.t += 1
        lam = {"1/t": 1 / self.t, "1-1/t": 1 - 1 / self.t}[self.lam] if isinstance(self.lam, str) else self.lam
        g = self.gradient(batch)
        rhos = self.rho if isinstance(self.rho, list) else [self.rho] * len(g)
        size = norm([x for x, rho in zip(g, rhos, strict=True) if rho])
        e = [rho * (1 - lam + lam / (size + TINY)) * x for x, rho in zip(g, rhos, strict=True)]
        return self.loss(batch), self.gradient(batch, at=e)
