"""Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training" (GSAM)."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import TINY, Weights, add, dot


class GSAM(Twin):
    """The update of the paper (ICLR 2022, arXiv 2203.08065): `d = g_s - alpha (g - proj_{g_s} g)`.

    What is subtracted is the part of the gradient orthogonal to SAM's: along it the loss rises and the
    perturbed loss does not.
    """

    def setup(self, alpha: float = 0.4) -> None:
        self.alpha = alpha

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        g = self.gradient(batch)
        g_s = self.gradient(batch, at=self.ascent(g))
        orthogonal = add(g, g_s, -dot(g, g_s) / (dot(g_s, g_s) + TINY**2))
        return self.loss(batch), add(g_s, orthogonal, -self.alpha)
