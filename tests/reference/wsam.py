"""Yue et al., "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term" (WSAM)."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, lerp


class WSAM(Twin):
    """The coupled form of the paper (KDD 2023, arXiv 2305.15817): `d = (1 - a) g + a g_s`, `a = gamma / (1 - gamma)`.

    Gamma below 1/2 mixes, 1/2 is SAM, above 1/2 goes beyond it: the loss plus a times its sharpness.
    """

    def setup(self, gamma: float = 0.9) -> None:
        self.a = gamma / (1.0 - gamma)

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        g = self.gradient(batch)
        return self.loss(batch), lerp(g, self.gradient(batch, at=self.ascent(g)), self.a)
