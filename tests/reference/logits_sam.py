"""Luo, Deng, Do, Harandi, Phung, Le, "Sharpness-Aware Minimization in Logit Space ..." (logits-SAM)."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights


class LogitsSAM(Twin):
    """The rule of the paper (ICLR 2026, arXiv 2603.18258): SAM whose perturbation moves the head's weight only.

    `head` says which tensor that is; the norm in the ascent is its own.
    """

    def setup(self, head: int = 2) -> None:
        rhos = self.rho if isinstance(self.rho, list) else [self.rho] * len(self.w)
        self.rho = [rho if i == head else 0.0 for i, rho in enumerate(rhos)]

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        e = self.ascent(self.gradient(batch))
        return self.loss(batch), self.gradient(batch, at=e)
