"""Li, Zhou, He, Cheng, Huang, "Friendly Sharpness-Aware Minimization"."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, add, lerp, zeros


class FriendlySAM(Twin):
    """The released code's rule (CVPR 2024, arXiv 2403.12350), which subtracts the mean of the steps before:

    first:      m = g,  d = g          (for each tensor on its own)
    afterwards: d = g - sigma m,  then  m <- lmb m + (1 - lmb) g
    direction:  g(w + rho unit(d); B)
    """

    def setup(self, sigma: float = 1.0, lmb: float = 0.9) -> None:
        self.sigma, self.lmb = sigma, lmb
        self.mean = zeros(self.w)

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        g = self.gradient(batch)
        d = add(g, self.mean, -self.sigma)
        later = lerp(g, self.mean, self.lmb)
        self.mean = [moved if m.any() else x for m, moved, x in zip(self.mean, later, g, strict=True)]
        return self.loss(batch), self.gradient(batch, at=self.ascent(d))
