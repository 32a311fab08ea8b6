"""Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization"."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights


class SAM(Twin):
    """Algorithm 1 of the paper (ICLR 2021, arXiv 2010.01412): `d = g(w + rho unit(g(w; B)); B)`."""

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        g = self.gradient(batch)
        g_s = self.gradient(batch, at=self.ascent(g))
        return self.loss(batch), g_s
